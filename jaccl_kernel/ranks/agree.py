"""Whether to stop: one rank hears it, all ranks must do so after the same token.

A rank that left a collective which the others are in would hang them, so nothing here interrupts: who
computes asks between two steps, and the ranks' answers are summed. Knows calls by their number: an
interruption that comes late cannot stop the next one.
"""

from typing import Any

import mlx.core as mx

WIDTH = 16  # elements of the sum: ring is slow with fewer elements than ranks


class Stop:
    """This rank's end of it.

    Args:
        group: the mx.distributed.Group, or None for one rank alone.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._asked = self._call = 0
        self._pending: mx.array | None = None

    def begin(self, call: int) -> None:
        """A new call begins."""
        self._call = call
        self._pending = None

    def ask(self, call: int) -> None:
        """Somebody wants this call stopped. From any thread."""
        self._asked = max(self._asked, call)

    def wanted(self) -> bool:
        """Whether this rank has heard that the present call is to stop."""
        return self._asked >= self._call

    def agreed(self) -> bool:
        """Whether any rank has; the same answer on all. Every rank has to ask at the same point."""
        if self._group is None:
            return self.wanted()
        return _heard(self._sum())

    def poll(self) -> bool:
        """As `agreed`, but as of the last time that this was asked: waits for nothing."""
        if self._group is None:
            return self.wanted()
        before, self._pending = self._pending, self._sum()
        return before is not None and _heard(before)

    def _sum(self) -> mx.array:
        from mlx_lm.generate import generation_stream  # slow to import: not before the first cell

        # on generation's own stream: collectives of two streams can cross
        with mx.stream(generation_stream):
            mine = mx.array([float(self.wanted())] * WIDTH)
            total = mx.distributed.all_sum(mine, group=self._group)
            mx.async_eval(total)
        return total


def _heard(total: mx.array) -> bool:
    return any(total.tolist())
