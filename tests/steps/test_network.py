"""Applying a network plan, and taking it back, on simulated Macs."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.core.paths import results_dir
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.network import apply, undo
from jaccl_kernel.topology import addressing as plans
from jaccl_kernel.topology.addressing import NetworkPlan
from jaccl_kernel.topology.probe import probe
from jaccl_kernel.topology.wiring import build_wiring
from tests.events import bodies, is_stage
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


def broken(*faults: str) -> tuple[Cluster, NetworkPlan]:
    hostfile = configured(3, *faults)
    return Cluster.of(hostfile), plans.plan(build_wiring(seen(hostfile)))


def script_of(cluster: Cluster, node: int) -> Path:
    return homes.macs(cluster.hostfile)[node].home / ".jaccl" / "undo-network.sh"


def sudo_of(cluster: Cluster, node: int, script: str) -> None:
    """Give one simulated Mac another sudo."""
    path = homes.macs(cluster.hostfile)[node].commands / "sudo"
    path.rename(path.with_name("sudo.before"))
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def gids_in_place(cluster: Cluster) -> bool:
    """Whether a fresh scan finds nothing left to set up."""
    return not plans.plan(build_wiring(await probe(cluster.nodes))).steps


async def test_without_confirmation_nothing_is_changed() -> None:
    cluster, plan = broken("bridged-port:2")
    with pytest.raises(InputError, match="not confirmed"):
        await apply(cluster, plan, yes=False)
    with pytest.raises(InputError, match="not confirmed"):
        await undo(cluster, yes=False)
    assert not script_of(cluster, 1).exists()
    assert not await gids_in_place(cluster)


async def test_a_plan_is_applied_fixes_the_ports_and_is_undone() -> None:
    cluster, plan = broken("bridged-port:2", "no-ipv4:3")
    before = await probe(cluster.nodes)
    events: list[Event] = []
    report = await apply(cluster, plan, yes=True, on_event=events.append)
    assert report.ok, report.error
    assert report.done == plan.steps
    assert await gids_in_place(cluster)
    told = [stage.text for stage in bodies(events, Stage) if stage.name == "network"]
    assert told == [f"{plan.labels[step.node]}: {step.line}" for step in plan.steps]

    taken_back = await undo(cluster, yes=True)
    assert taken_back.ok
    assert taken_back.outcomes == {"mac1": "nothing to undo", "mac2": "undone", "mac3": "undone"}
    after = await probe(cluster.nodes)
    assert [node.interfaces for node in after] == [node.interfaces for node in before]
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "nothing to undo"


async def test_the_undo_scripts_lie_here_and_there_before_the_first_change() -> None:
    cluster, plan = broken("bridged-port:2")
    seen_before: list[bool] = []

    def on_event(event: Event) -> None:
        if is_stage(event, "network"):
            here = list(results_dir().glob("network-undo-*/mac2.sh"))
            seen_before.append(bool(here) and script_of(cluster, 1).exists())

    report = await apply(cluster, plan, yes=True, on_event=on_event)
    assert seen_before == [True, True]
    assert [path.read_text() for path in report.undo_files] == [plan.undo_script(1)]
    assert script_of(cluster, 1).read_text() == plan.undo_script(1)


async def test_one_undo_reverses_two_changes() -> None:
    cluster, plan = broken("bridged-port:2")
    before = await probe(cluster.nodes)
    for steps in (plan.steps[:1], plan.steps[1:]):
        assert (await apply(cluster, replace(plan, steps=steps), yes=True)).ok
    assert await gids_in_place(cluster)
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "undone"
    after = await probe(cluster.nodes)
    assert [node.interfaces for node in after] == [node.interfaces for node in before]


async def test_an_undo_after_a_reboot_finds_nothing_and_is_done() -> None:
    cluster, plan = broken("bridged-port:2")
    assert (await apply(cluster, plan, yes=True)).ok
    homes.macs(cluster.hostfile)[1].restart()
    cluster = Cluster.of(cluster.hostfile)
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "undone"
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "nothing to undo"


async def test_a_sudo_that_needs_a_password_stops_the_run_before_any_change() -> None:
    cluster, plan = broken("bridged-port:2", "no-ipv4:3")
    sudo_of(cluster, 2, 'echo "sudo: a password is required" >&2; exit 1')
    report = await apply(cluster, plan, yes=True)
    assert not report.ok
    assert report.done == ()
    assert "Nothing was changed: sudo on mac3 needs a password" in report.error
    assert all(step.line in report.fix and step.undo_line in report.fix for step in plan.steps)
    assert [path.read_text() for path in report.undo_files] == [plan.undo_script(1), plan.undo_script(2)]
    assert not script_of(cluster, 1).exists()


async def test_the_first_failure_ends_the_run_and_reports_the_completed_steps() -> None:
    cluster, plan = broken("bridged-port:2", "no-ipv4:3")
    real = homes.macs(cluster.hostfile)[2].commands / "sudo.before"
    refuse = 'echo "ifconfig: no such luck" >&2; exit 1'
    sudo_of(cluster, 2, f'case "$*" in *netmask*) {refuse};; esac; exec {real} "$@"')
    report = await apply(cluster, plan, yes=True)
    assert [step.node for step in report.done] == [1, 1]
    assert report.failed is not None
    assert report.failed.node == 2
    assert "no such luck" in report.error
    assert report.done[0].line in report.error
    assert "undo" in report.fix
    assert report.to_json()["failed"] == report.failed.line
    taken_back = await undo(cluster, yes=True)
    assert taken_back.ok, taken_back.errors
    assert not await gids_in_place(cluster)


async def test_a_failed_undo_is_reported_and_its_script_is_kept() -> None:
    cluster, plan = broken("bridged-port:2")
    assert (await apply(cluster, plan, yes=True)).ok
    sudo_of(cluster, 1, 'echo "sudo: a password is required" >&2; exit 1')
    report = await undo(cluster, yes=True)
    assert not report.ok
    assert "the undo script failed" in report.errors["mac2"]
    assert script_of(cluster, 1).exists()


async def test_a_mac_that_cannot_be_reached_stops_it_before_any_change() -> None:
    cluster, plan = broken("bridged-port:2")
    gone = Cluster.of(configured(3, "bridged-port:2", "ssh-fails:2"))
    report = await apply(gone, plan, yes=True)
    assert "Nothing was changed" in report.error
    assert report.done == ()
    assert not await gids_in_place(cluster)


async def test_a_rehearsal_never_reaches_this_machines_own_sudo() -> None:
    cluster, plan = broken("bridged-port:2")
    (homes.macs(cluster.hostfile)[1].commands / "sudo").unlink()
    with pytest.raises(InputError, match="REHEARSAL"):
        await apply(cluster, plan, yes=True)
    with pytest.raises(InputError, match="REHEARSAL"):
        await undo(cluster, yes=True)


async def test_a_plan_of_other_macs_is_rejected() -> None:
    cluster, plan = broken("bridged-port:2")
    with pytest.raises(InputError, match="the plan has 2 Macs"):
        await apply(cluster, replace(plan, labels=plan.labels[:2]), yes=True)


async def test_a_stopped_run_reports_the_completed_steps_and_can_be_undone() -> None:
    cluster, plan = broken("bridged-port:2")
    before = await probe(cluster.nodes)
    commands = homes.macs(cluster.hostfile)[1].commands
    sudo_of(cluster, 1, f'case "$*" in *netmask*) exec sleep 600;; esac; exec {commands}/sudo.before "$@"')
    begun = asyncio.Event()
    told: list[str] = []

    def on_event(event: Event) -> None:
        [stage] = bodies([event], Stage)
        told.append(stage.text)
        if plan.steps[1].line in stage.text:
            begun.set()

    task = asyncio.create_task(apply(cluster, plan, yes=True, on_event=on_event))
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told[-1].startswith(
        f"Completed before the stop: mac2: {plan.steps[0].line}; it is unknown whether mac2 completed"
    )
    assert "sh ~/.jaccl/undo-network.sh" in told[-1]
    assert script_of(cluster, 1).read_text() == plan.undo_script(1)
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "undone"
    assert (await undo(cluster, yes=True)).outcomes["mac2"] == "nothing to undo"
    after = await probe(cluster.nodes)
    assert [node.interfaces for node in after] == [node.interfaces for node in before]
