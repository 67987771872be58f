"""A real engine of one rank on the tiny model, on a thread of its own, and ways to read its streams."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.inference.request import Finish, Prefill, Request, Token
from jaccl_kernel.inference.stream import Stream


@dataclass
class Running:
    """An engine that runs, and what its thread ended with."""

    engine: Any
    tokenizer: Any
    boundaries: bool
    thread: threading.Thread

    async def collect(self, request: Request) -> tuple[Stream, list[Token]]:
        """Submit a request and read its tokens to the end."""
        stream = self.engine.submit(request)
        return stream, await read(stream)

    async def tokens(self, request: Request) -> list[int]:
        """The token ids of a request."""
        return [token.id for token in (await self.collect(request))[1]]


async def read(stream: Stream) -> list[Token]:
    """The tokens of a stream that are still to come."""
    tokens: list[Token] = []
    async for chunk in stream:
        if not isinstance(chunk, Prefill):
            tokens += chunk.tokens
            assert stream.finished == isinstance(chunk, Finish)
    return tokens


def start_engine(model: Path, **limits: Any) -> Running:
    """Load the model and run an engine on a thread; `limits` as of scheduler.Limits."""
    # here, not above: a test process that drives no engine holds no mlx
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    from jaccl_kernel.inference.engine import Engine
    from jaccl_kernel.inference.grammar import Grammars
    from jaccl_kernel.inference.loaded import prepare
    from jaccl_kernel.inference.scheduler import Limits
    from jaccl_kernel.ranks.loader import load

    ready = threading.Event()
    made: list[Any] = []

    def live() -> None:
        with mx.stream(generation_stream):
            loaded = prepare(*load(model), None, prefill_step=64, memory_bytes=2_000_000_000)
            engine = Engine(
                loaded.executor,
                loaded.sampler,
                loaded.tokenizer,
                Grammars(loaded.tokenizer, loaded.vocabulary),
                limits=Limits(**{"capacity": 100_000, "cache": 20_000, "token_bytes": 1.0, **limits}),
            )
            made.extend([engine, loaded.tokenizer, loaded.needs_boundary])
            ready.set()
            engine.run()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert ready.wait(120)
    engine, tokenizer, boundaries = made
    return Running(engine, tokenizer, boundaries, thread)


@pytest.fixture(scope="session")
def running(tiny_model: Path) -> Iterator[Running]:
    """One engine for all tests that only use it."""
    one = start_engine(tiny_model)
    yield one
    one.engine.stop()
    one.thread.join(60)
    assert not one.thread.is_alive()


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Callable[..., Running]]:
    """Engines with limits of the test's own, ended after it."""
    started: list[Running] = []

    def make(model: Path = tiny_model, **limits: Any) -> Running:
        started.append(start_engine(model, **limits))
        return started[-1]

    yield make
    for one in started:
        one.engine.stop()
        one.thread.join(60)
        assert not one.thread.is_alive()


async def idle(engine: Any) -> dict[str, Any]:
    """Wait until nothing runs or waits; the status then."""
    async with asyncio.timeout(60):
        while (status := engine.status())["running"] or status["queued"]:
            await asyncio.sleep(0.02)
    return dict(status)
