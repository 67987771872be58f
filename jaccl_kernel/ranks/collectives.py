"""Time the group's collectives: latency and bandwidth against size, for the group and for each pair of ranks.

Definitions (source: NVIDIA's nccl-tests, doc/PERFORMANCE.md): with S bytes on each rank and n ranks, algbw
is S / t; busbw is what a link had to carry: all_sum 2 (n - 1) / n of that, all_gather (its S is the whole
result) (n - 1) / n, send 1. Every figure is the median of several repetitions, each timed on rank 0 (send:
there and back, halved).
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from jaccl_kernel.errors import InputError, Stopped
from jaccl_kernel.ranks.link import Link
from jaccl_kernel.ranks.world import World

LEAST, MOST = 64, 256 << 20  # bytes
POINT_S = 0.4  # of repetitions a size, about
FEWEST, MANY = 5, 200


def measure(
    group: Any,
    world: World,
    link: Link,
    sizes: Sequence[int],
    repeats: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Time them all, on every rank at once.

    Args:
        group: the mx.distributed.Group; None for one rank alone, which has no collectives.
        world: which rank this is.
        link: hears the stages.
        sizes: bytes on each rank, multiples of 4 (of 4 n for all_gather, whose parts are that much smaller).
        repeats: repetitions of each; 0 for as many as take about half a second.
        stopping: asked between sizes, on every rank.

    Returns `group`: a list of {op, bytes, seconds, algbw, busbw, repeats}, and `pairs`: the same with `pair`
    (two ranks) and op "send"; bandwidths in bytes a second. `skipped`: pairs that this backend cannot join.

    Raises:
        InputError: one rank alone, or a size out of bounds.
        Stopped: it was stopped.
    """
    if group is None:
        raise InputError("one rank has no collectives", fix="Start at least 2 ranks.")
    for size in sizes:
        if not LEAST <= size <= MOST or size % 4:
            raise InputError(f"{size} bytes", fix=f"Give multiples of 4 from {LEAST} to {MOST}.")
    bench = _Bench(group, world, link, repeats, stopping)
    whole = [bench.collective(op, size) for op in ("all_sum", "all_gather") for size in sizes]
    pairs, skipped = [], []
    for one, other in itertools.combinations(range(world.size), 2):
        if world.backend == "ring" and other - one not in (1, world.size - 1):
            skipped.append([one, other])  # MLX's ring sends to neighbours only
            continue
        pairs += [bench.pair(one, other, size) for size in sizes]
    return {"group": whole, "pairs": pairs, "skipped": skipped}


class _Bench:
    def __init__(self, group: Any, world: World, link: Link, repeats: int, stopping: Any) -> None:
        self.group = group
        self.world = world
        self.link = link
        self.repeats = repeats
        self.stopping = stopping

    def collective(self, op: str, size: int) -> dict[str, Any]:
        """One operation of the whole group at one size."""
        ranks = self.world.size
        self._begin(f"{op}, {_bytes(size)}")
        mine = mx.ones((max(1, size // 4 // (ranks if op == "all_gather" else 1)),), dtype=mx.float32)
        mx.eval(mine)

        def once() -> None:
            asked = getattr(mx.distributed, op)(mine, group=self.group, stream=mx.cpu)
            mx.eval(asked)

        seconds, count = self._time(once)
        part = (ranks - 1) / ranks * (2 if op == "all_sum" else 1)
        whole = mine.nbytes * (ranks if op == "all_gather" else 1)
        return {
            "op": op,
            "bytes": whole,
            "seconds": seconds,
            "algbw": whole / seconds,
            "busbw": whole / seconds * part,
            "repeats": count,
        }

    def pair(self, one: int, other: int, size: int) -> dict[str, Any]:
        """There and back between two ranks, while the others wait."""
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
        return {
            "op": "send",
            "pair": [one, other],
            "bytes": mine.nbytes,
            "seconds": half,
            "algbw": mine.nbytes / half,
            "busbw": mine.nbytes / half,
            "repeats": count,
        }

    def _begin(self, what: str) -> None:
        self.link.stage("collectives", what)
        if self.stopping():
            raise Stopped("stopped", fix="Run it again when you like.")

    def _time(self, once: Callable[[], None]) -> tuple[float, int]:
        """Median seconds of one repetition, and how many were timed; as many on every rank."""
        for _ in range(2):
            once()
        began = time.perf_counter()
        for _ in range(3):
            once()
        slowest = self._slowest((time.perf_counter() - began) / 3) or 1e-6
        count = self.repeats or int(min(MANY, max(FEWEST, POINT_S / slowest)))
        times = []
        for _ in range(count):
            start = time.perf_counter()
            once()
            times.append(time.perf_counter() - start)
        return max(statistics.median(times), 1e-9), count

    def _from(self, rank: int, value: float) -> float:
        """One rank's number, on every rank."""
        mine = mx.array([value if self.world.rank == rank else 0.0] * 16)
        return float(mx.distributed.all_sum(mine, group=self.group, stream=mx.cpu)[0].item())

    def _slowest(self, value: float) -> float:
        """The largest of all ranks' numbers."""
        return float(
            mx.distributed.all_gather(mx.array([value] * 16), group=self.group, stream=mx.cpu).max().item()
        )


def _bytes(size: int) -> str:
    for unit, step in (("MB", 1 << 20), ("KB", 1 << 10)):
        if size >= step:
            return f"{size / step:g} {unit}"
    return f"{size} B"
