"""One model to Macs behind one uplink: bytes over it, ours against the seed's loop, and a resumed copy.

    .venv/bin/python -m benchmarks.sync [--megabytes 60] [--macs 4] [--rate 4] [--rounds 1]

The notebook's machine is outside of the cluster. The Macs are real sshd servers on loopback; what this
machine's `ssh` sends, passes one throttle for all Macs, the uplink, which counts the bytes. The Macs reach
each other without it. The seed's loop is `rsync -a --progress -e ssh` to one Mac after the other; ours also
looks at every node first and proves every file by SHA-256 afterwards. Told is, per way, the time and the
bytes over the uplink as a multiple of the model's size. Then a sync is killed half-way (SIGKILL to it and
to every rsync and ssh under it) and run again: told is what went over the uplink again, in per cent of what
had arrived.
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
from collections.abc import Sequence
from pathlib import Path

import psutil

from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync.sync import sync
from tests.sshd import Macs, start_macs
from tests.steps.shards import make_shards

# The real ssh, its stdin fed at RATE bytes per second for all Macs together; a file counts the bytes.
UPLINK = r"""
import fcntl, os, subprocess, sys, threading, time
rate, count, ssh = {rate}, {count!r}, {ssh!r}
argv = sys.argv[1:]
if not any("rsync" in word for word in argv):  # not a copy: let it through
    os.execv(ssh, [ssh, *argv])
child = subprocess.Popen([ssh, *argv], stdin=subprocess.PIPE)
# as ssh, it ends when the far side does
threading.Thread(target=lambda: os._exit(child.wait()), daemon=True).start()
with open(count, "a") as file:
    while data := os.read(0, 16384):
        fcntl.flock(file, fcntl.LOCK_EX)  # one at a time is on the uplink
        time.sleep(len(data) / rate)
        print(len(data), file=file, flush=True)
        fcntl.flock(file, fcntl.LOCK_UN)
        try:
            child.stdin.write(data)
            child.stdin.flush()
        except BrokenPipeError:
            break
child.stdin.close()
threading.Event().wait()
"""

# A sync in a process of its own, to be killed.
CHILD = "import asyncio, benchmarks.sync as b, sys; asyncio.run(b.ours(sys.argv[1], sys.argv[2:]))"


def seed(model: Path, names: Sequence[str]) -> None:
    """Copy as the seed does: one Mac after the other."""
    for name in names:
        subprocess.run(["ssh", name, f"mkdir -p models/{model.name}"], check=True)
        place = f"{name}:models/{model.name}/"
        command = ["rsync", "-a", "--progress", "-e", "ssh", f"{model}/", place]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def ours(model: str, names: Sequence[str]) -> None:
    """Copy as we do."""
    cluster = Cluster.of(Hostfile(tuple(Host(name) for name in names), "jaccl"))
    report = await sync(cluster, SyncOptions(model=model), save=False)
    if not report.ok:
        sys.exit(f"the sync failed: {report.nodes}")


def clear(macs: Macs, count: Path) -> None:
    """Take the model away from every Mac, and begin to count anew."""
    for mac in macs.by_name.values():
        shutil.rmtree(mac.home / "models", ignore_errors=True)
    count.unlink(missing_ok=True)


def sent_bytes(count: Path) -> int:
    """Bytes that went over the uplink."""
    return sum(map(int, count.read_text().split())) if count.exists() else 0


def arrived(macs: Macs) -> int:
    """Bytes of the model that lie in hidden folders."""
    return sum(
        path.stat().st_size
        for mac in macs.by_name.values()
        for path in mac.home.glob("models/.*.partial/**/*")
        if path.is_file()
    )


def kill_half_way(model: Path, macs: Macs, size: int) -> int:
    """Start a sync, kill all of it when half of the first copy has arrived, and return what had."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(model), *macs.by_name])
    while arrived(macs) < size / 2:
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


def measure(root: Path, names: Sequence[str], megabytes: int, rate: float, rounds: int) -> None:
    """Run everything, print everything."""
    model = make_shards(root / "model", files=4, total=megabytes * 10**6)
    size = sum(file.stat().st_size for file in model.iterdir())
    count = root / "count"
    with start_macs(root / "macs", names) as macs:
        for mac in macs.by_name.values():
            (mac.home / "bin" / "ssh").symlink_to(macs.bin / "ssh")  # keys between the Macs
        uplink = root / "uplink" / "ssh"
        uplink.parent.mkdir()
        told = {"rate": rate * 1e6, "count": str(count), "ssh": str(macs.bin / "ssh")}
        uplink.write_text(f"#!{sys.executable}\n{UPLINK.format(**told)}")
        uplink.chmod(0o755)
        os.environ["PATH"] = f"{uplink.parent}:{os.environ['PATH']}"
        loops, syncs, ratios = [], [], []
        for number in range(1, rounds + 1):
            clear(macs, count)
            began = time.monotonic()
            seed(model, names)
            loops.append(time.monotonic() - began)
            loop_ratio = sent_bytes(count) / size
            clear(macs, count)
            began = time.monotonic()
            asyncio.run(ours(str(model), names))
            syncs.append(time.monotonic() - began)
            ratios.append(sent_bytes(count) / size)
            print(
                f"round {number}: the seed's loop {loops[-1]:.1f} s, {loop_ratio:.3f}x the model "
                f"over the uplink; ours {syncs[-1]:.1f} s, {ratios[-1]:.3f}x",
                flush=True,
            )
        loop, mine = statistics.median(loops), statistics.median(syncs)
        what = f"{megabytes} MB to {len(names)} Macs over an uplink of {rate:g} MB/s"
        print(
            f"{what}: {loop:.1f} s against {mine:.1f} s, {loop / mine:.2f}x; at most {max(ratios):.3f}x sent"
        )
        clear(macs, count)
        had = kill_half_way(model, macs, size)
        count.unlink(missing_ok=True)
        asyncio.run(ours(str(model), names))
        again = sent_bytes(count) - (size - had)
        print(
            f"killed with {had / 1e6:.1f} of {size / 1e6:.1f} MB there: {again / 1e6:.2f} MB sent again, "
            f"{100 * again / had:.2f} %"
        )


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--macs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4.0, help="MB/s of the uplink (default 4)")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    names = [f"mac{number + 1}" for number in range(options.macs)]
    with tempfile.TemporaryDirectory(prefix="jaccl-sync-") as root:
        os.environ["JACCL_CACHE"] = str(Path(root) / "cache")
        measure(Path(root), names, options.megabytes, options.rate, options.rounds)


if __name__ == "__main__":
    main()
