"""An engine that is stepped by its reader: what resident prompts, benchmarks and the warm-up do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.inference.request import (
    Chunk,
    Finish,
    Prefill,
    Request,
    RequestError,
    Sampling,
    Text,
    TextOptions,
)

GREEDY = Sampling(temperature=0.0)
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 2)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    from jaccl_kernel.inference.loaded import prepare
    from jaccl_kernel.ranks.loader import load

    return prepare(*load(tiny_model), None, prefill_step=32, memory_bytes=2_000_000_000)


@pytest.fixture
def engine(loaded: Any) -> Iterator[Any]:
    made = loaded.engine()
    yield made
    assert not made.scheduler.has_work()
    assert len(loaded.executor.batch) == 0
    assert loaded.sampler.rows == {}
    loaded.executor.clear()


def read(chunks: Iterator[tuple[int, Chunk]]) -> tuple[str, list[int], Finish]:
    """The text, the token ids and the last chunk of one request."""
    text, ids = "", []
    for _, chunk in chunks:
        assert not isinstance(chunk, Prefill)
        ids += [token.id for token in chunk.tokens]
        text += chunk.text if isinstance(chunk, Text) else ""
    assert isinstance(chunk, Finish)
    return text, ids, chunk


def after(count: int) -> Callable[[], bool]:
    """True from so many steps on."""
    steps = iter(range(count))
    return lambda: next(steps, None) is None


def test_a_stream_is_text_and_then_the_reason_and_the_usage(engine: Any) -> None:
    request = Request(PROMPT, 20, Sampling(seed=3, logit_bias={257: -1000.0}), text=TextOptions())
    text, ids, finish = read(engine.generate(request))
    assert len(ids) == 20
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.generated_tokens) == ("length", 90, 20)
    stop = text[5:7]
    cut, _, stopped = read(engine.generate(Request(PROMPT, 20, request.sampling, text=TextOptions([stop]))))
    assert cut == text[: text.index(stop)]
    assert stopped.reason == "stop"
    assert stopped.usage.cached_tokens == len(PROMPT) - 1


def test_concurrent_requests_get_the_same_answers_as_single_ones(engine: Any) -> None:
    requests = [Request([at, *PROMPT], 8, Sampling(seed=at), ignore_eos=True) for at in range(3)]
    together: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, chunk in engine.generate(*requests):
        if isinstance(chunk, Text):
            together[number] += [token.id for token in chunk.tokens]
    assert [together[at] for at in range(3)] == [read(engine.generate(one))[1] for one in requests]


@pytest.mark.parametrize("steps", [1, 8])
def test_a_stopped_stream_keeps_its_text_and_ends(engine: Any, steps: int) -> None:
    endless = Request(PROMPT, 3000, GREEDY, text=TextOptions(), ignore_eos=True)
    _, ids, finish = read(engine.generate(endless, stopping=after(steps)))
    assert finish.reason == "stopped"
    assert len(ids) == finish.usage.generated_tokens < 9


def test_a_benchmarks_request_ignores_eos_skips_the_cache_and_reports_its_prefill(
    engine: Any, loaded: Any
) -> None:
    end = Sampling(temperature=0.0, logit_bias={257: 1000.0})
    request = Request(PROMPT, 5, end, ignore_eos=True, use_cache=False, progress=True)
    chunks = [chunk for _, chunk in engine.generate(request)]
    prefill = [chunk for chunk in chunks if isinstance(chunk, Prefill)]
    assert prefill[0] == Prefill(32, 90)
    assert [token.id for chunk in chunks if isinstance(chunk, Text) for token in chunk.tokens] == [257] * 5
    assert loaded.executor.cached == {}


def test_a_request_that_cannot_be_served_is_rejected_with_the_others_of_its_call(engine: Any) -> None:
    with pytest.raises(RequestError, match="unsupported grammar"):
        list(engine.generate(Request(PROMPT, 500, GREEDY), Request(PROMPT, 5, grammar="start: (")))


def test_a_reader_that_stops_early_removes_its_request(engine: Any) -> None:
    chunks = engine.generate(Request(PROMPT, 3000, GREEDY, ignore_eos=True))
    next(chunks)
    chunks.close()


def test_a_step_that_fails_is_not_followed_by_another(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = loaded.engine()
    plans: list[Any] = []

    def breaks(plan: Any, known: Any) -> None:
        plans.append(plan)
        raise RuntimeError("[ring] connection to a peer was lost")

    with monkeypatch.context() as patched:
        patched.setattr(loaded.executor, "apply", breaks)
        with pytest.raises(RuntimeError, match="connection to a peer"):
            list(engine.generate(Request(PROMPT, 5, GREEDY)))
    loaded.sampler.rows.clear()
    assert len(plans) == 1
    assert list(engine.failed) == [0]
