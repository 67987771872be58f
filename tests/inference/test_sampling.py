"""Choosing tokens: OpenAI's settings mean what they say, and a row's choice is its own affair."""

from collections import Counter
from typing import Any

import mlx.core as mx
import pytest

from jaccl_kernel.inference.request import Sampling
from jaccl_kernel.inference.sampling import Row, Sampler, uniform

VOCABULARY = 50


def logits(seed: int = 1, rows: int = 1) -> mx.array:
    return mx.random.normal((rows, VOCABULARY), key=mx.random.key(seed)) * 2


def choose(given: mx.array, *settings: Sampling, position: int = 0, **row: Any) -> list[int]:
    """One choice for each row of logits, by a sampler that is new."""
    sampler = Sampler()
    for at, one in enumerate(settings):
        sampler.rows[at] = Row(one, position=position, **row)
    tokens, _ = sampler(range(len(settings)), mx.zeros((len(settings),), dtype=mx.uint32), given)
    chosen: list[int] = tokens.tolist()
    return chosen


def draws(given: mx.array, count: int = 400, **settings: Any) -> Counter[int]:
    """How often each token is chosen over so many seeds."""
    many = mx.repeat(given, count, axis=0)
    return Counter(choose(many, *(Sampling(seed=seed, **settings) for seed in range(count))))


def test_temperature_0_selects_the_most_likely_token() -> None:
    given = logits(rows=3)
    assert choose(given, *[Sampling(temperature=0.0)] * 3) == mx.argmax(given, axis=-1).tolist()


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_the_narrowest_settings_leave_only_the_most_likely(settings: dict[str, Any]) -> None:
    given = logits()
    assert set(draws(given, 40, **settings)) == {mx.argmax(given).item()}


@pytest.mark.parametrize("settings", [{}, {"top_k": VOCABULARY + 7}, {"top_p": 1.0}, {"temperature": 2.0}])
def test_tokens_come_as_often_as_they_are_likely(settings: dict[str, Any]) -> None:
    given = logits()
    chances = mx.softmax(given[0] / settings.get("temperature", 1.0)).tolist()
    seen = draws(given, 4000, **settings)
    # chi-square with 49 degrees of freedom: 98 is passed by chance once in 40 000 (and the seeds are fixed)
    assert sum((seen[at] - 4000 * p) ** 2 / (4000 * p) for at, p in enumerate(chances)) < 98


def test_top_k_and_top_p_keep_just_the_most_likely() -> None:
    given = logits()
    order = mx.argsort(-given[0]).tolist()
    assert set(draws(given, 600, top_k=3)) == set(order[:3])
    chances = mx.softmax(given[0]).tolist()
    count, mass = 0, 0.0
    while mass < 0.6:
        mass += chances[order[count]]
        count += 1
    assert set(draws(given, 1000, top_p=0.6)) <= set(order[:count])
    assert len(draws(given, 1000, top_p=0.6)) == count


def test_min_p_drops_what_is_far_less_likely_than_the_first() -> None:
    given = logits()
    chances = mx.softmax(given[0]).tolist()
    allowed = {at for at, p in enumerate(chances) if p >= 0.3 * max(chances)}
    assert set(draws(given, 500, min_p=0.3)) == allowed


def test_xtc_excludes_the_top_choices_and_keeps_the_special_tokens() -> None:
    given = logits()
    chances = mx.softmax(given[0]).tolist()
    above = sorted((p, at) for at, p in enumerate(chances) if p > 0.05)
    out = {at for _, at in above[1:]}
    assert len(out) > 1
    seen = draws(given, 400, xtc_probability=1.0, xtc_threshold=0.05)
    assert not out & set(seen)
    assert above[0][1] in seen
    spared = Sampler(special=sorted(out))
    spared.rows[0] = Row(Sampling(xtc_probability=1.0, xtc_threshold=0.05, top_k=1, seed=1))
    assert spared([0], mx.array([0]), given)[0].item() == mx.argmax(given).item()


def test_a_rows_choice_depends_on_its_seed_and_place_alone() -> None:
    given = logits(rows=9)
    mixed = [
        Sampling(seed=4),
        Sampling(temperature=0.0),
        Sampling(top_k=5, seed=1),
        Sampling(top_p=0.5, seed=2),
        Sampling(min_p=0.1, seed=3),
        Sampling(seed=4, temperature=0.3),
        Sampling(seed=None),
        Sampling(seed=1 << 90),
        Sampling(seed=-3, presence_penalty=1.0),
    ]
    together = choose(given, *mixed, position=11, counts=mx.zeros((VOCABULARY,)))
    for at, one in enumerate(mixed):
        if one.seed is not None or one.temperature == 0:
            counts = mx.zeros((VOCABULARY,))
            assert choose(given[at : at + 1], one, position=11, counts=counts) == [together[at]]


def test_penalties_and_bias_move_the_choice() -> None:
    sampler = Sampler()
    flat = mx.zeros((1, VOCABULARY))
    sampler.rows[0] = Row(Sampling(temperature=0.0, presence_penalty=1.0, logit_bias={7: 3.0, 9: 2.5}))
    chosen, last = [], mx.array([0])
    for _ in range(4):
        last, _ = sampler([0], last, flat)
        chosen.append(last.item())
    # 7 leads by 3.0, after its first time by 2.0: then 9 at 2.5 is ahead, until it was there too
    assert chosen == [7, 9, 7, 7]
    repeated = Row(Sampling(temperature=0.0, repetition_penalty=2.0), prompt=[3, 4, 5])
    given = mx.zeros((1, VOCABULARY))
    given[0, 4] = 3.0
    given[0, 8] = 2.0
    sampler.rows[0] = repeated
    assert sampler([0], mx.array([5]), given)[0].item() == 8


def test_frequency_counts_every_time() -> None:
    sampler = Sampler()
    sampler.rows[0] = Row(Sampling(temperature=0.0, frequency_penalty=1.0, logit_bias={7: 2.5, 9: 1.0}))
    chosen, last = [], mx.array([0])
    for _ in range(4):
        last, _ = sampler([0], last, mx.zeros((1, VOCABULARY)))
        chosen.append(last.item())
    assert chosen == [7, 7, 9, 7]


def test_a_mask_is_never_broken() -> None:
    allowed = mx.zeros((VOCABULARY,), dtype=mx.bool_)
    allowed[mx.array([2, 30])] = True
    given = mx.repeat(logits(), 200, axis=0)
    rows = [Sampling(seed=seed, top_p=0.99) for seed in range(200)]
    assert set(choose(given, *rows, mask=lambda tokens: allowed)) == {2, 30}


def test_logprobs_are_the_models_own() -> None:
    sampler = Sampler()
    given = logits()
    sampler.rows[0] = Row(Sampling(temperature=0.0, logit_bias={3: 100.0}), top_logprobs=4)
    tokens, [report] = sampler([0], mx.array([0]), given)
    expected = (given[0] - mx.logsumexp(given[0])).tolist()
    assert tokens.item() == 3
    assert report is not None
    chosen, top = report.read()
    assert chosen == pytest.approx(expected[3], abs=1e-5)
    assert [at for at, _ in top] == mx.argsort(-given[0]).tolist()[:4]
    assert [p for _, p in top] == pytest.approx(sorted(expected, reverse=True)[:4], abs=1e-5)


def test_random_numbers_are_even_and_unlike_each_other() -> None:
    numbers = [uniform(seed, position, 0) for seed in range(100) for position in range(100)]
    assert all(0 <= one < 1 for one in numbers)
    assert len(set(numbers)) > 9900
    tenths = Counter(int(one * 10) for one in numbers)
    assert all(850 < tenths[at] < 1150 for at in range(10))
