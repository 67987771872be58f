"""Which prompt caches are kept: the longest prefix serves, the least recently used goes."""

import random

from jaccl_kernel.inference.prompt_cache import SHORTEST_USE, CacheIndex


def test_the_longest_common_prefix_is_found_and_one_token_is_left_to_compute() -> None:
    index = CacheIndex(1000)
    first, _ = index.add(range(100), trimmable=True)
    other, _ = index.add([*range(50), *range(500, 550)], trimmable=True)
    found = index.find(range(70))
    assert found is not None
    assert (found.number, found.length, found.trim) == (first, 69, 31)
    found = index.find([*range(50), *range(500, 560)])
    assert found is not None
    assert (found.number, found.length, found.trim) == (other, 100, 0)


def test_a_cache_that_cannot_be_trimmed_is_used_only_as_a_whole() -> None:
    index = CacheIndex(1000)
    index.add(range(100), trimmable=False)
    assert index.find(range(90)) is None
    found = index.find(range(101))
    assert found is not None
    assert found.trim == 0


def test_a_short_prefix_is_not_worth_a_copy() -> None:
    index = CacheIndex(1000)
    index.add(range(100), trimmable=True)
    assert index.find([*range(SHORTEST_USE - 1), 900, 901]) is None


def test_the_next_turn_replaces_the_last_one() -> None:
    index = CacheIndex(1000)
    first, _ = index.add(range(100), trimmable=True)
    _, dropped = index.add(range(150), trimmable=True)
    assert dropped == [first]
    assert index.tokens == 150


def test_a_cache_that_a_longer_one_covers_is_not_kept() -> None:
    index = CacheIndex(1000)
    index.add(range(100), trimmable=True)
    assert index.add(range(60), trimmable=True) == (None, [])


def test_the_least_recently_used_is_dropped_first() -> None:
    index = CacheIndex(100)
    one, _ = index.add(range(40), trimmable=True)
    two, _ = index.add(range(1000, 1040), trimmable=True)
    assert index.find(range(41)) is not None  # one is used
    _, dropped = index.add(range(2000, 2040), trimmable=True)
    assert dropped == [two]
    assert index.shrink(40) == [one]


def test_the_limit_is_never_exceeded() -> None:
    chance = random.Random(4)
    index = CacheIndex(500)
    kept: set[int] = set()
    for _ in range(2000):
        tokens = [chance.randrange(3) for _ in range(chance.randrange(1, 200))]
        found = index.find(tokens)
        if found:
            assert found.number in kept
            assert found.length < len(tokens)
        number, dropped = index.add(tokens, trimmable=chance.random() < 0.7)
        kept -= set(dropped)
        kept |= {number} if number is not None else set()
        assert len(index) == len(kept)
        assert index.tokens <= 500
