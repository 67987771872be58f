"""Rank 0's engine on the tiny model: who gets in, who gets out, and what each is given."""

import asyncio
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import llguidance
import pytest

from jaccl_kernel.server.generation import Generation, Sampling, ServerError
from tests.server.conftest import Running, idle
from tests.tiny import HYBRID, make_tiny_model

GREEDY = Sampling(temperature=0.0)
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 2)


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
