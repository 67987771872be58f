"""Our 2-rank job against plain `mlx.launch -n 2`: same machine, model, prompt and rank program, side by side.

    .venv/bin/python benchmarks/launch.py [--model DIR] [--max-tokens 48] [--rounds 3]

Each round runs both, in turn; the medians over the rounds and their ratio are printed. The plain run is what
a person would type: no thread count, no wire. Also measured: the CPU that a job uses while its ranks only
wait (launcher included), in per cent of a core over 10 s, and the same for mlx.launch; and how long after a
SIGKILL of our launcher something of the job is left: the bar is 5 s, and exit status 1 where it is not held.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from jaccl_kernel.core.messages import Go
from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.bench import bench

PROMPT = "Write 5 sentences about Thunderbolt RDMA."
LAUNCH = str(Path(sys.executable).with_name("mlx.launch"))
IDLE_S = 10.0
GONE_S = 30.0  # how long what should be gone is waited for
GONE_BAR_S = 5.0


def plain_tps(model: Path, max_tokens: int) -> float:
    """Tokens per second of the plain launcher."""
    port = ports.choose(2)
    done = subprocess.run(
        [
            *(LAUNCH, "-n", "2", "--python", sys.executable, "--starting-port", str(port)),
            *("--", "-m", "jaccl_kernel.ranks", "bench", "--model", str(model), "--prompt", PROMPT),
            *("--max-tokens", str(max_tokens), "--repeats", "1"),
        ],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    found = re.search(r"generation: \d+ tokens, ([\d.]+) tokens/s", done.stdout)
    if found is None:
        sys.exit(f"mlx.launch printed no rate:\n{done.stdout}\n{done.stderr}")
    return float(found[1])


async def our_tps(model: Path, max_tokens: int) -> float:
    """Tokens per second of our job."""
    options = BenchOptions(model=str(model), prompt=PROMPT, max_tokens=max_tokens, ranks=(2,), repeats=1)
    report = await bench(make_hostfile(2), options, save=False)
    return float(report.points[0]["generation_tps"]["median"])


@contextlib.asynccontextmanager
async def idle_job() -> AsyncIterator[Job]:
    """Two ranks that have joined, and do nothing."""
    spec = JobSpec(make_hostfile(2), ("smoke", "--linger"), "ring", starting_port=ports.choose(2))
    async with Job(spec) as job:
        while not all(rank.ready for rank in job.ranks):
            await job.next_event(60)
        await job.send(Go(60))
        while not all(rank.stage == "idle" for rank in job.ranks):
            await job.next_event(60)
        yield job


async def our_idle() -> float:
    """Per cent of a core that an idle job of 2 ranks uses, launcher included."""
    async with idle_job() as job:
        assert job.pid
        return await asyncio.to_thread(cpu_percent, job.pid)


async def gone_after_launcher() -> float:
    """Seconds from a SIGKILL of the launcher until none of its ranks is left."""
    async with idle_job() as job:
        assert job.pid
        family = psutil.Process(job.pid).children(recursive=True)
        began = time.perf_counter()
        os.kill(job.pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, family, GONE_S)
        return time.perf_counter() - began


def plain_idle() -> float:
    """The same for mlx.launch, with ranks that sleep."""
    process = subprocess.Popen(
        [LAUNCH, "-n", "2", "--python", sys.executable, "--", "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        process.stdout.readline()
        used = cpu_percent(process.pid)
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.wait(timeout=30)
    return used


def cpu_percent(pid: int) -> float:
    """Per cent of a core used by a process and its children over IDLE_S seconds."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    before = sum(sum(one.cpu_times()[:2]) for one in family)
    time.sleep(IDLE_S)
    return (sum(sum(one.cpu_times()[:2]) for one in family) - before) / IDLE_S * 100


async def main() -> None:
    """Run both, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = options.model or await ensure_demo()
    plain, ours = [], []
    for number in range(1, options.rounds + 1):
        plain.append(plain_tps(model, options.max_tokens))
        ours.append(await our_tps(model, options.max_tokens))
        print(f"round {number}: mlx.launch {plain[-1]:.1f} tok/s, ours {ours[-1]:.1f} tok/s", flush=True)
    theirs, mine = statistics.median(plain), statistics.median(ours)
    print(f"median: mlx.launch {theirs:.1f} tok/s, ours {mine:.1f} tok/s: {mine / theirs:.1f}x")
    print(f"idle: mlx.launch {plain_idle():.0f} % of a core, ours {await our_idle():.1f} %")
    left = await gone_after_launcher()
    print(f"SIGKILL of the launcher: nothing is left after {left:.1f} s (bar: {GONE_BAR_S:.0f} s)")
    if left >= GONE_BAR_S:
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main())
