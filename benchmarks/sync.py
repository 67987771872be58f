"""One model to three Macs over three rate-limited links: ours against the seed's loop, and a resumed copy.

    .venv/bin/python -m benchmarks.sync [--megabytes 60] [--rate 2] [--rounds 1]

The Macs are real sshd servers on loopback; this machine's `ssh` passes what it sends through a throttle of
its own per Mac, which also counts the bytes. The seed's loop is `rsync -a --progress -e ssh` to one Mac after
the other; ours also looks at every node first and proves every file by SHA-256 afterwards. Then a sync is
killed half-way (SIGKILL to it and to every rsync and ssh under it) and run again: told is what went over the
links again, in per cent of what had arrived.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync.sync import sync
from tests.sshd import Macs, start_macs
from tests.steps.shards import make_shards

NAMES = ("mac1", "mac2", "mac3")

# The real ssh, its stdin fed at RATE bytes per second; the bytes are added to a file per Mac.
THROTTLE = r"""
import os, subprocess, sys, threading, time
rate, folder, ssh, names = {rate}, {folder!r}, {ssh!r}, {names!r}
argv = sys.argv[1:]
if not any("rsync" in word for word in argv):  # not a copy: let it through
    os.execv(ssh, [ssh, *argv])
name = next(word for word in argv if word in names)
child = subprocess.Popen([ssh, *argv], stdin=subprocess.PIPE)
# as ssh, it ends when the far side does
threading.Thread(target=lambda: os._exit(child.wait()), daemon=True).start()
began, sent = time.monotonic(), 0
with open(os.path.join(folder, name), "a") as count:
    while data := os.read(0, 65536):
        try:
            child.stdin.write(data)
            child.stdin.flush()
        except BrokenPipeError:
            break
        sent += len(data)
        print(len(data), file=count, flush=True)
        if (ahead := sent / rate - (time.monotonic() - began)) > 0:
            time.sleep(ahead)
child.stdin.close()
threading.Event().wait()
"""

# A sync in a process of its own, to be killed.
CHILD = "import asyncio, benchmarks.sync as b, sys; asyncio.run(b.ours(sys.argv[1]))"


def seed(model: Path) -> None:
    """Copy as the seed does: one Mac after the other."""
    for name in NAMES:
        subprocess.run(["ssh", name, f"mkdir -p models/{model.name}"], check=True)
        place = f"{name}:models/{model.name}/"
        command = ["rsync", "-a", "--progress", "-e", "ssh", f"{model}/", place]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def ours(model: str) -> None:
    """Copy as we do."""
    cluster = Cluster.of(Hostfile(tuple(Host(name) for name in NAMES), "jaccl"))
    report = await sync(cluster, SyncOptions(model=model), save=False)
    if not report.ok:
        sys.exit(f"the sync failed: {report.nodes}")


def clear(macs: Macs, counts: Path) -> None:
    """Take the model away from every Mac, and begin to count anew."""
    for name in NAMES:
        shutil.rmtree(macs[name].home / "models", ignore_errors=True)
        (counts / name).unlink(missing_ok=True)


def sent_bytes(counts: Path) -> int:
    """Bytes that went over the three links."""
    files = [counts / name for name in NAMES]
    return sum(sum(map(int, file.read_text().split())) for file in files if file.exists())


def arrived(macs: Macs) -> int:
    """Bytes of the model that lie in hidden folders."""
    return sum(
        path.stat().st_size
        for name in NAMES
        for path in macs[name].home.glob("models/.*.partial/**/*")
        if path.is_file()
    )


def kill_half_way(model: Path, macs: Macs, total: int) -> int:
    """Start a sync, kill all of it when half has arrived, and return what had."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(model)])
    while arrived(macs) < total / 2:
        if process.poll() is not None:
            sys.exit("the sync ended before it could be killed")
        time.sleep(0.05)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    family += macs.running()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    while macs.running():
        time.sleep(0.05)
    return arrived(macs)


def measure(root: Path, megabytes: int, rate: float, rounds: int) -> None:
    """Run everything, print everything."""
    model = make_shards(root / "model", files=4, total=megabytes * 10**6)
    total = len(NAMES) * sum(file.stat().st_size for file in model.iterdir())
    counts = root / "counts"
    counts.mkdir()
    with start_macs(root / "macs", NAMES) as macs:
        throttle = root / "links" / "ssh"
        throttle.parent.mkdir()
        told = {"rate": rate * 1e6, "folder": str(counts), "ssh": str(macs.bin / "ssh"), "names": NAMES}
        throttle.write_text(f"#!{sys.executable}\n{THROTTLE.format(**told)}")
        throttle.chmod(0o755)
        os.environ["PATH"] = f"{throttle.parent}:{os.environ['PATH']}"
        loops, syncs = [], []
        for number in range(1, rounds + 1):
            clear(macs, counts)
            began = time.monotonic()
            seed(model)
            loops.append(time.monotonic() - began)
            clear(macs, counts)
            began = time.monotonic()
            asyncio.run(ours(str(model)))
            syncs.append(time.monotonic() - began)
            print(f"round {number}: the seed's loop {loops[-1]:.1f} s, ours {syncs[-1]:.1f} s", flush=True)
        loop, mine = statistics.median(loops), statistics.median(syncs)
        links = f"{megabytes} MB to {len(NAMES)} Macs, {rate:g} MB/s each"
        print(f"{links}: {loop:.1f} s against {mine:.1f} s, {loop / mine:.2f}x")
        clear(macs, counts)
        had = kill_half_way(model, macs, total)
        for name in NAMES:
            (counts / name).unlink(missing_ok=True)
        asyncio.run(ours(str(model)))
        again = sent_bytes(counts) - (total - had)
        print(
            f"killed with {had / 1e6:.1f} of {total / 1e6:.1f} MB there: {again / 1e6:.2f} MB sent again, "
            f"{100 * again / had:.2f} %"
        )


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2.0, help="MB/s of each link (default 2)")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaccl-sync-") as root:
        os.environ["JACCL_CACHE"] = str(Path(root) / "cache")
        measure(Path(root), options.megabytes, options.rate, options.rounds)


if __name__ == "__main__":
    main()
