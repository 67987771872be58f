"""Verify: every check passes when it should, and fails when it should.

The rehearsals' Macs answer from their description; the coordinator, other jobs and the ranks are real.
"""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.rehearsal import plan
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.verify import checks
from jaccl_kernel.steps.verify.checks import TITLES, Check
from jaccl_kernel.steps.verify.verify import CheckDone, VerifyReport, verify
from jaccl_kernel.topology import compare
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.wiring import build_wiring
from tests.events import bodies
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


async def verified(hostfile: Hostfile, **more: Any) -> VerifyReport:
    """Verify with the facts that a scan would find."""
    return await verify(Cluster.of(hostfile), facts=seen(hostfile), **more)


def check(report: VerifyReport, name: str) -> Check:
    return next(one for one in report.checks if one.name == name)


def verdicts(report: VerifyReport) -> dict[str, str]:
    return {one.name: one.verdict for one in report.checks}


async def test_a_healthy_rehearsal_passes_every_check_and_says_what_it_proves() -> None:
    events: list[Event] = []
    report = await verify(Cluster.of(configured(2)), on_event=events.append)
    assert report.ok, report.summary
    assert list(verdicts(report)) == list(TITLES)
    assert report.rehearsal
    assert report.summary == "REHEARSAL, proves nothing about RDMA: all 11 checks are ok."
    assert all("simulated" in check(report, name).proof for name in ("rdma", "ports", "gid", "wiring"))
    assert "TCP ring" in report.notes[1]
    assert "mac1, mac2" in check(report, "group").proof
    assert "all_sum takes" in check(report, "latency").proof
    assert [done.check.name for done in bodies(events, CheckDone)] == list(TITLES)
    assert report.command.startswith("mlx.launch --backend ring")


async def test_the_record_is_complete() -> None:
    report = await verified(configured(2, "rdma-off:2"))
    assert report.path is not None
    assert report.path.name.startswith("verify-")
    record = json.loads(report.path.read_text())
    assert record == json.loads(json.dumps(report.to_json()))
    assert record["ok"] is False
    assert record["hostfile"]["digest"] == configured(2, "rdma-off:2").digest()
    assert {one["verdict"] for one in record["checks"]} == {"ok", "failed", "not tested"}


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("ssh-fails:2", "ssh", "accepts none of the keys"),
        ("asleep:2", "ssh", "mac2"),
        ("version-skew:2", "environment", "mac2: mlx is 0.31.0, but"),
        ("rdma-off:2", "rdma", "mac2: RDMA is off"),
        ("thunderbolt4:2", "rdma", "RDMA needs Thunderbolt 5"),
        ("old-macos:2", "rdma", "macOS 26.1 is too old"),
        ("rdma-off:2", "ports", "RDMA is off on mac2 at the other end"),
        ("asleep:2", "ports", "mac2 at the other end does not answer"),
        ("no-ipv4:2", "gid", "port 1 of mac2 (rdma_en3) has no IPv4 address"),
        ("bridged-port:2", "gid", "is a member of bridge0"),
        ("gid-index-2:2", "gid", "at index 2"),
        ("missing-cable:1-2", "wiring", "no cable connects mac1 and mac2"),
        ("half-seen:1-2", "wiring", "only one end detects that cable"),
        ("stale-coordinator", "coordinator", "10.0.0.99 does not belong to mac1"),
    ],
)
async def test_each_check_fails_when_it_should_and_names_the_first_cause(
    fault: str, name: str, words: str
) -> None:
    hostfile = configured(2, fault)
    if fault in ("ssh-fails:2", "asleep:2") and name == "ssh":  # the reason is ssh's own, from a real scan
        report = await verify(Cluster.of(hostfile))
    else:
        report = await verified(hostfile)
    found = check(report, name)
    assert found.verdict == "failed"
    assert words in found.cause
    assert found.fix
    assert not report.ok
    assert check(report, "group").verdict == "not tested"
    assert "because an earlier check failed" in check(report, "group").proof


async def test_a_swapped_cable_fails_the_wiring_check_cell_by_cell() -> None:
    found = check(await verified(configured(3, "swapped-cable:2")), "wiring")
    assert found.verdict == "failed"
    assert {problem.where for problem in found.problems} == {
        "host 1 (mac2), rdma[0]", "host 1 (mac2), rdma[2]"
    }  # fmt: skip


async def test_a_matrix_that_jaccl_would_refuse_fails_the_wiring_check() -> None:
    good = configured(3)
    shared = replace(good.hosts[0], rdma=(None, "rdma_en3", "rdma_en3"))
    found = check(await verified(replace(good, hosts=(shared, *good.hosts[1:]))), "wiring")
    assert found.verdict == "failed"
    assert "a second peer on a device makes JACCL crash" in found.cause


async def test_unknown_facts_are_not_tested_and_not_ok() -> None:
    report = await verified(configured(2, "hang:2:ibv_devinfo"))
    assert {check(report, name).verdict for name in ("ports", "gid")} == {"not tested"}
    assert "ibv_devinfo on mac2 timed out" in check(report, "gid").proof
    assert check(report, "group").verdict == "ok"  # the ranks are the better proof
    assert not report.ok
    assert "2 checks not tested" in report.summary


async def test_without_a_hostfile_the_cabling_is_judged_and_nothing_is_claimed() -> None:
    report = await verified(plan.make_hostfile(3))
    told = verdicts(report)
    assert {name for name, one in told.items() if one == "not tested"} == {
        "wiring", "coordinator", "group", "sums", "latency"
    }  # fmt: skip
    assert "jaccl hostfile write" in check(report, "wiring").fix
    broken = await verified(plan.make_hostfile(3, ["missing-cable:1-2"]))
    assert check(broken, "wiring").verdict == "failed"
    assert "No cable connects mac1 and mac2" in check(broken, "wiring").cause


async def test_a_python_that_is_not_there_fails_the_environment_check() -> None:
    report = await verify(Cluster.of(configured(2)), python="/nowhere/python")
    found = check(report, "environment")
    assert found.verdict == "failed"
    assert "/nowhere/python" in found.cause
    assert check(report, "group").verdict == "not tested"


def with_mlx(version: str | None) -> list[NodeFacts]:
    return [
        replace(node, python=replace(node.python, mlx=version)) if node.python else node
        for node in seen(configured(3))
    ]


def test_the_mlx_whose_ring_is_broken_is_rejected_for_a_ring_alone() -> None:
    nodes = build_wiring(with_mlx("0.32.2"))
    ring = checks.environment(nodes, [], backend="jaccl-ring")
    assert ring.verdict == "failed"
    assert "returns wrong values" in ring.cause
    assert checks.environment(nodes, [], backend="jaccl").verdict == "ok"


def test_a_missing_package_and_an_unknown_python_are_distinguished() -> None:
    missing = checks.environment(build_wiring(with_mlx(None)), [], backend="jaccl")
    assert (missing.verdict, missing.problems[0].code) == ("failed", "no-package")
    silent = [replace(node, python=None, outcomes={}) for node in seen(configured(2))]
    assert checks.environment(build_wiring(silent), [], backend="jaccl").verdict == "not tested"


@pytest.mark.parametrize(("version", "verdict"), [("3.12.10", "ok"), ("3.13.11", "failed")])
def test_a_patch_level_of_python_is_no_difference(version: str, verdict: str) -> None:
    nodes = [
        replace(node, python=replace(node.python, version=told)) if node.python else node
        for node, told in zip(with_mlx("0.32.4"), ("3.12.11", "3.12.11", version), strict=True)
    ]
    assert checks.environment(build_wiring(nodes), [], backend="jaccl").verdict == verdict


def test_another_macos_build_is_noted() -> None:
    found = checks.environment(build_wiring(seen(configured(2, "macos-skew:2"))), [], backend="jaccl")
    assert found.verdict == "ok"
    assert "different macOS builds: 25E246, 25F80" in found.proof


# -- the coordinator


async def test_an_address_that_rank_0_cannot_listen_at_fails_the_check() -> None:
    good = configured(2)
    elsewhere = replace(good.hosts[0], ips=("192.0.2.7",))  # reserved for documentation: nobody has it
    found = check(await verified(replace(good, hosts=(elsewhere, good.hosts[1]))), "coordinator")
    assert found.verdict == "failed"
    assert found.problems[0].code == "coordinator-not-own"
    assert "cannot listen on 192.0.2.7" in found.cause


async def test_over_tcp_every_mac_is_reached_by_its_neighbour() -> None:
    local = tuple(Host("127.0.0.1", ("127.0.0.1",), extra={"name": f"mac{n}"}) for n in (1, 2, 3))
    report = await verify(
        Cluster.of(Hostfile(local, "ring")), facts=seen(configured(3)), python=sys.executable
    )
    assert not set(verdicts(report)) & {"rdma", "ports", "gid", "wiring"}
    assert "the TCP ring uses no RDMA" in report.notes[0]
    # these facts' Macs have other addresses than this machine: what the facts say comes first
    assert check(report, "coordinator").verdict == "failed"
    assert "127.0.0.1 does not belong to mac1" in check(report, "coordinator").cause


async def test_a_rehearsal_without_addresses_of_its_own_fails_the_coordinator_check() -> None:
    good = configured(2)
    lost = replace(good, hosts=tuple(replace(host, ips=()) for host in good.hosts))
    found = check(await verified(lost), "coordinator")
    assert (found.verdict, found.problems[0].code) == ("failed", "ips-missing")


# -- the ranks


def spoiled(cluster: Cluster, folder: Path, code: str) -> Cluster:
    """The cluster with a rank 1 whose Python runs this code at its start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    broken = {**cluster.rank_env[1], "PYTHONPATH": str(folder)}
    return replace(cluster, rank_env=(cluster.rank_env[0], broken))


async def test_a_rank_that_dies_fails_the_group_check_and_is_named(tmp_path: Path) -> None:
    hostfile = configured(2)
    cluster = spoiled(Cluster.of(hostfile), tmp_path / "site", "import os; os._exit(7)")
    report = await verify(cluster, facts=seen(hostfile))
    assert check(report, "group").verdict == "failed"
    assert "rank 1 died (exit status 7)" in check(report, "group").cause
    assert check(report, "group").cause.startswith("mac2")
    assert {check(report, name).verdict for name in ("sums", "latency")} == {"not tested"}


async def test_a_wrong_sum_fails_the_sums_check(tmp_path: Path) -> None:
    code = (
        "import mlx.core as mx\n"
        "real = mx.distributed.all_sum\n"
        "mx.distributed.all_sum = lambda *a, **k: real(*a, **k) + 1\n"
    )
    hostfile = configured(2)
    cluster = spoiled(Cluster.of(hostfile), tmp_path / "site", code)
    report = await verify(cluster, facts=seen(hostfile))
    assert check(report, "group").verdict == "ok"
    assert check(report, "sums").verdict == "failed"
    assert "all_sum over 2 ranks gave wrong values" in check(report, "sums").cause
    assert check(report, "latency").verdict == "not tested"


async def test_sums_that_are_wrong_only_in_large_messages_fail_the_check(tmp_path: Path) -> None:
    code = (
        "import mlx.core as mx\n"
        "real = mx.distributed.all_sum\n"
        "mx.distributed.all_sum = lambda x, **k: real(x, **k) + (x.size > 1 << 20)\n"
    )
    hostfile = configured(2)
    report = await verify(spoiled(Cluster.of(hostfile), tmp_path / "site", code), facts=seen(hostfile))
    assert check(report, "sums").verdict == "failed"
    assert "all_sum over 2 ranks gave wrong values" in check(report, "sums").cause


# -- bad input


async def test_one_mac_is_verified_alone() -> None:
    report = await verified(configured(1))
    assert verdicts(report) == {
        "ssh": "ok",
        "environment": "ok",
        "stale": "ok",
        "group": "ok",
    }
    assert "the cluster is one Mac" in report.notes[-1]


async def test_an_unknown_host_fails_ssh_and_the_rest_is_not_tested() -> None:
    report = await verify(Cluster.named(["nobody.invalid", "noone.invalid"]))
    assert check(report, "ssh").verdict == "failed"
    assert set(verdicts(report).values()) == {"failed", "not tested"}
    assert "nobody.invalid" in check(report, "ssh").cause


async def test_a_duplicate_host_is_rejected_before_the_scan() -> None:
    twice = Hostfile(
        (Host("a", ("10.0.0.1",), (None, "rdma_en2")), Host("a", (), ("rdma_en2", None))), "jaccl"
    )
    with pytest.raises(HostfileError, match="Same Mac as host 0"):
        await verify(Cluster.of(twice), on_event=_no_event)


def test_a_slow_link_is_a_note_and_fails_no_check() -> None:
    nodes = seen(configured(2))
    for number, node in enumerate(nodes):
        told = tuple(replace(port, current_gbps=40.0) if port.plugged else port for port in node.ports or ())
        nodes[number] = replace(node, ports=told)
    hostfile = plan.as_if_real(configured(2))
    wiring = build_wiring(nodes)
    found = checks.ports(compare.device_uses(hostfile, wiring, ring=False), wiring)
    assert found.verdict == "ok"
    assert "runs at 40 Gb/s, not 80" in found.proof


def test_nine_macs_without_a_ring_get_one_sentence() -> None:
    nodes = [
        replace(node, name=f"m{i}", ports=())
        for i, node in enumerate([*seen(configured(7)), *seen(configured(2))])
    ]
    bare = Hostfile(tuple(Host(f"m{i}") for i in range(9)), "jaccl")
    found = checks.wiring_check(bare, build_wiring(nodes), backend="jaccl")
    assert found.verdict == "failed"
    assert len(found.problems) == 1
    assert "A mesh supports at most 8 Macs (got 9)" in found.cause
    assert "The cables form no ring" in found.cause


async def test_nine_macs_are_no_mesh() -> None:
    nodes = [
        replace(node, name=f"m{i}", ports=None)
        for i, node in enumerate([*seen(configured(7)), *seen(configured(2))])
    ]
    rows = [tuple(None if i == j else f"rdma_en{2 + j}" for j in range(9)) for i in range(9)]
    hosts = [Host(f"m{i}", ("10.0.0.11",) if i == 0 else (), row) for i, row in enumerate(rows)]
    found = checks.wiring_check(Hostfile(tuple(hosts), "jaccl"), build_wiring(nodes), backend="jaccl")
    assert found.verdict == "failed"
    assert "A mesh supports at most 8 hosts (got 9)." in found.cause


async def test_two_macs_of_one_name_are_distinguished() -> None:
    nodes = [replace(node, name="studio") for node in seen(configured(2, "rdma-off:2"))]
    assert checks.rdma(build_wiring(nodes)).problems[0].where == "studio (#2)"
    cluster = Cluster.of(Hostfile((Host("a", extra={"name": "studio"}), Host("b", extra={"name": "studio"}))))
    assert cluster.names == ("studio (#1)", "studio (#2)")
    twins = tuple(replace(host, extra={**host.extra, "name": "mac1"}) for host in configured(2).hosts)
    with pytest.raises(HostfileError, match="or duplicate name of a simulated Mac: 'mac1'"):
        Cluster.of(replace(configured(2), hosts=twins))


async def test_facts_of_other_macs_and_unknown_backends_are_rejected() -> None:
    with pytest.raises(InputError, match="got facts of 3 Macs, but the cluster has 2"):
        await verify(Cluster.of(configured(2)), facts=seen(configured(3)))
    with pytest.raises(InputError, match="unknown backend 'nccl'"):
        await verify(Cluster.of(configured(2)), backend="nccl", on_event=_no_event)


async def test_a_scan_that_is_interrupted_leaves_nothing() -> None:
    """`nothing_left` looks for processes; here one command of the scan never ends."""
    asked = asyncio.Event()
    cluster = Cluster.of(configured(2, "hang:2:ibv_devinfo"))
    answered: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event.body, Stage) and "answered" in event.body.text:
            answered.append(event.body.text)
            asked.set()

    task = asyncio.create_task(verify(cluster, on_event=on_event))
    await asyncio.wait_for(asked.wait(), 60)
    assert not any("mac2" in text for text in answered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_ranks_can_be_stopped_and_leave_nothing() -> None:
    joining = asyncio.Event()
    hostfile = configured(2)

    def on_event(event: Event) -> None:
        if event.rank == 1 and isinstance(event.body, Stage):
            joining.set()

    task = asyncio.create_task(verified(hostfile, on_event=on_event))
    await asyncio.wait_for(joining.wait(), 120)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _no_event(event: Event) -> None:
    pytest.fail(f"told {event}")
