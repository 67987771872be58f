"""Answers one HTTP request: its choices run in the engine, and are streamed as events or collected.

When the client disconnects, its sequences leave the batch. Knows adapters, but no protocol.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from jaccl_kernel.api.adapter import Adapter, Answer
from jaccl_kernel.api.config import Engine
from jaccl_kernel.api.errors import GONE, ApiError, api_error
from jaccl_kernel.api.metrics import Metrics
from jaccl_kernel.inference import request as inference
from jaccl_kernel.inference.stream import Stream

KEEPALIVE_S = 10.0  # without a chunk, a stream sends a comment: proxies close idle connections
T = TypeVar("T")
log = logging.getLogger(__name__)


class Answering:
    """The choices of one request.

    Args:
        adapter: the request.
        engine: runs its choices.
        metrics: counts them.
    """

    def __init__(self, adapter: Adapter, engine: Engine, metrics: Metrics) -> None:
        self._adapter = adapter
        self._engine = engine
        self._metrics = metrics
        self._streams: list[Stream] = []
        self._ended = False

    async def respond(self, request: Request, requests: list[inference.Request]) -> Response:
        """Run the requests and return the response.

        Raises:
            ApiError, RequestError: it failed before the first byte of the response.
        """
        adapter = self._adapter
        headers = {"X-Warning": "; ".join(warnings)} if (warnings := adapter.warnings()) else {}
        try:
            self._streams += [self._engine.submit(one) for one in requests]
            if adapter.streams:
                # wait for the first event, so that an early error has an HTTP status
                events = self._events()
                first = await _unless_gone(request, anext(events))
                return StreamingResponse(
                    _chain(first, events),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache"} | headers,
                )
            answers = await _unless_gone(request, _gather([_collect(one) for one in self._streams]))
        except BaseException as error:
            known = isinstance(error, ApiError | inference.RequestError)
            self._end(gone=not known or getattr(error, "status", 0) == GONE)
            raise
        self._count()
        return JSONResponse(adapter.response(answers), headers=headers)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """Yield the server-sent events of a stream."""
        adapter = self._adapter
        ended = begun = False
        try:
            async with aclosing(_merged(self._streams)) as merged:
                async for item in merged:
                    begun = True
                    if item is None:
                        yield b": still working\n\n"
                        continue
                    for event in adapter.events(*item):
                        yield adapter.encode(event)
            for event in adapter.last_events():
                yield adapter.encode(event)
            ended = True
            yield adapter.last_bytes
        except Exception as error:
            ended = True
            if not begun:  # the response has no status yet
                raise
            if not isinstance(error, ApiError | inference.RequestError):
                log.exception("a stream failed")
            for event in adapter.failure(api_error(error, adapter.fields)):
                yield adapter.encode(event)
            yield adapter.last_bytes
        finally:
            self._end(gone=not ended)
            self._count()

    def _end(self, *, gone: bool) -> None:
        if gone and not self._ended:
            self._metrics.cancelled.inc()
        self._ended = True
        for stream in self._streams:
            self._engine.cancel(stream)

    def _count(self) -> None:
        for stream in self._streams:
            first = stream.first
            self._metrics.answered(first - stream.submitted if first else None, stream.gaps)


async def _collect(stream: Stream) -> Answer:
    answer = Answer()
    async for chunk in stream:
        answer.add(chunk)
    return answer


async def _gather(works: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; the first failure cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def _merged(streams: list[Stream]) -> AsyncGenerator[tuple[int, inference.Chunk] | None, None]:
    """Yield the chunks of all streams, each with its stream's number; None after KEEPALIVE_S without any."""
    queue: asyncio.Queue[tuple[int, inference.Chunk] | BaseException | None] = asyncio.Queue()

    async def pump(index: int, stream: Stream) -> None:
        try:
            async for chunk in stream:
                queue.put_nowait((index, chunk))
            queue.put_nowait(None)
        except Exception as error:  # the reader must not wait for more
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    open_streams = len(tasks)
    try:
        while open_streams:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    item = await queue.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_streams -= 1
            else:
                yield item
                # with many chunks queued, neither `get` nor the send to a lost client waits for the others
                await asyncio.sleep(0)
    finally:
        for task in tasks:
            task.cancel()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, unless the client disconnects first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(GONE, "the client disconnected", kind="client_closed")
    except BaseExceptionGroup as group:
        raise next(
            (one for one in group.exceptions if isinstance(one, ApiError | inference.RequestError)), group
        ) from None
    finally:
        for task in (working, watching):
            task.cancel()
        with suppress(BaseException):
            await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client disconnects. Its body has been read, so no other message follows."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chain(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest) as events:
        yield first
        async for event in events:
            yield event
