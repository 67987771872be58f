"""The FastAPI app: one route for each protocol, health, status, metrics and a page.

It reads and checks bodies itself, so that every error has its protocol's format.
"""

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from jaccl_kernel.api import body, page
from jaccl_kernel.api.adapter import Adapter
from jaccl_kernel.api.answering import Answering
from jaccl_kernel.api.anthropic_messages import Messages
from jaccl_kernel.api.config import Engine, ServedModel, ServerConfig, ServerState
from jaccl_kernel.api.errors import ApiError, api_error
from jaccl_kernel.api.fields import check_model
from jaccl_kernel.api.guard import Guard, Uploads
from jaccl_kernel.api.metrics import Metrics
from jaccl_kernel.api.openai.chat import ChatCompletions
from jaccl_kernel.api.openai.completions import Completions
from jaccl_kernel.api.openai.responses import Responses
from jaccl_kernel.api.stored import StoredResponse
from jaccl_kernel.inference.request import RequestError

PROTOCOLS: tuple[type[Adapter], ...] = (ChatCompletions, Completions, Responses, Messages)
LARGE = 64 << 10  # bytes; a larger body is parsed and tokenized on a thread of its own, beside the others
T = TypeVar("T")


def make_app(config: ServerConfig, state: ServerState) -> FastAPI:
    """Return the app.

    Args:
        config: the launch settings.
        state: the engine and the model, once they are loaded.
    """
    app = FastAPI(title="JACCL server", docs_url=None, redoc_url=None)
    api = _Api(config, state)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ApiError, _error)
    app.add_exception_handler(Exception, _error)
    app.get("/", response_class=HTMLResponse)(api.page)
    app.head("/", include_in_schema=False)(api.page)  # Claude Code asks whether the server is there
    app.get("/health")(api.health)
    app.get("/status")(api.status)
    app.get("/metrics")(api.prometheus)
    _both(app.get, "/v1/models")(api.models)
    _both(app.get, "/v1/models/{name:path}")(api.model)
    for protocol in PROTOCOLS:
        schema = protocol.schema.model_json_schema()
        content = {"content": {"application/json": {"schema": schema}}, "required": True}
        _both(app.post, protocol.path, openapi_extra={"requestBody": content})(api.route(protocol))
    _both(app.post, "/v1/messages/count_tokens")(api.count_tokens)
    _both(app.get, "/v1/responses/{name}")(api.stored)
    _both(app.delete, "/v1/responses/{name}")(api.forget)
    _both(app.get, "/v1/responses/{name}/input_items")(api.input_items)
    _both(app.post, "/v1/responses/{name}/cancel")(api.cancel)
    paths = ("/health", "/status", "/metrics", "/v1/models", *(one.path for one in PROTOCOLS))
    app.add_middleware(Guard, config=config, metrics=api.metrics, paths=paths, respond=_error_response)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-Api-Key",
                "Anthropic-Version",
                "Anthropic-Beta",
            ],
        )
    return app


def _both(method: Callable[..., Any], path: str, **options: Any) -> Callable[[Any], Any]:
    """Register a route with and without /v1, as clients of llama.cpp and mlx_lm.server call it."""

    def register(route: Any) -> Any:
        method(path.removeprefix("/v1"), include_in_schema=False)(route)
        return method(path, **options)(route)

    return register


class _Api:
    """The routes."""

    def __init__(self, config: ServerConfig, state: ServerState) -> None:
        self._config = config
        self._state = state
        self._uploads = Uploads()
        # one thread each, with a tokenizer of its own: tokenizers are not thread-safe
        self._small = ThreadPoolExecutor(1, thread_name_prefix="jaccl-tokenize")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="jaccl-tokenize-large")
        self._copied: ServedModel | None = None
        self.metrics = Metrics(state.status)

    async def page(self, request: Request) -> HTMLResponse:
        base = str(request.base_url).rstrip("/")
        keyed = self._config.api_key is not None
        return HTMLResponse(page.render(self._state.model, self._state.status(), base, key=keyed))

    async def health(self) -> JSONResponse:
        """Return 200 when ready, else 503 with the stage. Needs no key, and reveals little."""
        status = self._state.status()
        ready = status["state"] == "ready" and self._state.model is not None
        answer = {"status": "ok" if ready else status["state"], "stage": status["stage"]}
        return JSONResponse(answer, 200 if ready else 503)

    async def status(self, request: Request) -> JSONResponse:
        model = self._state.model
        answer = self._state.status() | {"ttft_s": self.metrics.ttft(), "served": {}, "examples": []}
        if model:
            base = str(request.base_url).rstrip("/")
            answer["served"] = {**model.facts, "context": model.context, "model": model.name}
            answer["examples"] = page.examples(base, model.name, key=self._config.api_key is not None)
        return JSONResponse(answer)

    async def prometheus(self) -> PlainTextResponse:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [_model(self._ready()[1])]}

    async def model(self, name: str) -> dict[str, Any]:
        _, model = self._ready()
        check_model(name, model)
        return _model(model)

    def route(self, protocol: type[Adapter]) -> Callable[[Request], Any]:
        """Return the route of a protocol."""

        async def answer(request: Request) -> Response:
            try:
                return await self._answer(protocol, request)
            except (ApiError, RequestError) as error:
                return _error_response(protocol.path, api_error(error, protocol.fields))

        return answer

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of a prompt of `/v1/messages`."""
        try:
            adapter, thread = await self._read(Messages, request, self._ready()[1])
            assert isinstance(adapter, Messages)
            return JSONResponse(await self._run(thread, adapter.count))
        except (ApiError, RequestError) as error:
            return _error_response(Messages.path, api_error(error, Messages.fields))

    async def stored(self, name: str) -> dict[str, Any]:
        """Return a stored response."""
        return self._stored(name).body

    async def input_items(self, name: str) -> dict[str, Any]:
        """Return the input items of a stored response."""
        items = list(self._stored(name).input_items)
        ends = {"first_id": items[0].get("id"), "last_id": items[-1].get("id")} if items else {}
        return {"object": "list", "data": items, "has_more": False} | ends

    async def forget(self, name: str) -> dict[str, Any]:
        """Delete a stored response."""
        self._stored(name)
        self._ready()[1].responses.delete(name)
        return {"id": name, "object": "response", "deleted": True}

    async def cancel(self, name: str) -> dict[str, Any]:
        """Reject: only background responses can be cancelled, and this server has none."""
        self._stored(name)
        raise ApiError(
            400, "only responses created with background=true can be cancelled", param="response_id"
        )

    def _stored(self, name: str) -> StoredResponse:
        if (stored := self._ready()[1].responses.get(name)) is None:
            raise ApiError(404, f"no stored response {name[:80]!r}", code="not_found", param="response_id")
        return stored

    async def _answer(self, protocol: type[Adapter], request: Request) -> Response:
        engine, model = self._ready()
        adapter, thread = await self._read(protocol, request, model)
        if adapter.choices > (most := self._config.max_choices):
            raise ApiError(
                400, f"n: at most {most} choices in one request (got {adapter.choices})", param="n"
            )
        requests = await self._run(thread, adapter.requests)
        return await Answering(adapter, engine, self.metrics).respond(request, requests)

    async def _read(
        self, protocol: type[Adapter], request: Request, model: ServedModel
    ) -> tuple[Adapter, ThreadPoolExecutor]:
        """Read and validate a request; also returns the thread that tokenizes it."""
        raw = await self._uploads.read(request, self._config.max_body_bytes)

        def read(model: ServedModel) -> Adapter:
            return protocol(body.parse_json(raw, tokens=model.context), model)

        if len(raw) <= LARGE:
            return read(model), self._small
        return await self._run(self._large, lambda: read(self._copy(model))), self._large

    def _copy(self, model: ServedModel) -> ServedModel:
        """Return the model with a tokenizer of its own; on the thread of large requests."""
        if self._copied is None or self._copied.name != model.name:
            self._copied = replace(model, tokenizer=copy.deepcopy(model.tokenizer))
        return self._copied

    def _ready(self) -> tuple[Engine, ServedModel]:
        """Return the engine and its model once they are loaded."""
        state = self._state
        if state.engine is None or state.model is None:
            raise ApiError(
                503,
                f"not ready: {state.status()['stage']}",
                kind="server_error",
                code="not_ready",
                retry_after=5,
            )
        return state.engine, state.model

    @staticmethod
    async def _run(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)


def _error_response(path: str, error: ApiError) -> JSONResponse:
    """Return an error in the format of the path's protocol; OpenAI's for other paths."""
    path = path if path.startswith("/v1/") else f"/v1{path}"
    below = (one for one in PROTOCOLS if path == one.path or path.startswith(f"{one.path}/"))
    protocol = next(below, ChatCompletions)
    return JSONResponse(protocol.error(error), error.status, error.headers())


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "local",
        "max_model_len": model.context,
        "context_length": model.context,
    }


async def _http_error(request: Request, error: Exception) -> Response:
    """Convert the framework's own errors: an unknown path, an unsupported method."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"not found: {request.url.path}",
        405: f"{request.url.path} does not support {request.method}",
    }.get(error.status_code, str(error.detail))
    known = ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    response = _error_response(request.url.path, known)
    response.headers.update(error.headers or {})
    return response


async def _error(request: Request, error: Exception) -> Response:
    return _error_response(request.url.path, api_error(error))
