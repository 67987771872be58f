"""The whole path over real sshd: scan, environment, hostfile, verify, sync, bench.

Each Mac is an sshd with a home of its own whose commands answer as a simulated Mac's; the ranks join over
MLX's TCP ring, since JACCL needs the hardware.
"""

import ipaddress
import socket
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.core.options import BenchOptions, SyncOptions
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.rehearsal import scripts
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.plan import local_versions
from jaccl_kernel.steps.bench import bench
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.enable import enable
from jaccl_kernel.steps.environment import environment
from jaccl_kernel.steps.hostfile.configure import configure
from jaccl_kernel.steps.sync.sync import sync
from jaccl_kernel.steps.verify import live_checks
from jaccl_kernel.steps.verify.verify import verify
from tests.sshd import start_macs

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.needs("rsync"),
    pytest.mark.usefixtures("nothing_left"),
]


async def test_the_path_is_walked_over_real_ssh(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = live_checks.processes

    async def own(node: Node, *, only_own: bool = False) -> list[live_checks.Process]:
        return await everyone(node, only_own=True)  # other tests' ranks share this machine with these Macs

    monkeypatch.setattr(live_checks, "processes", own)
    spec = ClusterSpec.healthy(2)
    for number in range(2):
        spec = spec.with_mac(number, name=f"mac{number + 1}", **local_versions())
    with start_macs(tmp_path / "macs") as macs:
        monkeypatch.setenv("PATH", macs.path)
        for number in range(2):
            home = macs[f"mac{number + 1}"].home
            for name, text in scripts.scripts(spec, number, home, sys.executable).items():
                command = home / "bin" / name
                command.parent.mkdir(exist_ok=True)
                command.write_text(text)
                command.chmod(0o755)

        named = Cluster.named(["mac1", "mac2"])
        lights = await enable(named)
        assert lights.ok, lights.lights
        drift = await environment.check(named, python=sys.executable)
        assert drift.ok, drift.problems
        made = await configure(named, path=tmp_path / "two.local.json", write_it=True)
        assert made.written
        assert made.hostfile
        assert made.hostfile.rdma == ((None, "rdma_en3"), ("rdma_en3", None))

        cluster = Cluster.read(tmp_path / "two.local.json")
        report = await verify(cluster, python=sys.executable)
        verdicts = {check.name: check.verdict for check in report.checks}
        coordinator = verdicts.pop("coordinator")
        seen = [name for name, verdict in verdicts.items() if verdict == "ok"]
        assert seen == ["ssh", "environment", "rdma", "ports", "gid", "wiring", "stale"], verdicts
        # the simulated address of rank 0 is none of this machine's, and no job is tried without it
        assert coordinator == "failed"
        assert {verdicts[name] for name in set(verdicts) - set(seen)} == {"not tested"}

        # what this machine can run: the same Macs over the TCP ring, at an address that it really has
        address = own_address()
        # both are this machine, and two Macs of one address are rightly refused: spell it in two ways
        spellings = (address, str(int(ipaddress.IPv4Address(address)))) if address else ("127.0.0.1",) * 2
        hosts = tuple(
            replace(host, ips=(one,)) for host, one in zip(cluster.hostfile.hosts, spellings, strict=True)
        )
        cluster = Cluster.of(replace(cluster.hostfile, hosts=hosts, backend="ring"))
        synced = await sync(cluster, SyncOptions(model=str(tiny_model)))
        assert synced.ok, synced.record
        model = f"~/models/{tiny_model.name}"
        ranks = [1, 2] if address else [1]  # several nodes on loopback are rightly refused
        options = BenchOptions(model=model, max_tokens=6, repeats=1, prompt="Hi", ranks=tuple(ranks))
        measured = await bench(cluster.hostfile, options)
        assert [point["ranks"] for point in measured.points] == ranks
        assert measured.ok
        assert measured.record["provenance"]["hosts"] == ["mac1", "mac2"][: len(ranks)]


def own_address() -> str | None:
    """An IPv4 address of this machine that is not loopback, if it has one."""
    found = [one for addresses in psutil.net_if_addrs().values() for one in addresses]
    usable = [one.address for one in found if one.family == socket.AF_INET]
    return next((address for address in usable if not address.startswith("127.")), None)
