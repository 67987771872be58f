"""Simulated Macs are scanned like real ones, and each fault shows as itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import CommandTimeout, NodeUnreachable
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import tools
from jaccl_kernel.rehearsal.faults import FAULTS
from jaccl_kernel.rehearsal.plan import RehearsalPlan, as_if_real, make_hostfile
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.topology import moves
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.issues import find_issues
from jaccl_kernel.topology.probe import probe, probe_node
from jaccl_kernel.topology.readiness import readiness
from jaccl_kernel.topology.tools.commands import COMMANDS
from jaccl_kernel.topology.wiring import build_wiring

pytestmark = pytest.mark.usefixtures("nothing_left")

OF_THIS_MACHINE = ("df", "date", "rsync", "ssh")


async def scan(hostfile: Hostfile) -> list[NodeFacts]:
    return await probe(Cluster.of(hostfile).nodes)


def diagnosis(hostfile: Hostfile, macs: list[NodeFacts]) -> set[str]:
    """All that the cluster's own rooms find wrong, each as one word and where."""
    return {*_of_macs(macs), *_of_cables(macs), *_of_hostfile(hostfile, macs)}


def _of_macs(macs: list[NodeFacts]) -> Iterator[str]:
    for mac in macs:
        if (verdict := readiness(mac)).kind != "ready":
            yield f"{verdict.kind} {mac.name}"
        for key, outcome in mac.outcomes.items():
            if outcome.status != "ok" and key not in OF_THIS_MACHINE:
                yield f"{key} {outcome.status} {mac.name}"
    told = [mac for mac in macs if mac.error is None]
    if len({mac.build for mac in told}) > 1:
        yield "builds differ"
    if len({mac.python.mlx for mac in told if mac.python}) > 1:
        yield "mlx differs"


def _of_cables(macs: list[NodeFacts]) -> Iterator[str]:
    wiring = build_wiring(macs)
    for issue in find_issues(wiring):
        yield f"{issue.code} {' '.join(macs[node].name for node in issue.nodes)}"
    for cable in wiring.cables:
        for end in (cable.a, cable.b):
            mac, port = macs[end.node], wiring.port(end)
            device, interface = mac.device(port.rdma_device), mac.interface(port.interface)
            if device is None or interface is None:
                continue
            if not device.active:
                yield f"port down {mac.name}"
            if not device.gid_ready:
                yield f"{'bridged' if interface.bridge else 'no'} gid {device.ipv4_gid} {mac.name}"


def _of_hostfile(hostfile: Hostfile, macs: list[NodeFacts]) -> Iterator[str]:
    coordinator = as_if_real(hostfile).coordinator
    if coordinator and coordinator not in {address.ip for address in macs[0].lan or ()}:
        yield "stale coordinator"


async def test_four_healthy_macs_are_ready_and_a_full_mesh() -> None:
    hostfile = make_hostfile(4)
    macs = await scan(hostfile)
    assert diagnosis(hostfile, macs) == set()
    wiring = build_wiring(macs)
    assert wiring.topology == "mesh"
    assert all(
        cell is not None for i, row in enumerate(wiring.rdma_matrix()) for cell in row[:i] + row[i + 1 :]
    )


async def test_a_scan_of_the_commands_matches_the_description() -> None:
    faults = ("rdma-off:2", "bridged-port:1", "no-ipv4:3", "dock:3", "missing-cable:1-3", "asleep:4")
    hostfile = make_hostfile(4, faults)
    scanned = await scan(hostfile)
    described = tools.facts(RehearsalPlan.of(hostfile).spec())
    assert [simulated(mac) for mac in scanned[:3]] == [simulated(mac) for mac in described[:3]]
    assert "the Mac does not answer" in (scanned[3].error or "")


def simulated(mac: NodeFacts) -> NodeFacts:
    """The facts without those that are this machine's own."""
    assert mac.python is not None
    return replace(
        mac,
        python=replace(mac.python, executable=None),
        disk_free=None,
        clock_offset_s=None,
        rsync=None,
        ssh_version=None,
        outcomes={key: value for key, value in mac.outcomes.items() if key not in OF_THIS_MACHINE},
    )


DIAGNOSES = {
    "missing-cable:1-3": {"missing mac1 mac3"},
    "doubled-cable:1-2": {"doubled mac1 mac2", "missing mac1 mac3"},
    "swapped-cable:1-3,2-4": {
        *("doubled mac1 mac4", "doubled mac2 mac3"),
        *("missing mac1 mac3", "missing mac2 mac4"),
    },
    "half-seen:1-2": {"half mac1 mac2", "port down mac1", "port down mac2"},
    "hub:1-2": {"hub mac1 mac2"},
    "beside-ethernet:2": {"beside-ethernet mac2"},
    "dock:2": {"foreign-device mac2"},
    "rdma-off:2": {
        *("off mac2", "ibv_devinfo failed mac2", "no-device mac2"),
        *("port down mac1", "port down mac3", "port down mac4"),
    },
    "thunderbolt4:3": {
        *("unsupported mac3", "ibv_devinfo failed mac3", "no-device mac3", "few-ports mac3"),
        *("slow mac1 mac3", "slow mac2 mac3", "slow mac3 mac4"),
        *("port down mac1", "port down mac2", "port down mac4"),
    },
    "old-macos:3": {"unsupported mac3", "builds differ"},
    "macos-skew:2": {"builds differ"},
    "bridged-port:2": {"bridged gid None mac2"},
    "no-ipv4:3": {"no gid None mac3"},
    "gid-index-2:2": {"no gid (2, '169.254.2.1') mac2"},
    "version-skew:2": {"mlx differs"},
    "stale-coordinator": {"stale coordinator"},
    "ssh-fails:4": {
        "unknown mac4",
        "untested mac4",
        "foreign-device mac1",
        "foreign-device mac2",
        "foreign-device mac3",
    },
    "asleep:3": {
        "unknown mac3",
        "untested mac3",
        "foreign-device mac1",
        "foreign-device mac2",
        "foreign-device mac4",
    },
}


@pytest.mark.parametrize("fault", DIAGNOSES)
async def test_each_fault_has_its_own_diagnosis(fault: str) -> None:
    hostfile = make_hostfile(4, [fault])
    assert diagnosis(hostfile, await scan(hostfile)) == DIAGNOSES[fault]


def test_no_fault_is_left_out() -> None:
    elsewhere = {"hang", "partial-model"}  # below, and in test_models.py
    assert {fault.partition(":")[0] for fault in DIAGNOSES} | elsewhere == {fault.name for fault in FAULTS}


async def test_swapped_cables_give_the_moves_that_fix_them() -> None:
    macs = await scan(make_hostfile(4, ["swapped-cable:1-3,2-4"]))
    plan = moves.plan(build_wiring(macs))
    assert plan.target == "mesh"
    assert len(plan.moves) == 1
    assert plan.moves[0].kind == "swap"


async def test_an_unreachable_mac_has_the_error_of_a_real_one() -> None:
    macs = await scan(make_hostfile(4, ["ssh-fails:2", "asleep:3"]))
    assert "accepts none of the keys" in (macs[1].error or "")
    assert "ssh-copy-id mac2" in (macs[1].error or "")
    assert "the Mac does not answer" in (macs[2].error or "")


async def test_a_mac_out_of_reach_takes_no_copy_either(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    node = Cluster.of(make_hostfile(2, ["asleep:2"])).nodes[1]
    with pytest.raises(NodeUnreachable, match="the Mac does not answer"):
        await node.copy_to(tmp_path, "~/models", deadline=10)


async def test_a_command_that_hangs_is_ended_at_its_deadline_and_costs_itself_alone() -> None:
    # the deadlines are short, so that the test is: system_profiler hangs, ibv_devinfo has all its time
    asked = [replace(one, deadline_s=1) if one.id == "system_profiler" else one for one in COMMANDS]
    mac = await probe_node(Cluster.of(make_hostfile(2, ["hang:1:system_profiler"])).nodes[0], asked)
    failed = {key for key, outcome in mac.outcomes.items() if outcome.status != "ok"}
    assert failed - set(OF_THIS_MACHINE) == {"system_profiler"}
    assert mac.outcomes["system_profiler"].status == "timeout"
    assert mac.devices is not None
    assert readiness(mac).kind == "unknown"


async def test_a_hang_is_real_for_whoever_runs_the_command() -> None:
    node = Cluster.of(make_hostfile(2, ["hang:2:ibv_devinfo", "hang:2:rsync"])).nodes[1]
    with pytest.raises(CommandTimeout, match="ibv_devinfo"):
        await node.run(["ibv_devinfo"], deadline=0.3)
    with pytest.raises(CommandTimeout, match="rsync"):
        await node.run(["rsync", "--version"], deadline=0.3)
