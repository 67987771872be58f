"""A real engine of one rank on the tiny model, on a thread of its own, and ways to read its streams."""

import argparse
import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.server.generation import Generation, Step, Stream


@dataclass
class Running:
    """An engine that runs, and what its thread ended with."""

    engine: Any
    tokenizer: Any
    boundaries: bool
    thread: threading.Thread

    async def collect(self, generation: Generation) -> tuple[Stream, list[Step]]:
        """Submit a generation and read it to its end."""
        stream = self.engine.submit(generation)
        return stream, [step async for step in stream]

    async def tokens(self, generation: Generation) -> list[int]:
        """The token ids of a generation."""
        return [step.token for step in (await self.collect(generation))[1]]


def start_engine(model: Path, **limits: Any) -> Running:
    """Load the model and run an engine on a thread; `limits` as of engine.Limits."""
    # here, not above: a test process that drives no engine holds no mlx
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    from jaccl_kernel.ranks import serve
    from jaccl_kernel.ranks.load import load
    from jaccl_kernel.server.engine import Engine, Limits
    from jaccl_kernel.server.grammar import Grammars

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = parser.parse_args(["--model", str(model), "--prefill-step", "64", "--memory-gb", "2"])
    ready = threading.Event()
    made: list[Any] = []

    def live() -> None:
        with mx.stream(generation_stream):
            loaded = serve.prepare(options, *load(model), None)
            engine = Engine(
                loaded.share,
                loaded.chooser,
                Grammars(loaded.tokenizer, loaded.vocabulary),
                limits=Limits(**{"capacity": 100_000, "cache": 20_000, "token_bytes": 1.0, **limits}),
            )
            made.extend([engine, loaded.tokenizer, loaded.boundaries])
            ready.set()
            engine.run()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert ready.wait(60)
    engine, tokenizer, boundaries = made
    return Running(engine, tokenizer, boundaries, thread)


@pytest.fixture(scope="session")
def running(tiny_model: Path) -> Iterator[Running]:
    """One engine for all tests that only use it."""
    one = start_engine(tiny_model)
    yield one
    one.engine.stop()
    one.thread.join(10)
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
        one.thread.join(10)
        assert not one.thread.is_alive()


async def idle(engine: Any) -> dict[str, Any]:
    """Wait until nothing runs or waits; the status then."""
    async with asyncio.timeout(20):
        while (status := engine.status())["running"] or status["queued"]:
            await asyncio.sleep(0.02)
    return dict(status)
