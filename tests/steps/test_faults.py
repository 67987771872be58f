"""Every fault of a rehearsal, told by the step in which a person meets it.

From the described facts, without a scan: that a scan finds those is in tests/rehearsal/test_scan.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import homes, plan
from jaccl_kernel.rehearsal.faults import FAULTS
from jaccl_kernel.steps import enable
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.hostfile.propose import explain, propose
from jaccl_kernel.steps.sync.sync import sync
from jaccl_kernel.steps.verify import checks
from jaccl_kernel.topology import addressing
from jaccl_kernel.topology.wiring import build_wiring
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")

MACS = 4


def enabled(hostfile: Hostfile) -> list[str]:
    """What the first notebook tells."""
    report = enable.judge(seen(hostfile), rehearsal=True)
    lights = [
        f"{light.name}: {' '.join(light.reasons)} {' '.join(task.text for task in light.tasks)}"
        for light in report.lights
        if light.kind != "ready"
    ]
    return [*lights, *report.notes]


def same_environment(hostfile: Hostfile) -> list[str]:
    """What the check of the environment tells."""
    found = checks.environment(build_wiring(seen(hostfile)), [], backend="jaccl")
    return [f"{problem.where}: {problem.message} {problem.fix}" for problem in found.problems]


def ports(hostfile: Hostfile) -> list[str]:
    """What is wrong with the hostfile, and what would set the ports up."""
    real, wiring = plan.as_if_real(hostfile), build_wiring(seen(hostfile))
    judged = [f"{problem.message} {problem.fix}" for problem in explain(real, seen(hostfile))]
    return [*judged, addressing.plan(wiring).text()]


def cabling(hostfile: Hostfile) -> list[str]:
    """What the hostfile's notebook says of the cables, and what to do with one's hands."""
    found = propose(plan.as_if_real(hostfile), seen(hostfile))
    problems = [f"{problem.message} {problem.fix}" for problem in found.problems]
    return [*found.notes, *problems, *found.moves]


DIAGNOSES: dict[str, tuple[Callable[[Hostfile], list[str]], list[str]]] = {
    "missing-cable:1-3": (cabling, ["No cable connects mac1 and mac3.", "Plug a Thunderbolt 5 cable"]),
    "doubled-cable:1-2": (cabling, ["2 cables connect mac1 and mac2", "Move the cable from port 4 of mac2"]),
    "swapped-cable:1-3,2-4": (cabling, ["No cable connects mac1 and mac3.", "Swap the cables in port 3"]),
    "half-seen:1-2": (
        cabling,
        ["Only one end detects the cable", "wake mac2, which does not detect the cable"],
    ),
    "hub:1-2": (cabling, ["Thunderbolt 5 hub is between port 1 of mac1 and port 1 of mac2"]),
    "beside-ethernet:2": (
        cabling,
        ["beside Ethernet", "Move the cable from port 6 of mac2 to port 1 of mac2"],
    ),
    "dock:2": (cabling, ["TS5 Plus is connected to port 4 of mac2."]),
    "rdma-off:2": (enabled, ["mac2: RDMA is off", "rdma_ctl enable"]),
    "thunderbolt4:3": (enabled, ["mac3: ", "RDMA needs Thunderbolt 5"]),
    "old-macos:3": (enabled, ["mac3: macOS 26.1 is too old", "Software Update"]),
    "macos-skew:2": (enabled, ["different builds of macOS", "26.4 (25E246) on mac2"]),
    "bridged-port:2": (ports, ["is a member of bridge0", "sudo ifconfig bridge0 deletem en3"]),
    "no-ipv4:3": (
        ports,
        ["port 1 of mac3 (rdma_en3) has no IPv4 address", "sudo ifconfig en3 inet 169.254."],
    ),
    "gid-index-2:2": (ports, ["at index 2, but JACCL sends with index 1", "link-local only"]),
    "hang:2:ibv_devinfo": (ports, ["ibv_devinfo on mac2 timed out", "the GIDs are unknown"]),
    "version-skew:2": (same_environment, ["mac2: mlx is 0.31.0, but", "notebook 02"]),
    "stale-coordinator": (ports, ["10.0.0.99 does not belong to mac1", "Write 10.0.0.11 (en0"]),
    "ssh-fails:4": (enabled, ["mac4: ", "Permission denied", "ssh"]),
    "asleep:3": (enabled, ["mac3: ", "timed out", "ssh"]),
}
OWN_TEST = {"partial-model"}  # it shows in no facts, but in files: below


def test_every_kind_of_fault_is_covered() -> None:
    told = {fault.partition(":")[0] for fault in DIAGNOSES} | OWN_TEST
    assert told == {fault.name for fault in FAULTS}


@pytest.mark.parametrize("fault", DIAGNOSES)
def test_each_fault_is_reported_by_its_step_and_only_if_it_is_set(fault: str) -> None:
    step, words = DIAGNOSES[fault]
    told, healthy = "\n".join(step(configured(MACS, fault))), "\n".join(step(configured(MACS)))
    assert [word for word in words if word not in told] == [], told
    assert words[-1] not in healthy


async def test_a_partial_model_is_named_by_sync_with_the_file_that_it_lacks(tiny_model: Path) -> None:
    whole = configured(2)
    for mac in homes.prepare(whole):
        homes.place_model(mac, tiny_model, "tiny")
    broken = plan.with_changes(whole, add=["partial-model:2"])
    report = await sync(
        Cluster.of(broken), SyncOptions(model="tiny", check=True), facts=seen(broken), save=False
    )
    assert [node.state for node in report.nodes] == ["identical", "incomplete"]
    assert "missing: model.safetensors" in report.nodes[1].detail
    assert not report.ok
