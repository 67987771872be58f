"""Our server against mlx_lm.server: same model, ranks, machine, prompts and clients, side by side in one run.

    .venv/bin/python -m benchmarks.serve [--model DIR] [--tokens 32] [--clients 1,8,32] [--samples 24]

Measured for each: tokens a second over all clients (streaming, greedy), time to first token alone and while
a stream runs, the time between tokens, and the CPU that it uses idle (all its processes, per cent of a core
over 10 s); for ours also how long something is left of it after a SIGKILL. The peers are
`mlx.launch -n 2 -m mlx_lm.server` as a person would type it, and the same server with its ranks spawned
directly and one math thread each. The bare loop is `ranks bench` on as many ranks. Ends with a line for each
bar, PASS or FAIL, and exits 1 if one failed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.launch import ports
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.notebook.loadtest import Timed, stream_one
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.bench import bench

LAUNCH = str(Path(sys.executable).with_name("mlx.launch"))
SUBJECTS = ("cables", "rivers", "clocks", "bridges", "engines", "gardens", "letters", "winters", "islands")
IDLE_S = 10.0
START_S = 180.0
GONE_S = 30.0  # how long what should be gone is waited for


def prompt(number: int) -> str:
    """A prompt that no other request of the run begins with: a prompt cache is not what is measured."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"{number}. Write a long essay about {subject}, their history and their use in daily life."


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> Timed:
    """Stream one answer and time it."""
    return await stream_one(client, prompt(number), tokens)


def percentile(values: list[float], per_cent: int) -> float:
    """The value that so many per cent are below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * per_cent // 100)]


async def measure(url: str, tokens: int, clients: list[int], samples: int) -> dict[str, float]:
    """All figures of one server."""
    result: dict[str, float] = {}
    numbers = iter(range(1, 100_000))
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        await ask(client, next(numbers), 4)
        for count in clients:
            began = time.perf_counter()
            asked = (ask(client, next(numbers), tokens) for _ in range(count))
            results = await asyncio.gather(*asked, return_exceptions=True)
            took = time.perf_counter() - began
            answers = [one for one in results if isinstance(one, Timed)]
            result[f"failed, {count} clients"] = count - len(answers)
            result[f"tok/s, {count} clients"] = sum(one.tokens for one in answers) / took
            if gaps := [gap for one in answers for gap in one.gaps]:
                result[f"ITL p95 ms, {count} clients"] = percentile(gaps, 95) * 1e3
        alone = [(await ask(client, next(numbers), 2)).ttft or 0.0 for _ in range(samples)]
        running = asyncio.create_task(ask(client, next(numbers), 4000))
        await asyncio.sleep(1.0)
        beside = []
        for _ in range(samples):
            beside.append((await ask(client, next(numbers), 2)).ttft or 0.0)
            if running.done():
                running = asyncio.create_task(ask(client, next(numbers), 4000))
                await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.wait([running])
        for name, times in (("alone", alone), ("beside a stream", beside)):
            result[f"TTFT p50 ms, {name}"] = statistics.median(times) * 1e3
            result[f"TTFT p95 ms, {name}"] = percentile(times, 95) * 1e3
    return result


def idle(process: "subprocess.Popen[bytes]") -> float:
    """Per cent of a core that a process and its children use over IDLE_S seconds."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    before = sum(sum(one.cpu_times()[:2]) for one in family)
    time.sleep(IDLE_S)
    return (sum(sum(one.cpu_times()[:2]) for one in family) - before) / IDLE_S * 100


def gone_after(process: "subprocess.Popen[bytes]") -> float:
    """Seconds from a SIGKILL of a process until none of its children is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.perf_counter()
    process.kill()
    psutil.wait_procs(family, timeout=GONE_S)
    return time.perf_counter() - began


@contextlib.contextmanager
def started(processes: list["subprocess.Popen[bytes]"], url: str) -> Iterator[None]:
    """Wait until the server answers; end its processes, all of them, after the block."""
    families: list[psutil.Process] = []
    try:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            if time.monotonic() > end or any(one.poll() is not None for one in processes):
                sys.exit(f"the server at {url} did not start")
            time.sleep(0.2)
        families = [child for one in processes for child in psutil.Process(one.pid).children(recursive=True)]
        yield
    finally:
        for one in processes:
            one.terminate()
        for one in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(15)
            one.kill()
            one.wait()
        for child in families:  # the peers leave theirs behind
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def our_command(model: Path, folder: Path, port: int) -> list[str]:
    """`jaccl serve` over two simulated Macs."""
    hostfile = folder / "hostfile.json"
    make_hostfile(2).write(hostfile)
    serve = [sys.executable, "-m", "jaccl_kernel.cli", "serve", str(hostfile), "--model", str(model)]
    return [*serve, f"--port={port}", f"--ctrl-port={port + 1}"]


def peer_arguments(model: Path, port: int) -> list[str]:
    """mlx_lm.server's."""
    return ["-m", "mlx_lm.server", "--model", str(model), "--port", str(port), "--log-level", "ERROR"]


def spawned(model: Path, folder: Path, port: int, first: int) -> list["subprocess.Popen[bytes]"]:
    """mlx_lm.server's two ranks without any launcher."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{first + 1}"]]))
    return [
        subprocess.Popen(
            [sys.executable, *peer_arguments(model, port)],
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]


def run_all(
    model: Path, tokens: int, clients: list[int], peers: list[str], samples: int
) -> dict[str, dict[str, float]]:
    """Every server's figures, one server after the other."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for peer in peers:
            port = ports.choose(6)
            url = f"http://127.0.0.1:{port}"
            if peer == "ours":
                processes = [subprocess.Popen(our_command(model, folder, port), stderr=subprocess.DEVNULL)]
            elif peer == "mlx.launch":
                command = [
                    LAUNCH,
                    "-n",
                    "2",
                    "--python",
                    sys.executable,
                    "--starting-port",
                    str(port + 2),
                    "--",
                ]
                processes = [
                    subprocess.Popen(
                        [*command, *peer_arguments(model, port)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                ]
            else:
                processes = spawned(model, folder, port, port + 2)
            with started(processes, url):
                results[peer] = {"idle CPU %": sum(idle(one) for one in processes)}
                results[peer] |= asyncio.run(measure(url, tokens, clients, samples))
                if peer == "ours":
                    results[peer]["left after SIGKILL, s"] = gone_after(processes[0])
            print(
                f"{peer}: {json.dumps({key: round(value, 1) for key, value in results[peer].items()})}",
                flush=True,
            )
    return results


async def bare(model: Path, tokens: int) -> float:
    """Tokens a second of the bare generate loop on two ranks, prompt included as in a client's view."""
    options = BenchOptions(model=str(model), prompt=prompt(0), max_tokens=tokens, ranks=(2,), repeats=3)
    point = (await bench(make_hostfile(2), options, save=False)).points[0]
    rate, ttft = point["generation_tps"]["median"], point["ttft_s"]["median"]
    count = point["generated_tokens"]
    return float(count / (ttft + (count - 1) / rate))


def verdicts(results: dict[str, dict[str, float]], loop: float) -> list[tuple[bool, str]]:
    """Each bar that could be measured: whether it is held, and the figures."""
    ours = results.get("ours", {})
    bars: list[tuple[bool, str]] = []

    def judge(name: str, figure: float, least: float) -> None:
        bars.append((figure >= least, f"{name}: {figure:.2f}x, the bar is {least}x"))

    for peer, least in (("mlx.launch", 1.5), ("spawned", 1.0)):
        theirs = results.get(peer, {})
        for count in (1, 8):
            key = f"tok/s, {count} clients"
            if key in ours and theirs.get(key):
                judge(f"{key}, against {peer}", ours[key] / theirs[key], least)
        key = "TTFT p50 ms, beside a stream"
        if key in ours and key in theirs:
            judge(f"{key}, {peer}'s against ours", theirs[key] / ours[key], 2.0)
    if "tok/s, 1 clients" in ours:
        judge("tok/s, 1 client, against the bare loop", ours["tok/s, 1 clients"] / loop, 0.95)
    if "idle CPU %" in ours:
        used = ours["idle CPU %"]
        bars.append((used < 2, f"idle CPU: {used:.1f} % of a core, the bar is 2 %"))
    if "left after SIGKILL, s" in ours:
        left = ours["left after SIGKILL, s"]
        bars.append(
            (left < 5, f"SIGKILL of `jaccl serve`: nothing is left after {left:.1f} s, the bar is 5 s")
        )
    return bars


def main() -> None:
    """Measure all, print a table with ratios, and hold them against the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--samples", type=int, default=24, help="requests behind each TTFT")
    parser.add_argument("--peers", default="ours,mlx.launch,spawned")
    options = parser.parse_args()
    model = options.model or asyncio.run(ensure_demo())
    clients = [int(one) for one in options.clients.split(",")]
    results = run_all(model, options.tokens, clients, options.peers.split(","), options.samples)
    loop = asyncio.run(bare(model, options.tokens))
    names = list(results)
    width = max(len(key) for found in results.values() for key in found) + 2
    print(" " * width + "".join(f"{name:>14}" for name in names))
    for key in max(results.values(), key=len):
        print(f"{key:<{width}}" + "".join(f"{results[name].get(key, float('nan')):>14.1f}" for name in names))
    print(f"bare generate loop, 1 client: {loop:.1f} tok/s")
    bars = verdicts(results, loop)
    for held, what in bars:
        print(f"{'PASS' if held else 'FAIL'}  {what}")
    if not all(held for held, _ in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
