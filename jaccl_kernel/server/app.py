"""The HTTP side: OpenAI's routes, health, metrics and a page, as a FastAPI app.

Bodies are read and checked by our own hand, so that every error has OpenAI's shape. An answer's client is
watched: once it is gone, its sequences leave the batch. Knows the engine as a protocol only.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from jaccl_kernel.server import page, schema
from jaccl_kernel.server.answer import Choice, Delta
from jaccl_kernel.server.chat import Prompt, chat_prompt, completion_prompts
from jaccl_kernel.server.examples import examples
from jaccl_kernel.server.generation import Engine, Generation, Served, ServerError
from jaccl_kernel.server.guard import Cors, Guard, Uploads, check_key
from jaccl_kernel.server.metrics import Metrics
from jaccl_kernel.server.responses import Shapes
from jaccl_kernel.server.text import Assembler, Piece

KEEPALIVE_S = 10.0  # of silence, after which a stream sends a comment: proxies close what says nothing
LARGE = 256 << 10  # bytes of a body from which on reading it would hold up the event loop
GONE = 499  # nginx's: nobody is there to read it
T = TypeVar("T")
R = TypeVar("R", bound=schema.Request)
log = logging.getLogger(__name__)


def make_app(engine: Engine, served: Callable[[], Served | None]) -> FastAPI:
    """The app.

    Args:
        engine: runs generations.
        served: what is served, None while the model is not loaded yet.
    """
    app = FastAPI(title="JACCL server", docs_url=None, redoc_url=None)
    api = _Api(engine, served)
    app.add_exception_handler(ServerError, _tell_server_error)
    app.add_exception_handler(HTTPException, _tell_http_error)
    app.add_exception_handler(Exception, _tell_bug)
    app.get("/", response_class=HTMLResponse)(api.page)
    app.get("/health")(api.health)
    app.get("/status")(api.status)
    app.get("/metrics")(api.prometheus)
    app.get("/v1/models")(api.models)
    app.get("/v1/models/{name:path}")(api.model)
    for path, kind, route in (
        ("/v1/chat/completions", schema.ChatRequest, api.chat),
        ("/v1/completions", schema.CompletionRequest, api.completions),
    ):
        body = {"content": {"application/json": {"schema": kind.model_json_schema()}}, "required": True}
        app.post(path, openapi_extra={"requestBody": body})(route)
    app.add_middleware(Guard, served=served, metrics=api.metrics)
    app.add_middleware(Cors, served=served)
    return app


class _Api:
    """The routes."""

    def __init__(self, engine: Engine, served: Callable[[], Served | None]) -> None:
        self._engine = engine
        self._served = served
        self._uploads = Uploads()
        self._texts = ThreadPoolExecutor(
            1, thread_name_prefix="jaccl-text"
        )  # tokenizers are not for two threads
        self.metrics = Metrics(engine.status)

    # what is there

    async def page(self, request: Request) -> HTMLResponse:
        check_key(request, self._served())
        base = str(request.base_url).rstrip("/")
        return HTMLResponse(page.render(self._served(), self._engine.status(), base))

    async def health(self) -> JSONResponse:
        """200 when requests are served; else 503, saying what is missing. Needs no key, and tells little."""
        status = self._engine.status()
        ready = status["state"] == "ready" and self._served() is not None
        body = {"status": "ok" if ready else status["state"], "stage": status["stage"]}
        return JSONResponse(body, 200 if ready else 503)

    async def status(self, request: Request) -> JSONResponse:
        served = self._served()
        check_key(request, served)
        told = self._engine.status() | {"ttft_s": self.metrics.ttft(), "served": {}, "examples": []}
        if served:
            base = str(request.base_url).rstrip("/")
            told["served"] = {**served.facts, "context": served.context, "model": served.name}
            told["examples"] = examples(base, served.name, key=served.api_key is not None)
        return JSONResponse(told)

    async def prometheus(self, request: Request) -> PlainTextResponse:
        check_key(request, self._served())
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [_model(self._ready(request))]}

    async def model(self, request: Request, name: str) -> dict[str, Any]:
        served = self._ready(request)
        _check_model(name, served)
        return _model(served)

    # answers

    async def chat(self, request: Request) -> Response:
        served = self._ready(request)
        asked = await self._asked(request, schema.ChatRequest, served)
        report = asked.report()
        prompt = await self._off_loop(lambda: chat_prompt(asked, served))
        tools = [] if asked.tool_choice == "none" else asked.tools
        limit = asked.limit()
        return await self._answer(
            request,
            asked,
            served,
            [prompt],
            report,
            limit,
            Shapes(served, chat=True, report=report is not None),
            tools,
        )

    async def completions(self, request: Request) -> Response:
        served = self._ready(request)
        asked = await self._asked(request, schema.CompletionRequest, served)
        if asked.echo and (asked.stream or asked.logprobs is not None):
            raise ServerError(
                400,
                "echo cannot be combined with stream or logprobs",
                code="unsupported_parameter",
                param="echo",
            )
        prompts = await self._off_loop(lambda: completion_prompts(asked, served))
        report = asked.logprobs
        shapes = Shapes(served, chat=False, report=report is not None)
        return await self._answer(request, asked, served, prompts, report, asked.limit(), shapes, [])

    async def _asked(self, request: Request, kind: type[R], served: Served) -> R:
        """The request, read and checked in all that needs no tokenizer."""
        body = await self._uploads.read(request, served.max_body_bytes)

        def read() -> R:
            return schema.validate(kind, schema.parse_json(body))

        asked = await asyncio.to_thread(read) if len(body) > LARGE else read()
        _check_model(asked.model, served)
        if (wanted := asked.choices()) > served.max_choices:
            raise ServerError(
                400, f"{wanted} choices; at most {served.max_choices} are made at once", param="n"
            )
        return asked

    async def _answer(
        self,
        request: Request,
        asked: schema.Request,
        served: Served,
        prompts: list[Prompt],
        report: int | None,
        limit: int | None,
        shapes: Shapes,
        tools: list[dict[str, Any]],
    ) -> Response:
        generations = [
            Generation(
                prompt.tokens,
                min(limit or served.context, served.context - len(prompt.tokens)),
                asked.sampling(served.vocabulary, seed_offset=at),
                report,
                prompt.grammar,
                prompt.boundary,
            )
            for prompt in prompts
            for at in range(asked.n)
        ]
        begins = [prompt.begins for prompt in prompts for _ in range(asked.n)]
        choices: list[Choice] = []
        parallel = asked.parallel_tool_calls if isinstance(asked, schema.ChatRequest) else True
        try:
            for at, (generation, begin) in enumerate(zip(generations, begins, strict=True)):
                stream = self._engine.submit(generation)
                assembler = Assembler(
                    served.tokenizer,
                    stops=asked.stops(),
                    tools=tools,
                    begins=begin,
                    sort=shapes.chat,
                    parallel=parallel,
                )
                choices.append(Choice(at, self._engine, stream, assembler))
            if asked.stream:
                # the first piece is waited for, so that an early error is still a status
                events = self._events(choices, shapes, asked)
                first = await _unless_gone(request, anext(events))
                return StreamingResponse(
                    _chain(first, events),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache"},
                )
            deltas = await _unless_gone(request, _gather([_whole(choice) for choice in choices]))
        except BaseException as error:
            self._leave(choices, gone=not isinstance(error, ServerError) or error.status == GONE)
            raise
        self._book(choices)
        echo = asked.echo if isinstance(asked, schema.CompletionRequest) else False
        echoes = [served.tokenizer.decode(one.prompt) if echo else "" for one in generations]
        return JSONResponse(shapes.whole(choices, deltas, echoes))

    async def _events(
        self, choices: list[Choice], shapes: Shapes, asked: schema.Request
    ) -> AsyncGenerator[bytes, None]:
        """The server-sent events of a stream, from its first byte to `[DONE]`."""
        ended = told = False
        begun: set[int] = set()
        try:
            async with aclosing(_merged(choices)) as merged:
                async for item in merged:
                    told = True
                    if item is None:
                        yield b": still working\n\n"
                        continue
                    choice, delta = item
                    first = choice.index not in begun
                    begun.add(choice.index)
                    yield _event(shapes.chunk(choice, delta, first=first))
            if asked.stream_options and asked.stream_options.include_usage:
                yield _event(shapes.last_chunk(choices))
            ended = True
            yield b"data: [DONE]\n\n"
        except Exception as error:
            ended = True
            if not told:  # it can still be a status
                raise
            if not isinstance(error, ServerError):
                log.exception("a stream broke")
            yield _event(_told(error).body())
            yield b"data: [DONE]\n\n"
        finally:
            self._leave(choices, gone=not ended)
            self._book(choices)

    def _leave(self, choices: list[Choice], *, gone: bool) -> None:
        if gone and not all(choice.left for choice in choices):
            self.metrics.cancelled.inc()
        for choice in choices:
            choice.left = True
            self._engine.cancel(choice.stream)

    def _book(self, choices: list[Choice]) -> None:
        for one in choices:
            first = one.stream.first
            self.metrics.answered(first - one.stream.submitted if first else None, one.gaps)

    def _ready(self, request: Request) -> Served:
        """What is served, if the client may use it and it is there."""
        served = self._served()
        check_key(request, served)
        if served is None:
            raise ServerError(
                503,
                f"not ready: {self._engine.status()['stage']}",
                kind="server_error",
                code="not_ready",
                retry_after=5,
            )
        return served

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)


async def _whole(choice: Choice) -> Delta:
    """All of a choice's deltas as one."""
    piece, steps, finish = Piece(), [], None
    async with aclosing(choice.deltas()) as deltas:
        async for delta in deltas:
            piece.content += delta.piece.content
            piece.reasoning += delta.piece.reasoning
            piece.calls += delta.piece.calls
            steps += delta.steps
            finish = delta.finish
    return Delta(piece, steps, finish)


async def _gather(works: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first failure ends the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def _merged(choices: list[Choice]) -> AsyncGenerator[tuple[Choice, Delta] | None, None]:
    """The deltas of all choices as they come; None after a while without any."""
    queue: asyncio.Queue[tuple[Choice, Delta] | BaseException | None] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async with aclosing(choice.deltas()) as deltas:
                async for delta in deltas:
                    queue.put_nowait((choice, delta))
            queue.put_nowait(None)
        except Exception as error:  # whatever it is, its reader must not wait for more
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    left = len(tasks)
    try:
        while left:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    item = await queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, unless the client goes away first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ServerError(GONE, "the client went away", kind="client_closed")
    except BaseExceptionGroup as group:
        raise next((one for one in group.exceptions if isinstance(one, ServerError)), group) from None
    finally:
        for task in (working, watching):
            task.cancel()
        with suppress(BaseException):
            await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client has gone. Its body has been read: what comes next is the end."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chain(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest) as events:
        yield first
        async for event in events:
            yield event


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "local",
        "max_model_len": served.context,
    }


def _check_model(name: str | None, served: Served) -> None:
    if name not in (None, "", "default", served.name):
        raise ServerError(
            404,
            f"the model {str(name)[:100]!r} is not served here; {served.name!r} is",
            code="model_not_found",
            param="model",
        )


async def _tell_server_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


async def _tell_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not for {request.url.path}",
    }.get(error.status_code, str(error.detail))
    told = ServerError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    return JSONResponse(told.body(), error.status_code, error.headers)


async def _tell_bug(request: Request, error: Exception) -> Response:
    return JSONResponse(_told(error).body(), 500)


def _told(error: Exception) -> ServerError:
    """An error as clients hear it; our own mistakes without what is inside."""
    if isinstance(error, ServerError):
        return error
    what = hashlib.sha256(repr(error).encode()).hexdigest()[:8]
    return ServerError(
        500, f"an error inside the server ({type(error).__name__}, {what})", kind="server_error"
    )
