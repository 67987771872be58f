"""Which conversations' prompt caches are kept, and which one a new prompt begins with: rank 0's bookkeeping.

Every rank holds its share of each kept cache under the same number; what is kept, used and dropped is decided
here and told in the plans, so the ranks never differ. Sizes are in tokens: what a token costs in bytes is the
engine's to know. No mlx.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHORTEST_USE = 8  # fewer tokens than this in common are computed again more cheaply than copied
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """A cache that is kept: the tokens in it, and whether a prefix of it can be used too."""

    tokens: Tokens
    trimmable: bool


@dataclass(frozen=True)
class Found:
    """What a prompt can begin with: `length` tokens of cache `number`, its last `trim` tokens cut off."""

    number: int
    length: int
    trim: int


class CacheIndex:
    """The kept caches, least recently used first.

    Args:
        limit: how many tokens are kept in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens = 0
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, prompt: Sequence[int]) -> Found | None:
        """The kept cache with the longest common prefix; one token at least is left to compute."""
        wanted = np.asarray(prompt[:-1], dtype=np.int64)
        best: Found | None = None
        for number, kept in self._kept.items():
            length = _common(kept.tokens, wanted)
            if length < len(kept.tokens) and not kept.trimmable:
                continue
            if length >= SHORTEST_USE and (best is None or length > best.length):
                best = Found(number, length, len(kept.tokens) - length)
        if best:
            self._kept.move_to_end(best.number)
        return best

    def add(self, tokens: Sequence[int], *, trimmable: bool) -> tuple[int | None, list[int]]:
        """Keep a cache of these tokens: (its number, or None if that is not worth it; what is dropped)."""
        array = np.asarray(tokens, dtype=np.int64)
        if len(array) > self.limit or len(array) < SHORTEST_USE:
            return None, []
        covered, dropped = False, []
        for number, kept in list(self._kept.items()):
            common = _common(kept.tokens, array)
            if common == len(array) and (kept.trimmable or len(kept.tokens) == len(array)):
                covered = True
                self._kept.move_to_end(number)
            elif common == len(kept.tokens) and trimmable:
                dropped.append(self._drop(number))  # the new one can do all that this one could
        if covered:
            return None, dropped
        dropped += self.shrink(self.limit - len(array))
        number = next(self._numbers)
        self._kept[number] = Kept(array, trimmable)
        self.tokens += len(array)
        return number, dropped

    def shrink(self, limit: int) -> list[int]:
        """Drop the least recently used until at most `limit` tokens are kept; which were dropped."""
        dropped = []
        while self._kept and self.tokens > limit:
            dropped.append(self._drop(next(iter(self._kept))))
        return dropped

    def _drop(self, number: int) -> int:
        self.tokens -= len(self._kept.pop(number).tokens)
        return number


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
