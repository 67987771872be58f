"""Rank 0's engine on the tiny model: who gets in, who gets out, and what each is given."""

import asyncio
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llguidance
import pytest

from jaccl_kernel.inference import engine, scheduler
from jaccl_kernel.inference.request import Request, RequestError, Sampling
from jaccl_kernel.inference.stream import Stream
from tests.conftest import until
from tests.inference.conftest import Running, idle, read
from tests.tiny import HYBRID, make_tiny_model

GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(seed=1, logit_bias={257: -1000.0})
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 2)
LONG = Request(PROMPT, 3000, ENDLESS)


class Stepped:
    """An engine whose thread takes as many rounds as the test says, and then waits.

    Args:
        one: it.
        monkeypatch: the test's.
    """

    def __init__(self, one: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = one.engine
        self._wanted = threading.Semaphore(0)
        self._taken = threading.Semaphore(0)
        engine_step = one.engine.step

        def wait_for_a_word() -> None:
            while not self._wanted.acquire(timeout=0.1):
                if one.engine._stopping:
                    return
            engine_step()
            self._taken.release()

        monkeypatch.setattr(one.engine, "step", wait_for_a_word)

    def submit(self, request: Request) -> Stream:
        """As the engine's."""
        return self.engine.submit(request)  # type: ignore[no-any-return]

    async def rounds(self, count: int) -> None:
        """Let it take so many, as long as there is something to do."""
        for _ in range(count):
            if not self.engine.scheduler.has_work():
                return
            self._wanted.release()
            assert await asyncio.to_thread(self._taken.acquire, timeout=60)
        await asyncio.sleep(0)  # what it fed is taken up


async def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_full_batch(running: Running) -> None:
    wanted = Request(PROMPT, 40, Sampling(seed=11))
    alone = await running.tokens(wanted)
    others = [Request([at, *PROMPT[at:]], 40, Sampling(seed=at)) for at in range(30)]
    together = await asyncio.gather(*(running.tokens(one) for one in [*others[:15], wanted, *others[15:]]))
    assert together[15] == alone
    assert len({tuple(one) for one in together}) > 25


async def test_no_seed_is_a_fresh_one(running: Running) -> None:
    several = [await running.tokens(Request(PROMPT, 20)) for _ in range(3)]
    assert len({tuple(one) for one in several}) == 3


async def test_the_next_turn_uses_the_prompt_cache_and_generates_the_same_tokens(running: Running) -> None:
    prompt = [200, *PROMPT]
    first, steps = await running.collect(Request(prompt, 12, GREEDY))
    turn = [*prompt, *(step.id for step in steps), *b" And then?"]
    cached, after = await running.collect(Request(turn, 12, GREEDY))
    assert first.cached_tokens == 0
    assert cached.cached_tokens >= len(prompt)
    fresh = await running.tokens(Request([201, *turn[1:]], 1, GREEDY))  # shares nothing
    assert fresh
    again, repeated = await running.collect(Request(turn, 12, GREEDY))
    assert again.cached_tokens == len(turn) - 1
    assert [step.id for step in repeated] == [step.id for step in after]


async def test_a_hybrid_models_next_turn_begins_at_the_boundary(
    start: Callable[..., Running], running: Running, tmp_path: Path
) -> None:
    one = start(make_tiny_model(tmp_path / "hybrid", **HYBRID))
    assert one.boundaries
    assert not running.boundaries
    asked, opening = [200, *PROMPT], list(b"<s>assistant: ")
    await one.collect(Request([*asked, *opening], 12, GREEDY, boundary=len(asked)))
    # the template left something of the answer out: only the boundary serves
    turn = [*asked, *b"another answer, and a next question"]
    alone = start(tmp_path / "hybrid", cache=0)
    cached, steps = await one.collect(Request(turn, 12, GREEDY, boundary=len(turn) - 4))
    fresh, expected = await alone.collect(Request(turn, 12, GREEDY))
    assert (cached.cached_tokens, fresh.cached_tokens) == (len(asked), 0)
    assert [step.id for step in steps] == [step.id for step in expected]


async def test_the_last_step_reports_why(running: Running) -> None:
    _, steps = await running.collect(Request(PROMPT, 7, GREEDY))
    assert [step.finish for step in steps] == [None] * 6 + ["length"]
    end = Sampling(temperature=0.0, logit_bias={257: 1000.0})
    _, steps = await running.collect(Request(PROMPT, 7, end))
    assert [(step.id, step.finish) for step in steps] == [(257, "stop")]


async def test_logprobs_come_where_they_were_asked_for(running: Running) -> None:
    _, plain = await running.collect(Request(PROMPT, 3, GREEDY))
    _, steps = await running.collect(Request(PROMPT, 3, GREEDY, top_logprobs=3))
    _, chosen = await running.collect(Request(PROMPT, 3, GREEDY, top_logprobs=0))
    assert all(step.logprob is None and not step.top for step in plain)
    assert all(not step.top and step.logprob is not None and step.logprob <= 0 for step in chosen)
    for step in steps:
        assert len(step.top) == 3
        assert step.top[0][0] == step.id
        assert step.top[0][1] == step.logprob


async def test_a_grammar_is_followed_among_others_who_have_none(running: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    wanted = [Request(PROMPT, 300, Sampling(seed=at), grammar=grammar) for at in range(3)]
    free = [Request(PROMPT, 60, Sampling(seed=at)) for at in range(3)]
    results = await asyncio.gather(*(running.collect(one) for one in [*wanted, *free]))
    for _, steps in results[:3]:
        assert steps[-1].finish == "stop"
        answer = json.loads(running.tokenizer.decode([step.id for step in steps[:-1]]))
        assert set(answer) == {"name", "age"}
    assert await running.tokens(free[1]) == [step.id for step in results[4][1]]


async def test_an_invalid_grammar_fails_only_its_own_request(running: Running) -> None:
    with pytest.raises(RequestError) as caught:
        await running.collect(Request(PROMPT, 5, grammar="start: ("))
    assert caught.value.kind == "invalid"
    assert len(await running.tokens(Request(PROMPT, 5, GREEDY))) == 5


async def test_a_reader_that_leaves_frees_its_place_at_once(running: Running) -> None:
    stream = running.engine.submit(LONG)
    async for _ in stream:
        break
    running.engine.cancel(stream)
    running.engine.cancel(stream)  # harmless
    status = await idle(running.engine)
    assert status["running"] == 0


@pytest.fixture
def stepped(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stepped]:
    """Engines that take a step only when told to."""

    def make(**limits: Any) -> Stepped:
        one = start(**limits)
        return Stepped(one, monkeypatch)

    return make


async def test_a_waiting_request_can_leave_the_queue(stepped: Callable[..., Stepped]) -> None:
    one = stepped(max_sequences=1)
    first, second = one.submit(LONG), one.submit(LONG)
    await one.rounds(2)
    assert (one.engine.status()["running"], one.engine.status()["queued"]) == (1, 1)
    one.engine.cancel(second)
    assert one.engine.status()["queued"] == 0
    one.engine.cancel(first)
    await one.rounds(2)
    assert one.engine.status()["running"] == 0


async def test_a_full_queue_is_rejected_with_retry_after(stepped: Callable[..., Stepped]) -> None:
    one = stepped(max_sequences=1, max_queue=2)
    one.submit(LONG)
    await one.rounds(2)
    for _ in range(2):
        one.submit(LONG)
    with pytest.raises(RequestError) as caught:
        one.submit(LONG)
    assert caught.value.kind == "queue_full"
    assert caught.value.retry_after


async def test_memory_admits_what_fits_and_rejects_what_never_fits(
    stepped: Callable[..., Stepped],
) -> None:
    one = stepped(capacity=400, cache=300)
    with pytest.raises(RequestError) as caught:
        one.submit(Request(PROMPT, 400))
    assert caught.value.kind == "too_long"
    streams = [one.submit(Request([at, *PROMPT], 100, Sampling(seed=at))) for at in range(4)]
    most = 0
    while one.engine.scheduler.has_work():
        await one.rounds(1)
        most = max(most, one.engine.status()["running"])
    assert most == 2  # 191 tokens each
    for stream in streams:
        assert [step async for step in stream]
    assert one.engine.scheduler.cache.tokens <= 300


async def test_unequal_rows_take_the_longest_ones_memory_each(stepped: Callable[..., Stepped]) -> None:
    one = stepped(capacity=1000, cache=0)
    long = one.submit(Request(PROMPT * 4, 40, ENDLESS))  # 360 tokens and 40
    short = [one.submit(Request([at, *PROMPT], 10, ENDLESS)) for at in range(3)]  # 101 each
    await one.rounds(1)
    assert [stream.admitted is not None for stream in [long, *short]] == [True, True, False, False]
    assert one.engine.status()["memory"]["active_bytes"] == 800  # though 501 were asked for
    while one.engine.status()["running"]:
        most = max((running.length for running in one.engine.scheduler.running.values()), default=0)
        assert most * len(one.engine.scheduler.running) <= 1000
        await one.rounds(1)
    assert all(stream.first for stream in [long, *short])


async def test_answers_that_outgrow_the_memory_take_the_caches_and_then_end_the_youngest_by_name(
    stepped: Callable[..., Stepped], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "RESERVE", 20)
    one = stepped(capacity=400, cache=200)
    one.submit(Request([7, *PROMPT[:30]], 10, ENDLESS))
    await one.rounds(20)
    streams = [one.submit(Request([at, *PROMPT], 250, ENDLESS)) for at in range(3)]  # 3 times 111
    await one.rounds(15)
    assert one.engine.scheduler.cache.tokens > 30
    await one.rounds(20)
    assert one.engine.status()["running"] == 3
    assert one.engine.scheduler.cache.tokens == 0
    await one.rounds(100)  # 3 times 134 are too many, 2 times 201 too
    assert one.engine.status()["running"] == 1
    for stream in streams[1:]:
        with pytest.raises(RequestError, match="KV-cache memory ran out") as caught:
            async for _ in stream:
                pass
        assert caught.value.kind == "memory_full"
    await one.rounds(200)
    assert len(await read(streams[0])) == 250


async def test_a_request_joins_and_leaves_the_batch_within_three_steps(
    stepped: Callable[..., Stepped],
) -> None:
    one = stepped()
    one.submit(LONG)
    await one.rounds(5)
    stream = one.submit(Request([9, *PROMPT[:30]], 3000, ENDLESS))
    before = one.engine.status()["steps"]
    while stream.first is None:
        await one.rounds(1)
    assert one.engine.status()["steps"] - before <= 3
    one.engine.cancel(stream)
    before = one.engine.status()["steps"]
    while one.engine.status()["running"] > 1:
        await one.rounds(1)
    assert one.engine.status()["steps"] - before <= 3


async def test_health_answers_while_a_grammar_is_built_and_an_invalid_one_fails_only_its_request(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go = threading.Event(), threading.Event()

    def odd(*args: object, **settings: object) -> None:
        making.set()
        go.wait(300)
        raise ValueError("a bug of the parser")

    with monkeypatch.context() as patched:
        patched.setattr(llguidance, "LLMatcher", odd)
        stream = running.engine.submit(Request(PROMPT, 5, grammar="start: /a/"))
        await asyncio.to_thread(making.wait, 60)
        try:
            told = await asyncio.wait_for(asyncio.to_thread(running.engine.status), 60)
        finally:
            go.set()
        assert told["state"] == "ready"
        with pytest.raises(RequestError, match="a bug of the parser") as caught:
            async for _ in stream:
                pass
    assert caught.value.kind == "invalid"
    assert len(await running.tokens(Request(PROMPT, 5, GREEDY))) == 5


async def test_it_is_ready_only_when_it_accepts_requests(start: Callable[..., Running]) -> None:
    one = start()
    one.engine.stop()
    one.thread.join(60)
    one.engine._stopping, one.engine.state = False, "starting"  # as before its first run
    told: list[str] = []

    def ready() -> None:
        told.append(one.engine.status()["state"])
        one.engine.stop()

    await asyncio.to_thread(one.engine.run, ready)
    assert told == ["ready"]


async def test_stop_ends_every_stream_with_an_error(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(max_sequences=1)
    one = Stepped(running, monkeypatch)
    streams = [one.submit(LONG), one.submit(LONG)]
    await one.rounds(2)
    one.engine.stop("the server is stopping")
    for stream in streams:
        with pytest.raises(RequestError, match="stopping"):
            async for _ in stream:
                pass
    running.thread.join(60)
    assert not running.thread.is_alive()
    with pytest.raises(RequestError) as caught:
        one.submit(LONG)
    assert caught.value.kind == "not_ready"


async def test_a_lost_rank_ends_all_streams_and_its_recovery_resumes_work(
    start: Callable[..., Running],
) -> None:
    one = start()
    told: list[tuple[int, str]] = []
    one.engine.on_failed = lambda rank, why: told.append((rank, why))
    stream = one.engine.submit(LONG)
    async for _ in stream:
        break
    one.engine._lost(1, "it has been silent for 2 s", for_good=False)
    with pytest.raises(RequestError, match="rank 1 failed: it has been silent"):
        async for _ in stream:
            pass
    with pytest.raises(RequestError, match="rank 1"):
        one.engine.submit(Request(PROMPT, 3))
    assert one.engine.status()["state"] == "failed"
    assert told == [(1, "it has been silent for 2 s")]
    one.engine._recovered(1)
    assert len(await one.tokens(Request(PROMPT, 3, GREEDY))) == 3
    assert one.engine.status()["running"] == 0


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the step's error is raised
@pytest.mark.parametrize("known", [True, False])
async def test_a_step_that_breaks_as_a_worker_dies_does_not_blame_rank_0(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(engine, "BLAME_S", 60.0 if known else 0.2)
    one = start()
    told: list[tuple[int, str]] = []
    one.engine.on_failed = lambda rank, why: told.append((rank, why))
    monkeypatch.setattr(one.engine, "_control", SimpleNamespace(send=lambda plan: None, workers={}))

    def breaks(plan: object, known_tokens: object) -> None:
        if known:  # a little later, from another thread
            threading.Timer(0.05, one.engine._lost, (1, "its connection ended", True)).start()
        raise RuntimeError("[ring] connection to a peer was lost")

    monkeypatch.setattr(one.engine._executor, "apply", breaks)
    with pytest.raises(RequestError, match="rank 1 failed" if known else "rank 0 failed"):
        await one.tokens(Request(PROMPT, 3))
    one.thread.join(60)
    await until(lambda: told, "the report of the failure")  # another thread's, after the streams ended
    assert [rank for rank, _ in told] == ([1] if known else [0])


async def test_hundreds_of_random_requests_leave_nothing_behind(running: Running) -> None:
    chance = random.Random(3)

    async def client(number: int) -> None:
        prompt = [chance.randrange(256) for _ in range(chance.randrange(1, 150))]
        sampling = Sampling(
            temperature=chance.choice([0.0, 0.7, 1.5]),
            top_p=chance.choice([1.0, 0.5]),
            top_k=chance.choice([0, 3, 100_000]),
            seed=number,
        )
        stream = running.engine.submit(Request(prompt, chance.randrange(1, 40), sampling))
        limit = chance.choice([None, 0, 1, 5])
        if limit == 0:
            running.engine.cancel(stream)
            return
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == limit:
                running.engine.cancel(stream)
                return

    for _ in range(6):
        await asyncio.gather(*(client(chance.randrange(1 << 40)) for _ in range(50)))
    await idle(running.engine)
    engine = running.engine
    await running.tokens(Request(PROMPT, 1, GREEDY))
    assert engine._sampler.rows == {}
    assert len(engine._executor.batch) == 0
    assert len(engine._executor.cached) == len(engine.scheduler.cache)
    assert engine.scheduler.cache.tokens <= engine.scheduler.limits.cache
