"""Times the group's collectives: latency and bandwidth by size, for the group and for each pair of ranks.

Definitions (source: NVIDIA's nccl-tests, doc/PERFORMANCE.md): with S bytes on each rank and n ranks, algbw is
S / t; busbw, the traffic of a link, is algbw times 2 (n - 1) / n for all_sum, (n - 1) / n for all_gather
(whose S is the size of the result) and 1 for send. Every number is the median of several repetitions, timed
on rank 0 (send: half of a round trip).
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from jaccl_kernel.core.errors import InputError, Stopped
from jaccl_kernel.core.results import CollectiveRow, CollectivesResult, PairRow
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.host_channel import Link

LEAST, MOST = 64, 256 << 20  # bytes
POINT_S = 0.4  # approximate duration of the repetitions of one size
MIN_REPEATS, MAX_REPEATS = 5, 200


def measure(
    group: Any,
    world: World,
    link: Link,
    sizes: Sequence[int],
    repeats: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> CollectivesResult:
    """Time all collectives. Every rank calls it.

    Args:
        group: the mx.distributed.Group; None for one rank alone, which has no collectives.
        world: this rank and the number of ranks.
        link: sends the stages.
        sizes: bytes on each rank, multiples of 4 (all_gather: of the result).
        repeats: repetitions of each; 0 for as many as take about half a second.
        stopping: called between sizes, on every rank; true stops.

    Raises:
        InputError: there is one rank only, or a size is out of bounds.
        Stopped: it was stopped.
    """
    if group is None:
        raise InputError("one rank has no collectives", fix="Start at least 2 ranks.")
    for size in sizes:
        if not LEAST <= size <= MOST or size % 4:
            raise InputError(f"the size must be a multiple of 4 from {LEAST} to {MOST} bytes (got {size})")
    bench = _Bench(group, world, link, repeats, stopping)
    whole = [bench.collective(op, size) for op in ("all_sum", "all_gather") for size in sizes]
    pairs: list[PairRow] = []
    skipped: list[tuple[int, int]] = []
    for one, other in itertools.combinations(range(world.size), 2):
        if world.topology == "ring" and other - one not in (1, world.size - 1):
            skipped.append((one, other))
            continue
        pairs += [bench.pair(one, other, size) for size in sizes]
    return CollectivesResult(tuple(whole), tuple(pairs), tuple(skipped))


class _Bench:
    def __init__(self, group: Any, world: World, link: Link, repeats: int, stopping: Any) -> None:
        self.group = group
        self.world = world
        self.link = link
        self.repeats = repeats
        self.stopping = stopping

    def collective(self, op: str, size: int) -> CollectiveRow:
        """Time one operation of the whole group at one size."""
        ranks = self.world.size
        self._begin(f"{op}, {_bytes(size)}")
        mine = mx.ones((max(1, size // 4 // (ranks if op == "all_gather" else 1)),), dtype=mx.float32)
        mx.eval(mine)

        def once() -> None:
            mx.eval(getattr(mx.distributed, op)(mine, group=self.group, stream=mx.cpu))

        seconds, count = self._time(once)
        part = (ranks - 1) / ranks * (2 if op == "all_sum" else 1)
        whole = mine.nbytes * (ranks if op == "all_gather" else 1)
        return CollectiveRow(op, whole, seconds, whole / seconds, whole / seconds * part, count)

    def pair(self, one: int, other: int, size: int) -> PairRow:
        """Time a round trip between two ranks, while the others wait."""
        self._begin(f"send, ranks {one} and {other}, {_bytes(size)}")
        mine = mx.ones((size // 4,), dtype=mx.float32)
        mx.eval(mine)
        rank = self.world.rank

        def once() -> None:
            if rank == one:
                sent = mx.distributed.send(mine, other, group=self.group, stream=mx.cpu)
                mx.eval(sent)
                mx.eval(mx.distributed.recv_like(mine, other, group=self.group, stream=mx.cpu))
            elif rank == other:
                mx.eval(mx.distributed.recv_like(mine, one, group=self.group, stream=mx.cpu))
                mx.eval(mx.distributed.send(mine, one, group=self.group, stream=mx.cpu))

        seconds, count = self._time(once)
        half = self._from(one, seconds) / 2
        bandwidth = mine.nbytes / half
        return PairRow("send", mine.nbytes, half, bandwidth, bandwidth, count, (one, other))

    def _begin(self, what: str) -> None:
        self.link.stage("collectives", what)
        if self.stopping():
            raise Stopped("stopped", fix="Run it again.")

    def _time(self, once: Callable[[], None]) -> tuple[float, int]:
        """Median seconds of one repetition, and the number of repetitions, which is equal on all ranks."""
        for _ in range(2):
            once()
        began = time.perf_counter()
        for _ in range(3):
            once()
        slowest = self._slowest((time.perf_counter() - began) / 3) or 1e-6
        count = self.repeats or int(min(MAX_REPEATS, max(MIN_REPEATS, POINT_S / slowest)))
        times = []
        for _ in range(count):
            start = time.perf_counter()
            once()
            times.append(time.perf_counter() - start)
        return max(statistics.median(times), 1e-9), count

    def _from(self, rank: int, value: float) -> float:
        """One rank's value, on every rank."""
        mine = mx.array([value if self.world.rank == rank else 0.0] * 16)
        return float(mx.distributed.all_sum(mine, group=self.group, stream=mx.cpu)[0].item())

    def _slowest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return float(
            mx.distributed.all_gather(mx.array([value] * 16), group=self.group, stream=mx.cpu).max().item()
        )


def _bytes(size: int) -> str:
    for unit, step in (("MB", 1 << 20), ("KB", 1 << 10)):
        if size >= step:
            return f"{size / step:g} {unit}"
    return f"{size} B"
