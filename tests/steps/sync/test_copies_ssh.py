"""A model crosses this machine's uplink once, then goes from Mac to Mac: over real sshd and rsync."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaccl_kernel.core.events import Event, Line
from jaccl_kernel.steps.sync.events import CopyProgress, NodeFinished
from jaccl_kernel.steps.sync.report import NodeSync
from tests.events import bodies
from tests.sshd import Macs, start_macs
from tests.steps.shards import contents, make_shards
from tests.steps.sync.test_sync_ssh import NAME, NAMES, facts, give_ssh, place, run, slow_rsync

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.needs("rsync"),
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def macs(tmp_path: Path) -> Iterator[Macs]:
    with start_macs(tmp_path / "macs", NAMES) as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "here" / NAME, total=2_000_000)


def sent(stats: Path) -> int:
    """The bytes that this machine's rsync sent."""
    return sum(
        int(number.replace(",", "")) for number in re.findall(r"bytes sent: ([\d,]+)", stats.read_text())
    )


def from_here(nodes: tuple[NodeSync, ...]) -> list[str]:
    return [node.node for node in nodes if node.source == "this machine"]


async def test_one_copy_leaves_this_machine_and_the_nodes_pass_it_on(
    macs: Macs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mac in NAMES:
        give_ssh(macs, mac)
    stats = slow_rsync(tmp_path, monkeypatch, macs, 0)
    events: list[Event] = []
    report = await run(macs, model, events.append)
    assert report.ok, report.nodes
    assert from_here(report.nodes) == ["mac1"]
    assert {node.source for node in report.nodes[1:]} <= {"mac1", "mac2"}
    for mac in NAMES:
        assert contents(place(macs, mac)) == contents(model)
    assert report.record["bytes"] <= sent(stats) < 1.02 * report.record["bytes"]
    rounds = [line.text for line in bodies(events, Line) if line.text.startswith("round ")]
    assert rounds == [
        "round 1 of 3: this machine → mac1",
        "round 2 of 3: mac1 → mac2",
        "round 3 of 3: mac1 → mac3",
    ]


async def test_from_the_first_mac_on_it_goes_over_the_cables(macs: Macs, model: Path) -> None:
    for mac in NAMES:
        give_ssh(macs, mac)
    known = facts({1: ("127.0.0.2", "127.0.0.1"), 2: ("127.0.0.2", "127.0.0.1")})
    report = await run(macs, model, known=known)
    assert report.ok, report.nodes
    assert from_here(report.nodes) == ["mac1"]
    assert {node.route for node in report.nodes[1:]} == {"over Thunderbolt (127.0.0.1)"}


async def test_without_keys_the_commands_are_given_that_make_them(macs: Macs, model: Path) -> None:
    """mac1 has an ssh of its own without any key; the given commands, run as they are, make it log in."""
    home = macs["mac1"].home
    own = home / "bin" / "ssh"
    own.write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {home}/.ssh/id_ed25519 "
        f'-o UserKnownHostsFile={home}/.ssh/known_hosts "$@"\n'
    )
    own.chmod(0o755)
    allowed = macs["mac2"].home.parent / "authorized_keys"
    folder = macs["mac2"].home / ".ssh"
    folder.mkdir()
    allowed.rename(folder / "authorized_keys")
    allowed.symlink_to(folder / "authorized_keys")
    report = await run(macs, model)
    assert report.ok, report.nodes
    assert from_here(report.nodes) == list(NAMES)
    notes = report.nodes[1].notes
    assert "route over the LAN from mac1 failed: mac1 cannot connect to mac2" in notes[0]
    commands = [note for note in notes if note.startswith("ssh ")]
    assert len(commands) == 3
    for _ in range(2):  # again: no second key, no second line
        for command in commands:
            environment = {**os.environ, "PATH": macs.path}
            subprocess.run(["/bin/sh", "-c", command], check=True, env=environment, timeout=120)
    key = (home / ".ssh" / "id_ed25519.pub").read_text().strip()
    assert (folder / "authorized_keys").read_text().count(key) == 1
    shutil.rmtree(place(macs, "mac2"))
    again = await run(macs, NAME, source="mac1")
    assert (again.nodes[1].source, again.nodes[1].notes) == ("mac1", ())


async def test_an_unknown_failure_on_one_way_is_named_and_the_next_way_is_used(
    macs: Macs, model: Path
) -> None:
    give_ssh(macs, "mac1")
    sender = macs["mac1"].home / "bin" / "rsync"
    real = shlex.quote(shutil.which("rsync") or "")
    sender.write_text(
        f'#!/bin/sh\ncase "$*" in *--server*) exec {real} "$@" ;; esac\necho a strange message >&2\nexit 42\n'
    )
    sender.chmod(0o755)
    report = await run(macs, model)
    assert report.ok, report.nodes
    assert report.nodes[1].source == "this machine"
    assert "from mac1 failed: rsync failed with status 42: a strange message" in report.nodes[1].notes[0]


async def test_a_mac_that_restarts_in_the_middle_is_tried_again_at_the_end(
    macs: Macs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = make_shards(tmp_path / "here" / NAME, total=1_500_000)
    slow_rsync(tmp_path, monkeypatch, macs, 400)
    told: list[Event] = []
    dropped = False

    def on(event: Event) -> None:
        nonlocal dropped
        told.append(event)
        if not dropped and any(
            progress.node == "mac2" and progress.done_bytes for progress in bodies([event], CopyProgress)
        ):
            dropped = True
            macs.stop("mac2")
        if any(line.text.startswith("mac2: no answer; waiting") for line in bodies([event], Line)):
            macs.restart("mac2")

    report = await run(macs, big, on)
    assert [node.state for node in report.nodes] == ["copied", "copied", "copied"]
    assert any(note.startswith("the first try failed: ") for note in report.nodes[1].notes)
    assert contents(place(macs, "mac2")) == contents(big)
    finished = [body.node.state for body in bodies(told, NodeFinished) if body.node.node == "mac2"]
    assert finished == ["copied"]


async def test_when_the_first_mac_fails_another_one_takes_its_place(
    macs: Macs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mac in NAMES:
        give_ssh(macs, mac)
    stats = slow_rsync(tmp_path, monkeypatch, macs, 0)
    folder = macs["mac1"].home / "models"
    folder.mkdir()
    (folder / f".{NAME}.partial").write_text("a file in the place of the folder")
    report = await run(macs, model)
    assert [node.state for node in report.nodes] == ["failed", "copied", "copied"]
    assert from_here(report.nodes) == ["mac2"]
    assert report.nodes[2].source == "mac2"
    assert sent(stats) < 1.02 * report.record["bytes"]
