"""Sync through real sshd and real rsync, one sshd per simulated Mac."""

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.events import Event
from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync import copies
from jaccl_kernel.steps.sync.events import CopyProgress
from jaccl_kernel.steps.sync.report import SyncReport
from jaccl_kernel.steps.sync.sync import sync
from jaccl_kernel.topology.facts import Address, ConnectedDevice, InterfaceFacts, NodeFacts, PortFacts
from tests.conftest import until
from tests.events import bodies
from tests.sshd import Macs, start_macs
from tests.steps import copying
from tests.steps.shards import contents, make_shards

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.needs("rsync"),
    pytest.mark.usefixtures("nothing_left"),
]

NAME = "it's $HOME – 日本"
NAMES = ("mac1", "mac2", "mac3")


@pytest.fixture
def macs(tmp_path: Path) -> Iterator[Macs]:
    with start_macs(tmp_path / "macs", NAMES) as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "here" / NAME)


def place(macs: Macs, mac: str, name: str = NAME) -> Path:
    return macs[mac].home / "models" / name


def facts(cables: dict[int, tuple[str, str]] | None = None) -> list[NodeFacts]:
    """Three Macs, mac1 cabled to the others; `cables` gives the addresses at mac1's and at the other end."""
    nodes = [NodeFacts(name, name, memory=64 << 30, ports=(), interfaces=()) for name in NAMES]
    for other, (near, far) in (cables or {}).items():
        for index, peer, ip in ((0, other, near), (other, 0, far)):
            port = PortFacts(
                number=peer + 1,
                domain_uuid=f"{index}-{peer}",
                interface=f"en{peer}",
                current_gbps=80.0,
                plugged=(ConnectedDevice(domain_uuid=f"{peer}-{index}"),),
            )
            interface = InterfaceFacts(f"en{peer}", ipv4=(Address(ip, 8),))
            node = nodes[index]
            nodes[index] = replace(
                node, ports=(*(node.ports or ()), port), interfaces=(*(node.interfaces or ()), interface)
            )
    return nodes


async def run(
    macs: Macs,
    model: object,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    known: list[NodeFacts] | None = None,
    local: Node | None = None,
    **options: Any,
) -> SyncReport:
    """Sync; `local` stands in for mac1, as this machine does where it is rank 0."""
    nodes: tuple[Node, ...] = tuple(SshNode(name, options=macs.options) for name in NAMES)
    nodes = (local, *nodes[1:]) if local else nodes
    cluster = Cluster(Hostfile(tuple(Host(name) for name in NAMES), "jaccl"), nodes)
    wanted = SyncOptions(model=str(model), **options)
    return await sync(cluster, wanted, facts=known or facts(), on_event=on_event, save=False)


def give_ssh(macs: Macs, mac: str) -> None:
    """Let that Mac reach the others, as if it had keys of its own."""
    (macs[mac].home / "bin" / "ssh").symlink_to(macs.bin / "ssh")


def slow_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macs: Macs, limit: int) -> Path:
    """Limit this machine's rsync to so many KiB/s; the file gets its statistics."""
    stats = tmp_path / "stats"
    bin_ = tmp_path / "slow"
    bin_.mkdir(exist_ok=True)
    rsync = bin_ / "rsync"
    rsync.write_text(
        f'#!/bin/sh\n{copying.program("rsync")} --stats --bwlimit={limit} "$@" | tee -a "{stats}"\n'
    )
    rsync.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{macs.path}")
    return stats


async def test_the_copy_from_this_machine_to_all_goes_over_ssh(macs: Macs, model: Path) -> None:
    report = await run(macs, model)
    assert report.ok, report.nodes
    for mac in NAMES:
        assert contents(place(macs, mac)) == contents(model)
    assert {node.route for node in report.nodes} == {"over the LAN"}
    again = await run(macs, model)
    assert [node.state for node in again.nodes] == ["identical"] * 3


async def test_a_node_sends_to_the_others_itself(macs: Macs) -> None:
    make_shards(place(macs, "mac1"))
    give_ssh(macs, "mac1")
    events: list[Event] = []
    report = await run(macs, NAME, events.append)
    assert [node.state for node in report.nodes] == ["identical", "copied", "copied"]
    assert {(node.source, node.route) for node in report.nodes[1:]} == {("mac1", "over the LAN")}
    assert contents(place(macs, "mac3")) == contents(place(macs, "mac1"))
    assert bodies(events, CopyProgress)[-1].done_bytes == report.record["bytes"]


async def test_the_copy_uses_the_cable_if_there_is_one(macs: Macs) -> None:
    """The cable to mac3 has an address that nobody answers: that copy takes the LAN, and says why."""
    make_shards(place(macs, "mac1"))
    give_ssh(macs, "mac1")
    known = facts({1: ("127.0.0.2", "127.0.0.1"), 2: ("127.0.0.2", "127.0.0.9")})
    report = await run(macs, NAME, known=known)
    assert report.ok, report.nodes
    assert report.nodes[1].route == "over Thunderbolt (127.0.0.1)"
    assert report.nodes[1].notes == ()
    assert report.nodes[2].route == "over the LAN"
    assert "route over Thunderbolt (127.0.0.9) from mac1 failed" in report.nodes[2].notes[0]


async def test_this_machine_as_a_node_sends_and_fetches_along_the_cables(macs: Macs, tmp_path: Path) -> None:
    home = tmp_path / "rank 0"
    home.mkdir()
    local = LocalNode("mac1", home)
    known = facts({1: ("127.0.0.2", "127.0.0.1"), 2: ("127.0.0.2", "127.0.0.1")})
    source = make_shards(place(macs, "mac2"))
    fetched = await run(macs, NAME, known=known, local=local)
    assert fetched.ok, fetched.nodes
    assert (fetched.nodes[0].source, fetched.nodes[0].route) == ("mac2", "over Thunderbolt (127.0.0.2)")
    assert (fetched.nodes[2].source, fetched.nodes[2].route) == ("mac1", "over Thunderbolt (127.0.0.1)")
    assert contents(home / "models" / NAME) == contents(source)
    shutil.rmtree(place(macs, "mac3"))
    shutil.rmtree(source)
    sent = await run(macs, NAME, known=known, local=local)
    assert sent.ok, sent.nodes
    assert {node.route for node in sent.nodes[1:]} == {"over Thunderbolt (127.0.0.1)"}


async def test_a_source_without_keys_is_relayed_and_said_so(macs: Macs) -> None:
    source = make_shards(place(macs, "mac1"))
    (source / "a b").mkdir()
    (source / "a b" / "[1]*.txt").write_text("x")
    report = await run(macs, NAME)
    assert report.ok, report.nodes
    assert report.nodes[2].route == "relayed through this machine"
    assert any("mac1 cannot connect to" in note for note in report.nodes[2].notes)
    assert contents(place(macs, "mac3")) == contents(source)


async def test_a_mac_that_is_off_is_reported_and_the_others_get_the_model(macs: Macs, model: Path) -> None:
    macs.stop("mac2")
    report = await run(macs, model)
    assert [node.state for node in report.nodes] == ["copied", "not tested", "copied"]
    assert "no ssh server listens" in report.nodes[1].error
    assert report.nodes[1].fix
    assert not report.ok


async def test_a_mac_that_drops_in_the_middle_is_named_and_the_others_go_on(
    macs: Macs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "REBOOT_S", 0.0)
    big = make_shards(tmp_path / "here" / NAME, total=2_000_000)
    slow_rsync(tmp_path, monkeypatch, macs, 400)

    def drop(event: Event) -> None:
        for progress in bodies([event], CopyProgress):
            if progress.node == "mac2" and progress.done_bytes > 0:
                macs.stop("mac2")

    report = await run(macs, big, drop)
    assert [node.state for node in report.nodes] == ["copied", "failed", "copied"]
    assert "mac2" in report.nodes[1].error
    assert report.nodes[1].kept
    assert not place(macs, "mac2").exists()
    assert contents(place(macs, "mac3")) == contents(big)


async def test_a_copy_resumes_after_a_kill(
    macs: Macs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 4_000_000
    big = make_shards(tmp_path / "here" / NAME, files=1, total=total)
    stats = slow_rsync(tmp_path, monkeypatch, macs, 600)
    half = asyncio.Event()

    def on(event: Event) -> None:
        if any(progress.done_bytes > total / 2 for progress in bodies([event], CopyProgress)):
            half.set()

    task = asyncio.create_task(run(macs, big, on))
    await asyncio.wait_for(half.wait(), 120)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not macs.running(), "rsync to end on the Macs")
    kept = {mac: _partial_bytes(macs, mac) for mac in NAMES}
    assert not any(place(macs, mac).exists() for mac in NAMES)
    assert max(kept.values()) > total / 3
    stats.unlink()
    report = await run(macs, big)
    assert report.ok, report.nodes
    sent = sum(
        int(number.replace(",", "")) for number in re.findall(r"bytes sent: ([\d,]+)", stats.read_text())
    )
    missing = 3 * report.record["bytes"] - sum(kept.values())
    assert sent - missing < 0.05 * sum(kept.values())
    assert contents(place(macs, "mac1")) == contents(big)


def _partial_bytes(macs: Macs, mac: str) -> int:
    partial = place(macs, mac, f".{NAME}.partial")
    return sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())


async def test_a_named_source_behind_ssh_gives_what_it_has_elsewhere(macs: Macs) -> None:
    kept = make_shards(macs["mac2"].home / "Down loads" / "big")
    give_ssh(macs, "mac2")
    report = await run(macs, "~/Down loads/big", source="mac2", dest="~/models/big")
    assert report.ok, report.nodes
    assert report.nodes[1].route == "local copy"
    for mac in NAMES:
        assert contents(place(macs, mac, "big")) == contents(kept)


async def test_an_absolute_folder_is_the_same_on_every_node(macs: Macs, model: Path, tmp_path: Path) -> None:
    dest = tmp_path / "volumes" / "one for all"
    report = await run(macs, model, dest=str(dest), check=True)
    assert {node.path for node in report.nodes} == {str(dest)}
    assert not dest.exists()
