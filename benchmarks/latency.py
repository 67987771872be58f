"""Decode with a slow control connection between the ranks, against the same with a fast one.

    .venv/bin/python -m benchmarks.latency [--model DIR] [--delay 0.02] [--pairs 5] [--clients 1,8]

Two local ranks over ring. All that the ranks send each other over the control plane passes through a proxy on
loopback, which delays it by `--delay` seconds one way; the collectives do not pass through it. Runs with and
without the delay alternate in pairs, with the same prompts. Prints, as JSON, tokens per second over all
clients (medians) and the median of the pairs' ratios; exits 1 if a ratio is below the bar.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from jaccl_kernel.launch import ports
from jaccl_kernel.models.demo import ensure_demo

BAR = 0.95
PROMPT = list(range(100, 164))
DEADLINE_S = 1800.0  # of the whole run


class Proxy:
    """Forwards connections to an address, on its own event loop; each byte arrives `delay_s` later."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.delay_s = 0.0
        self.address: tuple[str, int] = ("", 0)
        self._target = address
        listening = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True).start()
        if not listening.wait(10):
            raise TimeoutError("the proxy does not listen")

    async def _serve(self, listening: threading.Event) -> None:
        server = await asyncio.start_server(self._connect, self._target[0], 0)
        self.address = server.sockets[0].getsockname()[:2]
        listening.set()
        await server.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0  # of the previous bytes: the order stays when the delay changes
        while data := await reader.read(1 << 16):
            due = max(due, loop.time() + self.delay_s)
            loop.call_at(due, writer.write, data)
        loop.call_at(max(due, loop.time()), writer.close)


def rank_main(options: argparse.Namespace) -> None:
    """One rank: rank 0 measures, and prints its measurements as JSON."""
    import mlx.core as mx

    from jaccl_kernel.inference.control import Leader
    from jaccl_kernel.inference.loaded import prepare
    from jaccl_kernel.ranks import control_plane
    from jaccl_kernel.ranks.group import World
    from jaccl_kernel.ranks.host_channel import Link
    from jaccl_kernel.ranks.loader import load

    world = World.from_environment()
    group = mx.distributed.init(strict=True, backend="ring")
    loaded = prepare(*load(options.model, group=group, sharding="tensor"), group)
    proxies: list[Proxy] = []

    class Behind(Leader):
        """A leader behind a proxy."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            proxies.append(Proxy(self.address))
            self.address = proxies[0].address

    vars(control_plane)["Leader"] = Behind
    link = Link(world.rank, wired=False)
    counts = [int(each) for each in options.clients.split(",")]
    engine = None if world.rank else loaded.engine()
    measured = control_plane.with_engine(
        loaded, engine, world, group, link, lambda one: _measure(one, proxies[0], counts, options)
    )
    # rank 0 has the proxy: it stays until the other rank has its stop
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
    if world.rank == 0:
        sys.stdout.write(json.dumps(measured))


def _measure(engine: Any, proxy: Proxy, counts: list[int], options: argparse.Namespace) -> Any:
    from jaccl_kernel.inference.request import Request, Sampling

    def rate(clients: int, delay_s: float) -> float:
        """Tokens per second between the first and the last token of all."""
        proxy.delay_s = delay_s
        requests = [
            Request(
                [number, *PROMPT], options.tokens, Sampling(temperature=0), ignore_eos=True, use_cache=False
            )
            for number in range(clients)
        ]
        times = [time.perf_counter() for _ in engine.generate(*requests)]
        return (len(times) - clients) / (times[-1] - times[clients - 1])

    measured: dict[int, list[tuple[float, float]]] = {}
    for clients in counts:
        rate(clients, 0)
        pairs = []
        for number in range(options.pairs):
            first = rate(clients, options.delay if number % 2 else 0)
            second = rate(clients, 0 if number % 2 else options.delay)
            pairs.append((second, first) if number % 2 else (first, second))
        measured[clients] = pairs
    return measured


def main() -> None:
    """Start both ranks, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds, one way")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = options.model or asyncio.run(ensure_demo())
    if options.rank:
        rank_main(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts.json"
        base = ports.choose(2)
        hosts.write_text(json.dumps([[f"127.0.0.1:{base + rank}"] for rank in range(2)]))
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.latency", *sys.argv[1:], "--rank"],
                env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            output, _ = ranks[0].communicate(timeout=DEADLINE_S)
            if ranks[0].returncode:
                sys.exit("rank 0 failed; see its error above")
            measured = json.loads(output)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    held = True
    for clients, pairs in measured.items():
        ratios = sorted(slow / fast for fast, slow in pairs)
        ratio = statistics.median(ratios)
        held &= ratio >= BAR
        summary = {
            "clients": int(clients),
            "delay_s": options.delay,
            "fast_tok_s": round(statistics.median(fast for fast, _ in pairs), 1),
            "slow_tok_s": round(statistics.median(slow for _, slow in pairs), 1),
            "ratio": round(ratio, 3),
            "ratios": [round(one, 3) for one in ratios],
            "bar": BAR,
            "held": ratio >= BAR,
        }
        print(json.dumps(summary), flush=True)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
