"""A scan of simulated Macs that are all far away against one of the farthest alone.

    .venv/bin/python benchmarks/probe.py [--macs 4] [--delay 0.3] [--rounds 5]

Every round trip is made slower by `--delay` seconds. Each round scans each Mac alone, then all at once; the
medians over the rounds and their ratio are printed. All are asked side by side, so the ratio stays near 1
until the scan's own processes (21 commands a Mac, all on this one machine) fill its cores.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from jaccl_kernel.nodes.node import Completed
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.rehearsal.node import SimulatedNode
from jaccl_kernel.topology.probe import probe
from jaccl_kernel.topology.wiring import build_wiring

BAR = 1.5


class FarNode(SimulatedNode):
    """A simulated Mac at the far end of a slow line."""

    delay = 0.0

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """As any node's, a while later."""
        await asyncio.sleep(self.delay)
        return await super().run(argv, **options)


async def seconds(nodes: Sequence[FarNode]) -> float:
    """How long a scan of these Macs takes."""
    began = time.perf_counter()
    facts = await probe(nodes)
    took = time.perf_counter() - began
    if failed := [mac.name for mac in facts if mac.error or mac.devices is None]:
        raise SystemExit(f"no facts of {', '.join(failed)}")
    if len(nodes) > 1 and build_wiring(facts).topology != "mesh":
        raise SystemExit("the scan does not show the mesh that is described")
    return took


async def main() -> None:
    """Scan, alone and together, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--macs", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.3, help="seconds added to every round trip")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    FarNode.delay = options.delay
    alone, together = [], []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JACCL_CACHE"] = cache
        macs = homes.prepare(homes.make_hostfile(options.macs))
        nodes = [FarNode(mac.name, mac.home, mac.environment()) for mac in macs]
        for _ in range(options.rounds):
            alone.append(max([await seconds([node]) for node in nodes]))
            together.append(await seconds(nodes))
    slowest, whole = statistics.median(alone), statistics.median(together)
    print(homes.NOTE)
    print(
        f"the slowest of {options.macs} Macs, alone: {slowest:.2f} s ({options.delay:g} s of it on the way)"
    )
    print(f"all {options.macs} at once: {whole:.2f} s: {whole / slowest:.2f}x (bar: {BAR}x at most)")


if __name__ == "__main__":
    asyncio.run(main())
