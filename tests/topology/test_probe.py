"""The scan: one round trip, deadlines, and the isolation of failures."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.probe import parse_results, probe, probe_node
from jaccl_kernel.topology.tools.commands import Command
from tests.conftest import until

pytestmark = pytest.mark.usefixtures("nothing_left")
MARK = "@@probe-0"


def node(folder: Path, name: str = "mac", **scripts: str) -> LocalNode:
    """A node whose own commands come first in PATH."""
    bin_folder = folder / name / "bin"
    bin_folder.mkdir(parents=True)
    for command, script in scripts.items():
        (bin_folder / command).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / command).chmod(0o755)
    return LocalNode(name, home=folder / name, path=f"{bin_folder}:/usr/bin:/bin")


def without_perl(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> LocalNode:
    """A node that has what the script needs, and no perl."""
    mac = node(folder, **scripts)
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("sh", "mktemp", "cat", "rm", "date", "sleep"):
        (tools / tool).symlink_to(shutil.which(tool) or "/nowhere")
    monkeypatch.setattr("jaccl_kernel.topology.probe.SEARCH_PATH", (str(tools),))
    return LocalNode("mac", home=mac.home, path=f"{mac.home}/bin:{tools}")


async def test_the_output_of_the_commands_is_returned_unchanged(tmp_path: Path) -> None:
    mac = node(
        tmp_path,
        rdma_ctl="printf 'enabled\\n'",
        sw_vers="printf 'ProductVersion:\\t\\t26.5.1\\nBuildVersion:\\t\\t25F80\\n'",
        hostname="printf 'größer'",
    )
    began = time.monotonic()
    [facts] = await probe([mac])
    took = time.monotonic() - began
    assert (facts.rdma, facts.macos, facts.build, facts.hostname) == ("enabled", "26.5.1", "25F80", "größer")
    assert facts.error is None
    assert facts.outcomes["ibv_devinfo"].status == "missing"
    assert facts.clock_offset_s is not None
    assert abs(facts.clock_offset_s) <= took + 1  # whole seconds, told at some time between


async def test_a_command_that_hangs_does_not_affect_the_others(tmp_path: Path) -> None:
    mac = node(tmp_path, ibv_devinfo="echo half; exec sleep 600", rdma_ctl="echo disabled")
    asked = [
        Command("ibv_devinfo", ("ibv_devinfo", "-v"), 1.0),
        Command("rdma_ctl", ("rdma_ctl", "status"), 30.0),
    ]
    facts = await probe_node(mac, asked)
    assert facts.outcomes["ibv_devinfo"].status == "timeout"
    assert facts.devices is None
    assert facts.rdma == "disabled"


STUBBORN = "trap '' ALRM; echo half; while :; do sleep 600; done"


async def test_a_command_that_ignores_its_alarm_does_not_affect_the_others(tmp_path: Path) -> None:
    mac = node(tmp_path, ibv_devinfo=STUBBORN, rdma_ctl="echo disabled")
    asked = [
        Command("ibv_devinfo", ("ibv_devinfo", "-v"), 1.0),
        Command("rdma_ctl", ("rdma_ctl", "status"), 30.0),
    ]
    facts = await probe_node(mac, asked)
    assert facts.error is None
    assert facts.outcomes["ibv_devinfo"].status == "timeout"
    assert facts.rdma == "disabled"


async def test_without_perl_a_command_has_its_deadline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = without_perl(tmp_path, monkeypatch, ibv_devinfo=STUBBORN, rdma_ctl="echo disabled")
    asked = [
        Command("ibv_devinfo", ("ibv_devinfo", "-v"), 1.0),
        Command("rdma_ctl", ("rdma_ctl", "status"), 30.0),
    ]
    facts = await probe_node(mac, asked)
    assert facts.outcomes["ibv_devinfo"].status == "timeout"
    assert facts.rdma == "disabled"


async def test_a_node_without_perl_answers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mac = without_perl(tmp_path, monkeypatch, rdma_ctl="echo enabled")
    facts = await probe_node(
        mac, [Command("rdma_ctl", ("rdma_ctl", "status")), Command("sw_vers", ("sw_vers",))]
    )
    assert facts.rdma == "enabled"
    assert facts.outcomes["sw_vers"].status == "missing"


async def test_an_unreachable_node_fails_alone_with_a_reason(tmp_path: Path) -> None:
    good = node(tmp_path, rdma_ctl="echo enabled")
    gone = LocalNode("gone", home=tmp_path / "nowhere")
    heard: dict[int, NodeFacts] = {}
    first, second = await probe([gone, good], on_node=heard.__setitem__)
    assert first.error
    assert "nowhere" in first.error
    assert (second.error, second.rdma) == (None, "enabled")
    assert heard == {0: first, 1: second}


async def test_an_interrupted_scan_ends_every_process(tmp_path: Path) -> None:
    mac = node(tmp_path, ibv_devinfo=f"touch {tmp_path}/hangs; exec sleep 600")
    task = asyncio.create_task(probe([mac]))
    await until((tmp_path / "hangs").exists, "the command to hang")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_incomplete_sections_are_skipped() -> None:
    first = f"{MARK} rc a 0\n{MARK} out a\nhello\n\n{MARK} err a\n\n{MARK} end a\n"
    whole = first + f"{MARK} rc b 142\n{MARK} out b\n\n{MARK} err b\n\n{MARK} end b\n"
    answers = parse_results(whole, MARK)
    assert (answers["a"].stdout, answers["a"].returncode) == ("hello\n", 0)
    assert (answers["b"].timed_out, answers["b"].returncode) == (True, None)
    assert parse_results(whole[:20], MARK) == {}
    assert set(parse_results(whole[:-8], MARK)) == {"a"}


@given(st.text())
def test_no_output_breaks_the_parser(text: str) -> None:
    parse_results(text, MARK)
    parse_results(f"{MARK} rc a 0\n{text}", MARK)
