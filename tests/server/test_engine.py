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

from jaccl_kernel.server import engine
from jaccl_kernel.server.generation import Generation, Sampling, ServerError, Stream
from tests.server.conftest import Running, idle
from tests.tiny import HYBRID, make_tiny_model

GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(seed=1, logit_bias={257: -1000.0})
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 2)


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
        engine_round = one.engine._round

        def wait_for_a_word() -> None:
            while not self._wanted.acquire(timeout=0.1):
                if one.engine._stopping:
                    return
            engine_round()
            self._taken.release()

        monkeypatch.setattr(one.engine, "_round", wait_for_a_word)

    def submit(self, generation: Generation) -> Stream:
        """As the engine's."""
        return self.engine.submit(generation)  # type: ignore[no-any-return]

    async def rounds(self, count: int) -> None:
        """Let it take so many, as long as there is something to do."""
        for _ in range(count):
            if not self.engine._has_work():
                return
            self._wanted.release()
            assert await asyncio.to_thread(self._taken.acquire, timeout=20)
        await asyncio.sleep(0)  # what it fed is taken up


async def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_full_batch(running: Running) -> None:
    wanted = Generation(PROMPT, 40, Sampling(seed=11))
    alone = await running.tokens(wanted)
    others = [Generation([at, *PROMPT[at:]], 40, Sampling(seed=at)) for at in range(30)]
    together = await asyncio.gather(*(running.tokens(one) for one in [*others[:15], wanted, *others[15:]]))
    assert together[15] == alone
    assert len({tuple(one) for one in together}) > 25


async def test_no_seed_is_a_fresh_one(running: Running) -> None:
    several = [await running.tokens(Generation(PROMPT, 20)) for _ in range(3)]
    assert len({tuple(one) for one in several}) == 3


async def test_a_next_turn_begins_with_the_kept_cache_and_gives_the_same_tokens(running: Running) -> None:
    prompt = [200, *PROMPT]
    first, steps = await running.collect(Generation(prompt, 12, GREEDY))
    turn = [*prompt, *(step.token for step in steps), *b" And then?"]
    cached, after = await running.collect(Generation(turn, 12, GREEDY))
    assert first.cached_tokens == 0
    assert cached.cached_tokens >= len(prompt)
    fresh = await running.tokens(Generation([201, *turn[1:]], 1, GREEDY))  # shares nothing
    assert fresh
    again, repeated = await running.collect(Generation(turn, 12, GREEDY))
    assert again.cached_tokens == len(turn) - 1
    assert [step.token for step in repeated] == [step.token for step in after]


async def test_a_hybrid_models_next_turn_begins_at_the_boundary(
    start: Callable[..., Running], running: Running, tmp_path: Path
) -> None:
    one = start(make_tiny_model(tmp_path / "hybrid", **HYBRID))
    assert one.boundaries
    assert not running.boundaries
    asked, opening = [200, *PROMPT], list(b"<s>assistant: ")
    await one.collect(Generation([*asked, *opening], 12, GREEDY, boundary=len(asked)))
    # the template left something of the answer out: only the boundary serves
    turn = [*asked, *b"another answer, and a next question"]
    alone = start(tmp_path / "hybrid", cache=0)
    cached, steps = await one.collect(Generation(turn, 12, GREEDY, boundary=len(turn) - 4))
    fresh, expected = await alone.collect(Generation(turn, 12, GREEDY))
    assert (cached.cached_tokens, fresh.cached_tokens) == (len(asked), 0)
    assert [step.token for step in steps] == [step.token for step in expected]


async def test_the_last_step_says_why(running: Running) -> None:
    _, steps = await running.collect(Generation(PROMPT, 7, GREEDY))
    assert [step.finish for step in steps] == [None] * 6 + ["length"]
    end = Sampling(temperature=0.0, logit_bias={257: 1000.0})
    _, steps = await running.collect(Generation(PROMPT, 7, end))
    assert [(step.token, step.finish) for step in steps] == [(257, "stop")]


async def test_logprobs_come_where_they_were_asked_for(running: Running) -> None:
    _, plain = await running.collect(Generation(PROMPT, 3, GREEDY))
    _, steps = await running.collect(Generation(PROMPT, 3, GREEDY, top_logprobs=3))
    _, chosen = await running.collect(Generation(PROMPT, 3, GREEDY, top_logprobs=0))
    assert all(step.logprob is None and not step.top for step in plain)
    assert all(not step.top and step.logprob is not None and step.logprob <= 0 for step in chosen)
    for step in steps:
        assert len(step.top) == 3
        assert step.top[0][0] == step.token
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
    wanted = [Generation(PROMPT, 300, Sampling(seed=at), grammar=grammar) for at in range(3)]
    free = [Generation(PROMPT, 60, Sampling(seed=at)) for at in range(3)]
    results = await asyncio.gather(*(running.collect(one) for one in [*wanted, *free]))
    for _, steps in results[:3]:
        assert steps[-1].finish == "stop"
        answer = json.loads(running.tokenizer.decode([step.token for step in steps[:-1]]))
        assert set(answer) == {"name", "age"}
    assert await running.tokens(free[1]) == [step.token for step in results[4][1]]


async def test_a_grammar_that_makes_no_sense_fails_its_own_request_alone(running: Running) -> None:
    with pytest.raises(ServerError) as caught:
        await running.collect(Generation(PROMPT, 5, grammar="start: ("))
    assert caught.value.status == 400
    assert len(await running.tokens(Generation(PROMPT, 5, GREEDY))) == 5


async def test_a_reader_that_leaves_frees_its_place_at_once(running: Running) -> None:
    stream = running.engine.submit(Generation(PROMPT, 3000, Sampling(seed=1, logit_bias={257: -1000.0})))
    async for _ in stream:
        break
    running.engine.cancel(stream)
    running.engine.cancel(stream)  # harmless
    status = await idle(running.engine)
    assert status["running"] == 0


async def test_one_that_waits_can_leave_the_queue(start: Callable[..., Running]) -> None:
    one = start(max_sequences=1)
    long = Generation(PROMPT, 3000, Sampling(seed=1, logit_bias={257: -1000.0}))
    first, second = one.engine.submit(long), one.engine.submit(long)
    async for _ in first:
        break
    one.engine.cancel(second)
    assert one.engine.status()["queued"] == 0
    one.engine.cancel(first)
    await idle(one.engine)


async def test_a_full_queue_is_told_with_a_time_to_come_back(start: Callable[..., Running]) -> None:
    one = start(max_sequences=1, max_queue=2)
    long = Generation(PROMPT, 3000, Sampling(seed=1, logit_bias={257: -1000.0}))
    running = one.engine.submit(long)
    async for _ in running:
        break
    waiting = [one.engine.submit(long) for _ in range(2)]
    with pytest.raises(ServerError) as caught:
        one.engine.submit(long)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert caught.value.retry_after
    for stream in [running, *waiting]:
        one.engine.cancel(stream)
    await idle(one.engine)


async def test_memory_lets_in_no_more_than_fit_and_refuses_what_never_will(
    start: Callable[..., Running],
) -> None:
    one = start(capacity=400, cache=300)
    with pytest.raises(ServerError) as caught:
        one.engine.submit(Generation(PROMPT, 400))
    assert caught.value.status == 400
    streams = [one.engine.submit(Generation([at, *PROMPT], 100, Sampling(seed=at))) for at in range(4)]
    most = 0
    for stream in streams:
        async for _ in stream:
            most = max(most, one.engine.status()["running"])
    assert most == 2  # 191 tokens each
    assert one.engine.cache.tokens <= 300


@pytest.fixture
def stepped(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stepped]:
    """Engines that take a step only when told to."""

    def make(**limits: Any) -> Stepped:
        one = start(**limits)
        return Stepped(one, monkeypatch)

    return make


async def test_unequal_rows_take_the_longest_ones_memory_each(stepped: Callable[..., Stepped]) -> None:
    one = stepped(capacity=1000, cache=0)
    long = one.submit(Generation(PROMPT * 4, 40, ENDLESS))  # 360 tokens and 40
    short = [one.submit(Generation([at, *PROMPT], 10, ENDLESS)) for at in range(3)]  # 101 each
    await one.rounds(1)
    assert [stream.admitted is not None for stream in [long, *short]] == [True, True, False, False]
    assert one.engine.status()["memory"]["active_bytes"] == 800  # though 501 were asked for
    while one.engine.status()["running"]:
        most = max((running.length for running in one.engine._running.values()), default=0)
        assert most * len(one.engine._running) <= 1000
        await one.rounds(1)
    assert all(stream.first for stream in [long, *short])


async def test_answers_that_outgrow_the_memory_take_the_caches_and_then_end_the_youngest_by_name(
    stepped: Callable[..., Stepped], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RESERVE", 20)
    one = stepped(capacity=400, cache=200)
    one.submit(Generation([7, *PROMPT[:30]], 10, ENDLESS))
    await one.rounds(20)
    streams = [one.submit(Generation([at, *PROMPT], 250, ENDLESS)) for at in range(3)]  # 3 times 111
    await one.rounds(15)
    assert one.engine.cache.tokens > 30
    await one.rounds(20)
    assert one.engine.status()["running"] == 3
    assert one.engine.cache.tokens == 0
    await one.rounds(100)  # 3 times 134 are too many, 2 times 201 too
    assert one.engine.status()["running"] == 1
    for stream in streams[1:]:
        with pytest.raises(ServerError, match="sequences as long as the longest take") as caught:
            async for _ in stream:
                pass
        assert (caught.value.status, caught.value.code) == (503, "memory_full")
    await one.rounds(200)
    assert len([step async for step in streams[0]]) == 250


async def test_who_comes_is_let_in_and_who_leaves_is_out_within_three_steps(
    stepped: Callable[..., Stepped],
) -> None:
    one = stepped()
    one.submit(Generation(PROMPT, 3000, ENDLESS))
    await one.rounds(5)
    stream = one.submit(Generation([9, *PROMPT[:30]], 3000, ENDLESS))
    before = one.engine.status()["steps"]
    while stream.first is None:
        await one.rounds(1)
    assert one.engine.status()["steps"] - before <= 3
    one.engine.cancel(stream)
    before = one.engine.status()["steps"]
    while one.engine.status()["running"] > 1:
        await one.rounds(1)
    assert one.engine.status()["steps"] - before <= 3


async def test_health_is_told_while_a_grammar_is_made_and_an_odd_one_ends_its_own_request_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go = threading.Event(), threading.Event()

    def odd(*args: object, **settings: object) -> None:
        making.set()
        go.wait(10)
        raise ValueError("a bug of the parser")

    with monkeypatch.context() as patched:
        patched.setattr(llguidance, "LLMatcher", odd)
        stream = running.engine.submit(Generation(PROMPT, 5, grammar="start: /a/"))
        await asyncio.to_thread(making.wait, 10)
        try:
            told = await asyncio.wait_for(asyncio.to_thread(running.engine.status), 5)
        finally:
            go.set()
        assert told["state"] == "ready"
        with pytest.raises(ServerError, match="a bug of the parser") as caught:
            async for _ in stream:
                pass
    assert caught.value.status == 400
    assert len(await running.tokens(Generation(PROMPT, 5, GREEDY))) == 5


async def test_it_says_ready_when_it_takes_requests_and_not_before(start: Callable[..., Running]) -> None:
    one = start()
    one.engine.stop()
    one.thread.join(10)
    one.engine._stopping, one.engine.state = False, "starting"  # as before its first run
    told: list[str] = []

    def ready() -> None:
        told.append(one.engine.status()["state"])
        one.engine.stop()

    await asyncio.to_thread(one.engine.run, ready)
    assert told == ["ready"]


async def test_stop_ends_every_stream_with_an_error(start: Callable[..., Running]) -> None:
    one = start(max_sequences=1)
    long = Generation(PROMPT, 3000, Sampling(seed=1, logit_bias={257: -1000.0}))
    streams = [one.engine.submit(long), one.engine.submit(long)]
    async for _ in streams[0]:
        break
    one.engine.stop("the server is stopping")
    for stream in streams:
        with pytest.raises(ServerError, match="stopping"):
            async for _ in stream:
                pass
    one.thread.join(10)
    assert not one.thread.is_alive()
    with pytest.raises(ServerError) as caught:
        one.engine.submit(long)
    assert caught.value.status == 503


async def test_a_lost_rank_ends_all_and_its_return_takes_work_again(start: Callable[..., Running]) -> None:
    one = start()
    told: list[tuple[int, str]] = []
    one.engine.on_failed = lambda rank, why: told.append((rank, why))
    stream = one.engine.submit(Generation(PROMPT, 3000, Sampling(seed=1, logit_bias={257: -1000.0})))
    async for _ in stream:
        break
    one.engine._lost(1, "it has been silent for 2 s", for_good=False)
    with pytest.raises(ServerError, match="rank 1 failed: it has been silent"):
        async for _ in stream:
            pass
    with pytest.raises(ServerError, match="rank 1"):
        one.engine.submit(Generation(PROMPT, 3))
    assert one.engine.status()["state"] == "failed"
    assert told == [(1, "it has been silent for 2 s")]
    one.engine._found(1)
    assert len(await one.tokens(Generation(PROMPT, 3, GREEDY))) == 3
    assert one.engine.status()["running"] == 0


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the step's error is raised
@pytest.mark.parametrize("known_after_s", [0.2, None])
async def test_a_step_that_breaks_as_a_worker_dies_does_not_blame_rank_0(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, known_after_s: float | None
) -> None:
    one = start()
    told: list[tuple[int, str]] = []
    one.engine.on_failed = lambda rank, why: told.append((rank, why))
    monkeypatch.setattr(one.engine, "_control", SimpleNamespace(send=lambda plan: None, workers={}))

    def breaks(plan: object, known: object) -> None:
        if known_after_s:
            threading.Timer(known_after_s, one.engine._lost, (1, "its connection ended", True)).start()
        raise RuntimeError("[ring] connection to a peer was lost")

    monkeypatch.setattr(one.engine._share, "apply", breaks)
    with pytest.raises(ServerError, match="rank 1 failed" if known_after_s else "rank 0 failed"):
        await one.tokens(Generation(PROMPT, 3))
    one.thread.join(10)
    assert [rank for rank, _ in told] == ([1] if known_after_s else [0])


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
        stream = running.engine.submit(Generation(prompt, chance.randrange(1, 40), sampling))
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
    await running.tokens(Generation(PROMPT, 1, GREEDY))
    assert engine._chooser.rows == {}
    assert len(engine._share.batch) == 0
    assert len(engine._share.kept) == len(engine.cache)
    assert engine.cache.tokens <= engine.limits.cache
