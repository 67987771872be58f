"""Enable: a light for each Mac, what to do at it, and ticks that stay."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cli.main import run
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.events import HOST, Event, Stage
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.rehearsal import tools
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.scripts import scripts
from jaccl_kernel.steps import checklist
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.enable import MEANING, EnableReport, enable, judge
from jaccl_kernel.topology.facts import NodeFacts, PowerFacts
from tests.events import bodies
from tests.sshd import start_macs

pytestmark = pytest.mark.usefixtures("nothing_left")


def simulated(*faults: str, macs: int = 3) -> list[NodeFacts]:
    return tools.facts(with_faults(ClusterSpec.healthy(macs), faults))


def kinds(report: EnableReport) -> list[str]:
    return [light.kind for light in report.lights]


def hints(report: EnableReport, mac: int) -> str:
    return " ".join(report.lights[mac].hints)


def snapshot(folder: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in sorted(folder.rglob("*"))}


def test_healthy_macs_are_ready_with_nothing_to_do() -> None:
    report = judge(simulated())
    assert kinds(report) == ["ready"] * 3
    assert report.ok
    assert not any(light.tasks or light.hints for light in report.lights)
    assert [(link.gbps, link.speed, link.seen) for link in report.links] == [(80.0, "full", "both")] * 3
    assert report.notes == ()


@pytest.mark.parametrize(
    ("fault", "kind", "why", "step"),
    [
        ("rdma-off:2", "off", "RDMA is off", "rdma_ctl enable"),
        ("thunderbolt4:2", "unsupported", "Thunderbolt 4", "ring backend"),
        ("old-macos:2", "unsupported", "too old", "Software Update"),
        ("ssh-fails:2", "unknown", "Permission denied", "ssh"),
        ("asleep:2", "unknown", "timed out", "ssh"),
        ("hang:2:system_profiler", "unknown", "timed out", "scan again"),
    ],
)
def test_each_verdict_has_its_reason_and_its_steps(fault: str, kind: str, why: str, step: str) -> None:
    report = judge(simulated(fault))
    assert kinds(report) == ["ready", kind, "ready"]
    assert not report.ok
    light = report.lights[1]
    assert why in " ".join(light.reasons)
    assert step in " ".join(task.text for task in light.tasks)
    assert ("rdma_ctl enable" in " ".join(task.text for task in light.tasks)) == (kind == "off")


def test_the_steps_are_those_of_the_macs_own_macos() -> None:
    newer = [replace(facts, macos="27.0") for facts in simulated("rdma-off:1")]
    assert "System Settings" in judge(newer).lights[0].tasks[0].text
    assert "power button" in judge(simulated("rdma-off:1")).lights[0].tasks[0].text


def test_a_slow_link_is_reported_for_both_macs_and_for_all() -> None:
    report = judge(simulated("thunderbolt4:2"))
    slow = [link for link in report.links if link.speed == "slow"]
    assert [link.gbps for link in slow] == [40.0, 40.0]
    assert "runs at 40 Gb/s, not 80: macstudio2 has no Thunderbolt 5" in hints(report, 0)
    assert "Thunderbolt 5 cable" not in hints(report, 1)
    assert "2 of 3 cables run slower" in " ".join(report.notes)


def test_a_slow_link_between_two_fast_macs_needs_another_cable() -> None:
    spec = ClusterSpec.healthy(2)
    slow = replace(spec, cables=tuple(replace(cable, gbps=40) for cable in spec.cables))
    assert "use a Thunderbolt 5 cable" in hints(judge(tools.facts(slow)), 0)


def test_a_link_of_unknown_speed_is_not_reported_as_fast() -> None:
    facts = [
        replace(node, ports=tuple(replace(port, current_gbps=None) for port in node.ports or ()))
        for node in simulated(macs=2)
    ]
    assert [link.speed for link in judge(facts).links] == ["unknown"]


def test_a_sleeping_mac_is_suspected_where_the_others_cables_lead_to_it() -> None:
    report = judge(simulated("asleep:3"))
    assert "may be asleep" in hints(report, 2)
    assert "caffeinate -s" in hints(report, 2)


def test_a_port_that_is_down_names_the_peer_that_has_rdma_off() -> None:
    report = judge(simulated("rdma-off:2"))
    assert "is down: RDMA is off on macstudio2" in hints(report, 0)


def test_a_port_that_is_down_between_two_ready_macs_names_sleep() -> None:
    facts = simulated(macs=2)
    down = tuple(replace(device, state="PORT_DOWN") for device in facts[0].devices or ())
    report = judge([replace(facts[0], devices=down), facts[1]])
    assert report.ok
    assert "macstudio2 may be asleep" in hints(report, 0)


def test_a_mac_that_will_fall_asleep_is_warned_of() -> None:
    facts = simulated(macs=2)
    drowsy = replace(facts[1], power=PowerFacts(sleep_minutes=10, sleep_prevented=False))
    assert "after 10 idle minutes" in hints(judge([facts[0], drowsy]), 1)


def test_another_macos_build_is_named_with_its_mac() -> None:
    [note] = judge(simulated("macos-skew:3")).notes
    assert "26.5.1 (25F80) on macstudio1, macstudio2; 26.4 (25E246) on macstudio3" in note


def test_ticks_outlive_a_restart_and_come_back_in_the_report() -> None:
    step = judge(simulated("rdma-off:2")).lights[1].tasks[0].text
    checklist.tick("macstudio2", step, rehearsal=False)
    told = judge(simulated("rdma-off:2"), checklist.load(rehearsal=False)).lights
    assert [task.done for task in told[1].tasks] == [True, False, False, False]
    assert checklist.load(rehearsal=True) == {}
    checklist.tick("macstudio2", step, done=False, rehearsal=False)
    assert not any(checklist.load(rehearsal=False).values())


def test_a_tick_is_never_a_proof() -> None:
    steps = frozenset(task.text for task in judge(simulated("rdma-off:2")).lights[1].tasks)
    assert kinds(judge(simulated("rdma-off:2"), {"macstudio2": steps})) == ["ready", "off", "ready"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ticks": 5}', '{"ticks": {"a": 5}}'])
def test_a_damaged_checklist_is_an_empty_one(text: str) -> None:
    path = checklist.checklist_file(rehearsal=False)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert checklist.load(rehearsal=False) == {}
    assert checklist.tick("mac1", "a step", rehearsal=False) == {"mac1": {"a step"}}


def test_a_checklist_that_cannot_be_kept_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(JacclError, match="cannot save the file") as caught:
        checklist.tick("mac1", "a step", rehearsal=False)
    assert "JACCL_CACHE" in caught.value.fix


async def test_a_second_scan_marks_a_mac_as_ready_and_removes_its_ticks() -> None:
    off = await enable(Cluster.of(make_hostfile(2, ["rdma-off:2"])))
    assert kinds(off) == ["ready", "off"]
    checklist.tick("mac2", off.lights[1].tasks[0].text, rehearsal=True)
    again = await enable(Cluster.of(make_hostfile(2, ["rdma-off:2"])))
    assert again.lights[1].tasks[0].done
    on = await enable(Cluster.of(make_hostfile(2)))
    assert on.ok
    assert on.rehearsal
    assert checklist.load(rehearsal=True) == {}


async def test_each_mac_is_reported_when_it_answers_and_none_is_changed() -> None:
    cluster = Cluster.of(make_hostfile(3, ["ssh-fails:3"]))
    homes = Path(os.environ["JACCL_CACHE"]) / "rehearsal"
    before = snapshot(homes)
    events: list[Event] = []
    report = await enable(cluster, events.append)
    assert snapshot(homes) == before
    told_by_rank = {rank: bodies(events, Stage, rank)[-1].text.partition(":")[0] for rank in range(3)}
    assert told_by_rank == {0: MEANING["ready"], 1: MEANING["ready"], 2: MEANING["unknown"]}
    host = [stage.fraction for stage in bodies(events, Stage, HOST)]
    assert host == [None, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    told = json.loads(json.dumps(report.to_json()))
    assert [mac["kind"] for mac in told["macs"]] == ["ready", "ready", "unknown"]
    assert (told["ok"], told["rehearsal"]) == (False, True)


@pytest.mark.sshd
async def test_over_real_ssh_rdma_off_and_an_unreachable_mac_are_distinguished(tmp_path: Path) -> None:
    names = ("macstudio1", "macstudio2", "macstudio3")
    spec = with_faults(ClusterSpec.healthy(3, names), ["rdma-off:2"])
    with start_macs(tmp_path / "macs", names) as macs:
        for node, name in enumerate(names):
            home = macs[name].home
            for command, text in scripts(spec, node, home, "/bin/false").items():
                (home / "bin" / command).write_text(text)
                (home / "bin" / command).chmod(0o755)
        macs.stop("macstudio3")
        nodes = tuple(SshNode(name, options=macs.options) for name in names)
        report = await enable(Cluster(Hostfile(tuple(Host(ssh=name) for name in names)), nodes))
    assert kinds(report) == ["ready", "off", "unknown"]
    assert "no ssh server listens on port" in report.lights[2].reasons[0]
    assert not report.rehearsal


def run_cli(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_the_terminal_shows_lights_steps_and_cables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    make_hostfile(2, ["rdma-off:2"]).write(path)
    assert run_cli("enable", path, "--done", "mac2:1") == 1
    told = capsys.readouterr()
    assert "● mac1: ready" in told.out
    assert "○ mac2: RDMA is off" in told.out
    assert "[x] 1. Shut the Mac down" in told.out
    assert "[ ] 2." in told.out
    assert "80 Gb/s" in told.out
    assert "1 of 2 Macs ready" in told.out
    assert "REHEARSAL" in told.err
    assert run_cli("enable", path, "--undo", "mac2:1", "--json") == 1
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["macs"][1]["tasks"][0]["done"] is False
    make_hostfile(2).write(path)
    assert run_cli("enable", path) == 0


@pytest.mark.parametrize(
    ("what", "said"), [("mac9:1", "no Mac"), ("mac1:1", "no step"), ("mac2:x", "no step")]
)
def test_a_step_that_is_not_there_cannot_be_ticked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, said: str
) -> None:
    path = tmp_path / "r.json"
    make_hostfile(2, ["rdma-off:2"]).write(path)
    assert run_cli("enable", path, "--done", what) == 2
    assert said in capsys.readouterr().err
