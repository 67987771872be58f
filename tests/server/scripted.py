"""A scripted engine behind a real HTTP server: what it is asked is kept, what it answers is the test's."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from jaccl_kernel.server.app import make_app
from jaccl_kernel.server.generation import Generation, Served, ServerError, Step, Stream
from jaccl_kernel.server.http import Http

EOS = 257


class Engine:
    """Answers each generation with the tokens of `script`, one every `pause` seconds."""

    def __init__(self) -> None:
        self.script: Callable[[Generation], Sequence[int]] = lambda generation: [*b"Hello", EOS]
        self.pause = 0.0
        self.refuse: ServerError | None = None
        self.break_after: int | None = None
        self.asked: list[Generation] = []
        self.cancelled: list[Generation] = []
        self._open: dict[Stream, asyncio.Task[None]] = {}

    def submit(self, generation: Generation) -> Stream:
        if self.refuse:
            raise self.refuse
        self.asked.append(generation)
        stream = Stream(generation)
        stream.admitted = time.perf_counter()
        stream.cached_tokens = min(3, len(generation.prompt) - 1)
        self._open[stream] = asyncio.get_running_loop().create_task(self._run(stream))
        return stream

    def cancel(self, stream: Stream) -> None:
        task = self._open.pop(stream, None)
        if task and not task.done():
            task.cancel()
            self.cancelled.append(stream.generation)

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
        generation = stream.generation
        tokens = itertools.islice(self.script(generation), generation.max_tokens)
        for number, token in enumerate(tokens, 1):
            await asyncio.sleep(self.pause)
            if self.break_after is not None and number > self.break_after:
                stream.feed(ServerError(503, "rank 1 (mac2) failed: it is gone", kind="server_error"))
                return
            finish = "stop" if token == EOS else "length" if number == generation.max_tokens else None
            top: tuple[tuple[int, float], ...] = ()
            if generation.top_logprobs:
                top = ((token, -0.5), (65, -1.5))[: generation.top_logprobs]
            logprob = None if generation.top_logprobs is None else -0.5
            stream.feed(Step(token, finish, logprob, top))
            if finish:
                return


@contextmanager
def serving(engine: Any, served: Served | None) -> Iterator[str]:
    """The app on loopback; its URL."""
    http = Http("127.0.0.1", 0)
    http.start(make_app(engine, lambda: served))
    try:
        with httpx.Client(timeout=10) as client:
            end = time.monotonic() + 10
            while True:
                try:
                    client.get(f"{http.url}/health")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < end
        yield http.url
    finally:
        http.stop()
    assert not http.alive


def events(text: str) -> list[Any]:
    """The data of server-sent events, each parsed but the last `[DONE]`."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]
