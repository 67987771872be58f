"""A scripted engine behind a real HTTP server: what it is asked is kept, what it answers is the test's."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from jaccl_kernel.api.app import make_app
from jaccl_kernel.api.config import ServedModel, ServerConfig, ServerState
from jaccl_kernel.api.http import Http
from jaccl_kernel.inference.request import Request, RequestError, Token
from jaccl_kernel.inference.stream import Stream
from jaccl_kernel.inference.text import Assembler

EOS = 257


class Engine:
    """Answers each request with the tokens of `script`.

    After `hold_after` tokens it says no more until `go` is set: what happens then comes first at any speed.
    """

    def __init__(self) -> None:
        self.script: Callable[[Request], Sequence[int]] = lambda request: [*b"Hello", EOS]
        self.hold_after: int | None = None
        self.go = threading.Event()
        self.refuse: RequestError | None = None
        self.break_after: int | None = None
        self.asked: list[Request] = []
        self.cancelled: list[Request] = []
        self._open: dict[Stream, asyncio.Task[None]] = {}

    def submit(self, request: Request, tokenizer: Any) -> Stream:
        if self.refuse:
            raise self.refuse
        self.asked.append(request)
        assembler = Assembler(tokenizer, request.text) if request.text else None
        stream = Stream(request, assembler, self.cancel, asyncio.get_running_loop())
        stream.admitted = time.perf_counter()
        stream.cached_tokens = min(3, len(request.prompt) - 1)
        self._open[stream] = asyncio.get_running_loop().create_task(self._run(stream))
        return stream

    def cancel(self, stream: Stream) -> None:
        task = self._open.pop(stream, None)
        if task and not task.done():
            task.cancel()
            self.cancelled.append(stream.request)

    def status(self) -> dict[str, Any]:
        ranks = [
            {
                "rank": 0,
                "name": "mac1",
                "alive": True,
                "step_ms": 1.0,
                "memory_bytes": 1,
                "peak_memory_bytes": 2,
            }
        ]
        counts = {"running": len(self._open), "queued": 0, "steps": 1, "tokens": 2, "prompt_tokens": 3}
        return {"state": "ready", "stage": "serving", "ranks": ranks, "tokens_per_s": 1.0, **counts}

    async def _run(self, stream: Stream) -> None:
        request = stream.request
        tokens = itertools.islice(self.script(request), request.max_tokens)
        for number, token in enumerate(tokens, 1):
            await asyncio.sleep(0)
            while self.hold_after is not None and number > self.hold_after and not self.go.is_set():
                await asyncio.sleep(0.005)
            if self.break_after is not None and number > self.break_after:
                stream.feed(RequestError("failed", "rank 1 (mac2) failed: it is gone"))
                return
            finish = "stop" if token == EOS else "length" if number == request.max_tokens else None
            top: tuple[tuple[int, float], ...] = ()
            if request.top_logprobs:
                top = ((token, -0.5), (65, -1.5))[: request.top_logprobs]
            logprob = None if request.top_logprobs is None else -0.5
            stream.feed(Token(0, token, finish, logprob, top, time.perf_counter()))
            if finish:
                return


class Served:
    """An engine with one model: what a server of it sees."""

    def __init__(self, engine: Engine, model: ServedModel) -> None:
        self._engine = engine
        self._tokenizer = model.tokenizer

    def submit(self, request: Request) -> Stream:
        return self._engine.submit(request, self._tokenizer)

    def cancel(self, stream: Stream) -> None:
        self._engine.cancel(stream)

    def status(self) -> dict[str, Any]:
        return self._engine.status()


@contextmanager
def serving(engine: Any, model: ServedModel | None, **config: Any) -> Iterator[str]:
    """The app on loopback, with these launch settings; its URL. Without a model it is still loading."""
    http = Http("127.0.0.1", 0)
    state = ServerState(Served(engine, model) if model else None, model, "load: 3 of 9 GB")
    http.start(make_app(ServerConfig(**config), state))
    try:
        with httpx.Client(timeout=60) as client:
            end = time.monotonic() + 60
            while True:
                try:
                    client.get(f"{http.url}/health")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < end
        yield http.url
    finally:
        http.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{http.url}/health", timeout=1)


def events(text: str) -> list[Any]:
    """The data of server-sent events, each parsed but the last `[DONE]`."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def say(engine: Engine, tokenizer: Any, text: str, *, end: bool = True) -> None:
    """Let the engine answer with this text."""
    tokens = [*tokenizer.encode(text, add_special_tokens=False), *([EOS] if end else [])]
    engine.script = lambda request: tokens


def prompt(engine: Engine, tokenizer: Any) -> str:
    """The last prompt, as the template rendered it."""
    return str(tokenizer.decode(engine.asked[-1].prompt))
