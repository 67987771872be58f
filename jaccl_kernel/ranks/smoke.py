"""The smallest program: join and prove the group, prove large collectives, and time a small all_sum.

With `--linger` the ranks stay idle until the host sends stop.
"""

import time
from typing import Any

from jaccl_kernel.core.events import SmokeResult
from jaccl_kernel.core.messages import Payload, Stop
from jaccl_kernel.core.options import SmokeProgram
from jaccl_kernel.ranks.group import World, prove
from jaccl_kernel.ranks.host_channel import Link

ROUNDS = 50
SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 25)
"""Bytes. Public reports (mlx#4342, #3149) are of sums that are right at 4 KB and wrong beyond."""

SMALL = 1024  # float32 values: 4 KB, JACCL's smallest frame


def run(options: SmokeProgram, *, world: World, group: Any, link: Link, payload: Payload) -> int:
    """Measure and report, and with --linger wait."""
    proven, latency = 0, None
    if group is not None:
        proven = prove_large(group, world, link)
        link.stage("sums", "timing a 4 KB all_sum")
        latency = small_all_sum(group)
    link.send(SmokeResult(latency, world.size, proven))
    if not link.wired and world.rank == 0:
        result = "a single rank has no group" if latency is None else f"4 KB all_sum: {latency * 1e6:.1f} us"
        print(f"{world.name()}: {result}")  # noqa: T201  the output under plain mlx.launch
    if options.linger and link.wired:
        link.stage("idle", "waiting for stop")
        link.receive(Stop, deadline=float("inf"))
    return 0


def prove_large(group: Any, world: World, link: Link) -> int:
    """Check all_sum and all_gather in growing, then in falling sizes; returns the largest, in bytes.

    Raises:
        JobError: a value is wrong.
    """
    for size in (*SIZES, *reversed(SIZES[:-1])):
        link.stage("sums", f"all_sum and all_gather of {size >> 10} KB")
        prove(group, world, size // 4)
    return max(SIZES)


def small_all_sum(group: Any) -> float:
    """The median time of a 4 KB all_sum, in seconds, over 50 rounds after 5 to warm up."""
    import mlx.core as mx

    values = mx.ones((SMALL,), dtype=mx.float32)
    mx.eval(values)
    times = []
    for _ in range(ROUNDS + 5):
        began = time.perf_counter()
        mx.eval(mx.distributed.all_sum(values, group=group, stream=mx.cpu))
        times.append(time.perf_counter() - began)
    return sorted(times[5:])[ROUNDS // 2]
