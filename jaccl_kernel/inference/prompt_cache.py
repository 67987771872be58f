"""The index of cached prompts: which to keep, and which one is the prefix of a new prompt. Rank 0 only.

Every rank stores its part of each cached prompt under the same number; this index decides what to keep, use
and drop, and the plans carry the decision to all ranks. Sizes are in tokens. No mlx.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHORTEST_USE = 8  # a shorter common prefix is cheaper to compute than to copy
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """A cached prompt: its tokens, and whether a prefix of it is usable."""

    tokens: Tokens
    trimmable: bool


@dataclass(frozen=True)
class Match:
    """A usable prefix: `length` tokens of cache `number`, without its last `trim` tokens."""

    number: int
    length: int
    trim: int


class CacheIndex:
    """The cached prompts, least recently used first.

    Args:
        limit: the maximum total of cached tokens.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, prompt: Sequence[int]) -> Match | None:
        """Return the cached prompt with the longest common prefix; leaves at least one token to compute."""
        tokens = np.asarray(prompt[:-1], dtype=np.int64)
        best: Match | None = None
        for number, entry in self._entries.items():
            length = _common(entry.tokens, tokens)
            if length < len(entry.tokens) and not entry.trimmable:
                continue
            if length >= SHORTEST_USE and (best is None or length > best.length):
                best = Match(number, length, len(entry.tokens) - length)
        if best:
            self._entries.move_to_end(best.number)
        return best

    def add(self, tokens: Sequence[int], *, trimmable: bool) -> tuple[int | None, list[int]]:
        """Add a cache of these tokens. Returns its number (None if it is not added) and the dropped ones."""
        array = np.asarray(tokens, dtype=np.int64)
        if len(array) > self.limit or len(array) < SHORTEST_USE:
            return None, []
        covered, dropped = False, []
        for number, entry in list(self._entries.items()):
            common = _common(entry.tokens, array)
            if common == len(array) and (entry.trimmable or len(entry.tokens) == len(array)):
                covered = True
                self._entries.move_to_end(number)
            elif common == len(entry.tokens) and trimmable:
                dropped.append(self._drop(number))  # the new one covers it
        if covered:
            return None, dropped
        dropped += self.shrink(self.limit - len(array))
        number = next(self._numbers)
        self._entries[number] = Entry(array, trimmable)
        self.tokens += len(array)
        return number, dropped

    def shrink(self, limit: int) -> list[int]:
        """Drop the least recently used caches until at most `limit` tokens remain. Returns them."""
        dropped = []
        while self._entries and self.tokens > limit:
            dropped.append(self._drop(next(iter(self._entries))))
        return dropped

    def _drop(self, number: int) -> int:
        self.tokens -= len(self._entries.pop(number).tokens)
        return number


def _common(one: Tokens, other: Tokens) -> int:
    """Return the length of the common prefix."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
