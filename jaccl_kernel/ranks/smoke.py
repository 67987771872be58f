"""The smallest program: a group that was joined and proved, and what a small all_sum costs on it.

With `--linger` it stays up, idle, until the host says stop: a job whose ranks only wait.
"""

import argparse
import time
from typing import Any

from jaccl_kernel.ranks.link import Link
from jaccl_kernel.ranks.world import World

ROUNDS = 50
SMALL = 1024  # float32 values: 4 KB, JACCL's smallest frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ranks smoke`."""
    parser.add_argument("--linger", action="store_true", help="stay up until the host ends the job")


def run(options: argparse.Namespace, *, world: World, group: Any, link: Link, payload: dict[str, Any]) -> int:
    """Measure, tell, and with --linger wait; 0 when the group answered rightly."""
    link.stage("measure", "timing a 4 KB all_sum")
    latency = small_all_sum(group) if group is not None else None
    link.say("result", latency_s=latency, size=world.size)
    if not link.wired and world.rank == 0:
        told = "no group: one rank alone" if latency is None else f"4 KB all_sum: {latency * 1e6:.1f} us"
        print(f"{world.name()}: {told}")  # noqa: T201  the plain form of this program is this line
    if options.linger and link.wired:
        link.stage("idle", "up and waiting")
        link.receive("stop", deadline=float("inf"))
    return 0


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
