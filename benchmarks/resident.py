"""Ranks that stay, in numbers: start, no-op, a stream, a second benchmark, a death, and what SIGKILL leaves.

    .venv/bin/python -m benchmarks.resident [--model DIR] [--rounds 5]

Two local ranks over ring, with the demo model. Each figure stands beside its bar; exit status 0 only if all
were held. Timings are this machine's: run it while nothing else does.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ipyparallel
import psutil

from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.launch.run import ignore
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.rehearsal.homes import make_hostfile

KERNEL = (
    "import sys, time\n"
    "from jaccl_kernel.notebook.resident import Ranks\n"
    "from jaccl_kernel.rehearsal.homes import make_hostfile\n"
    "ranks = Ranks.start(make_hostfile(2)); print('up', flush=True); time.sleep(600)\n"
)
NO_OPS = 200
GONE_S = 20.0  # how long what should be gone is waited for


def start_seconds() -> float:
    """From the call until both ranks are joined and proven."""
    began = time.perf_counter()
    ranks = Ranks.start(make_hostfile(2))
    took = time.perf_counter() - began
    ranks.close()
    return took


def no_op_ms(ranks: Ranks) -> list[float]:
    """A call of nothing on all ranks."""
    times = []
    for _ in range(NO_OPS):
        began = time.perf_counter()
        ranks.view.apply_sync(int)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def live_share(ranks: Ranks) -> float:
    """Of a 20-token answer: which part of its time passes between its first and its last words."""
    came: list[float] = []
    began = time.perf_counter()
    ranks.prompt(
        "Count to ten, please.",
        max_tokens=20,
        temperature=0,
        on_words=lambda *_: came.append(time.perf_counter()),
    )
    return (came[-1] - came[0]) / (time.perf_counter() - began)


def second_bench_s(ranks: Ranks) -> float:
    """From asking for a second benchmark until its first generation begins on both ranks."""
    ranks.bench(prompt_tokens=32, max_tokens=4, repeats=1)
    begun: dict[int, float] = {}

    def heard(event: Event) -> None:
        if isinstance(event.body, Stage) and event.body.name == "warm-up":
            begun.setdefault(event.rank, time.perf_counter())

    ranks.on_event = heard
    began = time.perf_counter()
    ranks.bench(prompt_tokens=32, max_tokens=4, repeats=1)
    ranks.on_event = ignore
    return max(begun.values()) - began


def told_after(victim: str) -> float:
    """From a SIGKILL of a rank or of the controller until a pending result says so."""
    before = set(psutil.Process().children())
    ranks = Ranks.start(make_hostfile(2))
    started = [one for one in psutil.Process().children() if one not in before]
    family = [child for one in started for child in (one, *one.children(recursive=True))]
    pending = ranks.view.apply_async(time.sleep, 60)
    time.sleep(0.3)  # it runs by now
    if victim == "rank 1":
        pid = ranks.pids[1]
    else:
        pid = next(one.pid for one in started if "jaccl_kernel.launch.controller" in one.cmdline())
    assert pid
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    try:
        pending.get(timeout=GONE_S)
    except (ipyparallel.error.CompositeError, ipyparallel.error.RemoteError):
        took = time.perf_counter() - began
    ranks.close()
    assert psutil.wait_procs(family, timeout=GONE_S)[1] == []
    return took


def gone_after_kernel() -> float:
    """From a SIGKILL of the process that started the ranks until nothing is left of them."""
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    assert kernel.stdout.readline() == "up\n"
    family = psutil.Process(kernel.pid).children(recursive=True)
    began = time.perf_counter()
    kernel.kill()
    left = psutil.wait_procs(family, timeout=GONE_S)[1]
    took = time.perf_counter() - began
    for one in left:
        one.kill()
    kernel.communicate()
    return took


def main() -> None:
    """Measure all, and print each figure with its bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = options.model or asyncio.run(ensure_demo())
    held = []

    def show(name: str, value: float, unit: str, good: Callable[[float], bool], bar: str) -> None:
        held.append(good(value))
        print(f"{name:<58}{value:>9.2f} {unit:<4} {bar:<8} {'held' if held[-1] else 'NOT HELD'}", flush=True)

    starts = [start_seconds() for _ in range(options.rounds)]
    show("start of 2 local ranks, joined and proven, median", statistics.median(starts), "s",
         lambda s: s < 3, "< 3")  # fmt: skip
    with Ranks.start(make_hostfile(2)) as ranks:
        ranks.load(model)
        times = no_op_ms(ranks)
        show("no-op on both ranks, p50", statistics.median(times), "ms", lambda ms: ms < 10, "< 10")
        ranks.prompt("Hello", max_tokens=2, on_words=lambda *_: None)
        show("of a 20-token answer's time, that its words come in", live_share(ranks) * 100, "%",
             lambda share: share > 50, "live")  # fmt: skip
        show("a second benchmark, until it generates", second_bench_s(ranks), "s", lambda s: s < 1, "< 1")
    for victim in ("rank 1", "the controller"):
        took = statistics.median(told_after(victim) for _ in range(3))
        show(f"SIGKILL of {victim}: pending results say so", took, "s", lambda s: s < 1, "< 1")
    show("SIGKILL of the kernel: nothing is left", gone_after_kernel(), "s", lambda s: s < 5, "< 5")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
