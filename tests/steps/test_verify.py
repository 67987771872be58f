"""Verify: every gate passes when it should, and fails when it should. pytest tests/steps/test_verify.py

The rehearsals' Macs answer from their description; the coordinator, other jobs and the ranks are real.
"""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cluster import compare
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.hostfile import Host, Hostfile
from jaccl_kernel.cluster.wiring import wire
from jaccl_kernel.errors import HostfileError, InputError
from jaccl_kernel.rehearsal import plan
from jaccl_kernel.steps import gates
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.gates import TITLES, Gate
from jaccl_kernel.steps.verify import VerifyReport, verify
from jaccl_kernel.wire import Event
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


async def verified(hostfile: Hostfile, **more: Any) -> VerifyReport:
    """Verify with the facts that a scan would find."""
    return await verify(Cluster.of(hostfile), facts=seen(hostfile), **more)


def gate(report: VerifyReport, name: str) -> Gate:
    return next(one for one in report.gates if one.name == name)


def verdicts(report: VerifyReport) -> dict[str, str]:
    return {one.name: one.verdict for one in report.gates}


async def test_a_healthy_rehearsal_passes_every_gate_and_says_what_it_proves() -> None:
    events: list[Event] = []
    report = await verify(Cluster.of(configured(2)), on_event=events.append)
    assert report.ok, report.summary
    assert list(verdicts(report)) == list(TITLES)
    assert report.rehearsal
    assert report.summary == "REHEARSAL, proves nothing about RDMA: all 11 gates passed."
    assert all("simulated" in gate(report, name).proof for name in ("rdma", "ports", "gid", "wiring"))
    assert "TCP ring" in report.notes[1]
    assert "mac1, mac2" in gate(report, "group").proof
    assert "all_sum takes" in gate(report, "latency").proof
    assert [event.data["name"] for event in events if event.kind == "gate"] == list(TITLES)
    assert report.command.startswith("mlx.launch --backend ring")


async def test_the_record_is_saved_whole() -> None:
    report = await verified(configured(2, "rdma-off:2"))
    assert report.path is not None
    assert report.path.name.startswith("verify-")
    record = json.loads(report.path.read_text())
    assert record == json.loads(json.dumps(report.to_json()))
    assert record["ok"] is False
    assert record["hostfile"]["digest"] == configured(2, "rdma-off:2").digest()
    assert {one["verdict"] for one in record["gates"]} == {"passed", "failed", "not tested"}


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("ssh-fails:2", "ssh", "none of our keys is accepted"),
        ("asleep:2", "ssh", "mac2"),
        ("version-skew:2", "environment", "mac2: It has mlx 0.31.0, and mac1 has"),
        ("rdma-off:2", "rdma", "mac2: RDMA is switched off"),
        ("thunderbolt4:2", "rdma", "RDMA needs Thunderbolt 5"),
        ("old-macos:2", "rdma", "macOS 26.1 is too old"),
        ("rdma-off:2", "ports", "mac2, at the other end, has RDMA off"),
        ("asleep:2", "ports", "mac2, at the other end, does not answer"),
        ("no-ipv4:2", "gid", "port 1 of mac2 (rdma_en3) has no IPv4 address"),
        ("bridged-port:2", "gid", "is a member of bridge0"),
        ("gid-index-2:2", "gid", "at index 2"),
        ("missing-cable:1-2", "wiring", "no cable leads from mac1 to mac2"),
        ("half-seen:1-2", "wiring", "only one end sees that cable"),
        ("stale-coordinator", "coordinator", "10.0.0.99 is not an address of mac1"),
    ],
)
async def test_each_gate_fails_when_it_should_and_names_the_first_cause(
    fault: str, name: str, words: str
) -> None:
    hostfile = configured(2, fault)
    if fault in ("ssh-fails:2", "asleep:2") and name == "ssh":  # the reason is ssh's own, from a real scan
        report = await verify(Cluster.of(hostfile))
    else:
        report = await verified(hostfile)
    found = gate(report, name)
    assert found.verdict == "failed"
    assert words in found.cause
    assert found.fix
    assert not report.ok
    assert gate(report, "group").verdict == "not tested"
    assert "since an earlier gate failed" in gate(report, "group").proof


async def test_a_swapped_cable_fails_the_wiring_gate_cell_by_cell() -> None:
    found = gate(await verified(configured(3, "swapped-cable:2")), "wiring")
    assert found.verdict == "failed"
    assert {problem.where for problem in found.problems} == {
        "host 1 (mac2), rdma[0]", "host 1 (mac2), rdma[2]"
    }  # fmt: skip


async def test_a_matrix_that_jaccl_would_refuse_fails_the_wiring_gate() -> None:
    good = configured(3)
    shared = replace(good.hosts[0], rdma=(None, "rdma_en3", "rdma_en3"))
    found = gate(await verified(replace(good, hosts=(shared, *good.hosts[1:]))), "wiring")
    assert found.verdict == "failed"
    assert "a second peer on a device makes JACCL crash" in found.cause


async def test_what_no_command_told_is_not_tested_and_no_pass() -> None:
    report = await verified(configured(2, "hang:2:ibv_devinfo"))
    assert {gate(report, name).verdict for name in ("ports", "gid")} == {"not tested"}
    assert "ibv_devinfo on mac2 did not end in time" in gate(report, "gid").proof
    assert gate(report, "group").verdict == "passed"  # the ranks are the better proof
    assert not report.ok
    assert "2 gates were not tested" in report.summary


async def test_without_a_hostfile_the_cabling_is_judged_and_nothing_is_claimed() -> None:
    report = await verified(plan.make_hostfile(3))
    told = verdicts(report)
    assert {name for name, one in told.items() if one == "not tested"} == {
        "wiring", "coordinator", "group", "sums", "latency"
    }  # fmt: skip
    assert "jaccl hostfile write" in gate(report, "wiring").fix
    broken = await verified(plan.make_hostfile(3, ["missing-cable:1-2"]))
    assert gate(broken, "wiring").verdict == "failed"
    assert "No cable between mac1 and mac2" in gate(broken, "wiring").cause


async def test_a_python_that_is_not_there_fails_the_environment_gate() -> None:
    report = await verify(Cluster.of(configured(2)), python="/nowhere/python")
    found = gate(report, "environment")
    assert found.verdict == "failed"
    assert "/nowhere/python" in found.cause
    assert gate(report, "group").verdict == "not tested"


def with_mlx(version: str | None) -> list[NodeFacts]:
    return [
        replace(node, python=replace(node.python, mlx=version)) if node.python else node
        for node in seen(configured(3))
    ]


def test_the_mlx_whose_ring_is_broken_is_refused_for_a_ring_alone() -> None:
    nodes = wire(with_mlx("0.32.2"))
    ring = gates.environment(nodes, [], backend="jaccl-ring")
    assert ring.verdict == "failed"
    assert "returns garbage" in ring.cause
    assert gates.environment(nodes, [], backend="jaccl").verdict == "passed"


def test_a_missing_package_and_a_python_that_told_nothing_are_told_apart() -> None:
    missing = gates.environment(wire(with_mlx(None)), [], backend="jaccl")
    assert (missing.verdict, missing.problems[0].code) == ("failed", "no-package")
    silent = [replace(node, python=None, outcomes={}) for node in seen(configured(2))]
    assert gates.environment(wire(silent), [], backend="jaccl").verdict == "not tested"


@pytest.mark.parametrize(("version", "verdict"), [("3.12.10", "passed"), ("3.13.11", "failed")])
def test_a_patch_level_of_python_is_no_difference(version: str, verdict: str) -> None:
    nodes = [
        replace(node, python=replace(node.python, version=told)) if node.python else node
        for node, told in zip(with_mlx("0.32.4"), ("3.12.11", "3.12.11", version), strict=True)
    ]
    assert gates.environment(wire(nodes), [], backend="jaccl").verdict == verdict


def test_another_macos_build_is_noted() -> None:
    found = gates.environment(wire(seen(configured(2, "macos-skew:2"))), [], backend="jaccl")
    assert found.verdict == "passed"
    assert "different macOS builds: 25E246, 25F80" in found.proof


# -- the coordinator


async def test_an_address_that_rank_0_cannot_listen_at_fails_the_gate() -> None:
    good = configured(2)
    elsewhere = replace(good.hosts[0], ips=("192.0.2.7",))  # reserved for documentation: nobody has it
    found = gate(await verified(replace(good, hosts=(elsewhere, good.hosts[1]))), "coordinator")
    assert found.verdict == "failed"
    assert found.problems[0].code == "coordinator-not-own"
    assert "cannot listen at 192.0.2.7" in found.cause


async def test_over_tcp_every_mac_is_reached_by_its_neighbour() -> None:
    local = tuple(Host("127.0.0.1", ("127.0.0.1",), extra={"name": f"mac{n}"}) for n in (1, 2, 3))
    report = await verify(
        Cluster.of(Hostfile(local, "ring")), facts=seen(configured(3)), python=sys.executable
    )
    assert not set(verdicts(report)) & {"rdma", "ports", "gid", "wiring"}
    assert "the TCP ring uses no RDMA" in report.notes[0]
    # these facts' Macs have other addresses than this machine: what the facts say comes first
    assert gate(report, "coordinator").verdict == "failed"
    assert "127.0.0.1 is not an address of mac1" in gate(report, "coordinator").cause


async def test_a_rehearsal_without_addresses_of_its_own_fails_the_coordinator_gate() -> None:
    good = configured(2)
    lost = replace(good, hosts=tuple(replace(host, ips=()) for host in good.hosts))
    found = gate(await verified(lost), "coordinator")
    assert (found.verdict, found.problems[0].code) == ("failed", "ips-missing")


# -- the ranks


def spoiled(cluster: Cluster, folder: Path, code: str) -> Cluster:
    """The cluster with a rank 1 whose Python runs this code at its start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    broken = {**cluster.rank_env[1], "PYTHONPATH": str(folder)}
    return replace(cluster, rank_env=(cluster.rank_env[0], broken))


async def test_a_rank_that_dies_fails_the_group_gate_and_is_named(tmp_path: Path) -> None:
    hostfile = configured(2)
    cluster = spoiled(Cluster.of(hostfile), tmp_path / "site", "import os; os._exit(7)")
    report = await verify(cluster, facts=seen(hostfile))
    assert gate(report, "group").verdict == "failed"
    assert "rank 1 died (exit status 7)" in gate(report, "group").cause
    assert gate(report, "group").cause.startswith("mac2")
    assert {gate(report, name).verdict for name in ("sums", "latency")} == {"not tested"}


async def test_a_wrong_sum_fails_the_sums_gate(tmp_path: Path) -> None:
    code = (
        "import mlx.core as mx\n"
        "real = mx.distributed.all_sum\n"
        "mx.distributed.all_sum = lambda *a, **k: real(*a, **k) + 1\n"
    )
    hostfile = configured(2)
    cluster = spoiled(Cluster.of(hostfile), tmp_path / "site", code)
    report = await verify(cluster, facts=seen(hostfile))
    assert gate(report, "group").verdict == "passed"
    assert gate(report, "sums").verdict == "failed"
    assert "all_sum over 2 ranks gave wrong values" in gate(report, "sums").cause
    assert gate(report, "latency").verdict == "not tested"


# -- bad input


async def test_one_mac_is_verified_alone() -> None:
    report = await verified(configured(1))
    assert verdicts(report) == {
        "ssh": "passed",
        "environment": "passed",
        "stale": "passed",
        "group": "passed",
    }
    assert "there is one Mac" in report.notes[-1]


async def test_a_host_that_nobody_knows_fails_ssh_and_leaves_the_rest_untested() -> None:
    report = await verify(Cluster.named(["nobody.invalid", "noone.invalid"]))
    assert gate(report, "ssh").verdict == "failed"
    assert set(verdicts(report).values()) == {"failed", "not tested"}
    assert "nobody.invalid" in gate(report, "ssh").cause


async def test_a_host_twice_is_refused_before_anyone_is_asked() -> None:
    twice = Hostfile(
        (Host("a", ("10.0.0.1",), (None, "rdma_en2")), Host("a", (), ("rdma_en2", None))), "jaccl"
    )
    with pytest.raises(HostfileError, match="same Mac as host 0"):
        await verify(Cluster.of(twice), on_event=_no_event)


def test_a_slow_link_is_noted_and_shuts_no_gate() -> None:
    nodes = seen(configured(2))
    for number, node in enumerate(nodes):
        told = tuple(replace(port, current_gbps=40.0) if port.plugged else port for port in node.ports or ())
        nodes[number] = replace(node, ports=told)
    hostfile = plan.as_if_real(configured(2))
    wiring = wire(nodes)
    found = gates.ports(compare.uses(hostfile, wiring, ring=False), wiring)
    assert found.verdict == "passed"
    assert "runs at 40 Gb/s, not 80" in found.proof


def test_nine_macs_without_a_ring_are_told_in_one_sentence() -> None:
    nodes = [
        replace(node, name=f"m{i}", ports=())
        for i, node in enumerate([*seen(configured(7)), *seen(configured(2))])
    ]
    bare = Hostfile(tuple(Host(f"m{i}") for i in range(9)), "jaccl")
    found = gates.wiring_gate(bare, wire(nodes), backend="jaccl")
    assert found.verdict == "failed"
    assert len(found.problems) == 1
    assert "A mesh takes at most 8 Macs, not 9" in found.cause
    assert "Their cables make no ring" in found.cause


async def test_nine_macs_are_no_mesh() -> None:
    nodes = [
        replace(node, name=f"m{i}", ports=None)
        for i, node in enumerate([*seen(configured(7)), *seen(configured(2))])
    ]
    rows = [tuple(None if i == j else f"rdma_en{2 + j}" for j in range(9)) for i in range(9)]
    hosts = [Host(f"m{i}", ("10.0.0.11",) if i == 0 else (), row) for i, row in enumerate(rows)]
    found = gates.wiring_gate(Hostfile(tuple(hosts), "jaccl"), wire(nodes), backend="jaccl")
    assert found.verdict == "failed"
    assert "A mesh takes 8 hosts at most; here are 9." in found.cause


async def test_two_macs_of_one_name_are_told_apart() -> None:
    nodes = [replace(node, name="studio") for node in seen(configured(2, "rdma-off:2"))]
    assert gates.rdma(wire(nodes)).problems[0].where == "studio (#2)"
    cluster = Cluster.of(Hostfile((Host("a", extra={"name": "studio"}), Host("b", extra={"name": "studio"}))))
    assert cluster.names == ("studio (#1)", "studio (#2)")
    twins = tuple(replace(host, extra={**host.extra, "name": "mac1"}) for host in configured(2).hosts)
    with pytest.raises(HostfileError, match="or one twice: 'mac1'"):
        Cluster.of(replace(configured(2), hosts=twins))


async def test_facts_of_other_macs_and_unknown_backends_are_refused() -> None:
    with pytest.raises(InputError, match="facts of 3 Macs were given for 2"):
        await verify(Cluster.of(configured(2)), facts=seen(configured(3)))
    with pytest.raises(InputError, match="unknown backend 'nccl'"):
        await verify(Cluster.of(configured(2)), backend="nccl", on_event=_no_event)


async def test_a_scan_that_is_interrupted_leaves_nothing() -> None:
    """`nothing_left` looks for processes; here one command of the scan never ends."""
    asked = asyncio.Event()
    cluster = Cluster.of(configured(2, "hang:2:ibv_devinfo"))
    answered: list[str] = []

    def on_event(event: Event) -> None:
        if "answered" in event.data.get("text", ""):
            answered.append(event.data["text"])
            asked.set()

    task = asyncio.create_task(verify(cluster, on_event=on_event))
    await asyncio.wait_for(asked.wait(), 30)
    assert not any("mac2" in text for text in answered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_ranks_can_be_stopped_and_leave_nothing() -> None:
    joining = asyncio.Event()
    hostfile = configured(2)

    def on_event(event: Event) -> None:
        if event.rank == 1 and event.kind == "stage":
            joining.set()

    task = asyncio.create_task(verified(hostfile, on_event=on_event))
    await asyncio.wait_for(joining.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _no_event(event: Event) -> None:
    pytest.fail(f"told {event}")
