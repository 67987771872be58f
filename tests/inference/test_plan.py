"""The ranks step on without a plan while nothing changes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.inference.request import Request, Sampling

PROMPT = list(b"The quick brown fox jumps over the lazy dog. ")
LONG = Request(PROMPT, 3000, Sampling(temperature=0.0), ignore_eos=True)
SHORT = Request([9, *PROMPT], 3000, Sampling(temperature=0.0), ignore_eos=True)
AT_ONCE = 3  # steps from a request to its first token if each step had a plan


class Recorder:
    """A control plane without workers: the plans that it was given."""

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []
        self.workers: dict[int, Any] = {}

    def send(self, plan: dict[str, Any]) -> None:
        """Record a plan."""
        self.plans.append(plan)


@pytest.fixture(scope="module")
def made(tiny_model: Path) -> Any:
    import mlx.core as mx

    from jaccl_kernel.inference.loaded import prepare
    from jaccl_kernel.ranks.loader import load

    alone = mx.distributed.init()  # a group of one rank, which shares its tokens with itself
    assert alone.size() == 1
    return prepare(*load(tiny_model), alone, prefill_step=64, memory_bytes=2_000_000_000)


@pytest.fixture
def engine(made: Any) -> Iterator[Any]:
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    engine = made.engine()
    engine.attach(Recorder())
    engine.state = "ready"
    with mx.stream(generation_stream):
        yield engine
        made.executor.clear()


def steps(engine: Any) -> int:
    return int(engine.status()["steps"])


async def step(engine: Any, count: int = 1) -> None:
    for _ in range(count):
        engine.step()
        await asyncio.sleep(0)  # its items reach the streams


async def test_no_step_has_a_plan_while_nothing_changes(engine: Any) -> None:
    engine.submit(LONG)
    await step(engine, 8)
    plans = len(engine._control.plans)
    await step(engine, 50)
    assert len(engine._control.plans) == plans
    assert plans < 8


async def test_a_request_joins_and_leaves_two_steps_later_than_with_a_plan_for_each(engine: Any) -> None:
    engine.submit(LONG)
    await step(engine, 8)
    stream, before = engine.submit(SHORT), steps(engine)
    while stream.first is None:
        await step(engine)
    assert steps(engine) - before <= AT_ONCE + 2
    await step(engine, 5)
    engine.cancel(stream)
    before = steps(engine)
    while engine.status()["running"] > 1:
        await step(engine)
    assert steps(engine) - before <= 3
    plans = len(engine._control.plans)
    await step(engine, 5)
    assert len(engine._control.plans) <= plans + 2  # its cache was kept


async def test_a_full_batch_needs_no_plan_for_those_who_wait(engine: Any) -> None:
    for number in range(engine.scheduler.limits.max_sequences + 3):
        engine.submit(Request([number, *PROMPT], 3000, Sampling(temperature=0.0), ignore_eos=True))
    await step(engine, 60)
    plans = len(engine._control.plans)
    await step(engine, 20)
    assert engine.status()["queued"] == 3
    assert len(engine._control.plans) == plans


async def test_the_last_steps_before_a_stop_have_a_plan(engine: Any) -> None:
    """The workers wait for a plan, and get the stop, instead of entering a step alone."""
    engine.submit(LONG)
    await step(engine, 8)
    assert not engine._executor.needs_plan
    engine.stop()
    engine.run()
    assert engine._executor.needs_plan


async def test_the_same_tokens_as_with_a_plan_for_each_step(engine: Any, made: Any) -> None:
    requests = [
        Request([number, *PROMPT], 10 + 7 * number, LONG.sampling, use_cache=False) for number in range(3)
    ]
    ahead = collect(engine, requests)
    made.executor.clear()
    engine.attach(None)
    assert collect(engine, requests) == ahead


def collect(engine: Any, requests: list[Request]) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in requests]
    for number, chunk in engine.generate(*requests):
        tokens[number] += [token.id for token in chunk.tokens]
    return tokens
