"""Apply a network plan to the Macs after confirmation, and undo it.

Before the first change, the undo script of each Mac is saved on that Mac and on this machine, and
passwordless sudo is tried on all. If one Mac needs a password, none is changed, and the report has the
commands to paste. Commands run one by one; the first failure ends the run, and the report lists what was
done.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import CommandFailed, InputError, NodeError
from jaccl_kernel.core.files import save_text, stamp
from jaccl_kernel.core.paths import results_dir
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.scan import tell
from jaccl_kernel.topology.addressing import NetworkPlan, NetworkStep

UNDO_SCRIPT = "~/.jaccl/undo-network.sh"
COMMAND_DEADLINE_S = 30.0
UNDO_DEADLINE_S = 120.0

# The script also undoes earlier changes that are still in place: last change first.
_STORE = r"""
set -eu
umask 077
mkdir -p "$HOME/.jaccl"
cd "$HOME/.jaccl"
printf %s "$1" >undo-network.sh.new
[ ! -e undo-network.sh ] || cat undo-network.sh >>undo-network.sh.new
mv undo-network.sh.new undo-network.sh
"""
_UNDO = r"""
cd "$HOME/.jaccl" 2>/dev/null || exit 3
[ -e undo-network.sh ] || exit 3
SUDO='sudo -n' sh ./undo-network.sh || exit 4
mv undo-network.sh "undo-network.done-$1.sh"
"""
_NOTHING = 3
_UNDO_FIX = f"Undo the changes with `undo`, or on each Mac: sh {UNDO_SCRIPT}"


@dataclass(frozen=True)
class ApplyReport:
    """The result of `apply`.

    Attributes:
        plan: the plan that was applied.
        done: the completed steps, in order.
        failed: the step that failed, if any; later steps were not tried.
        error: why it stopped; "" if all steps completed.
        fix: the fix for the error.
        undo_files: the undo scripts on this machine, one per Mac.
    """

    plan: NetworkPlan
    done: tuple[NetworkStep, ...] = ()
    failed: NetworkStep | None = None
    error: str = ""
    fix: str = ""
    undo_files: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every step completed."""
        return not self.error

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        labels = self.plan.labels
        return {
            "ok": self.ok,
            "done": [{"node": labels[step.node], "command": step.line} for step in self.done],
            "failed": None if self.failed is None else self.failed.line,
            "error": self.error,
            "fix": self.fix,
            "undo": [str(path) for path in self.undo_files],
        }


@dataclass(frozen=True)
class UndoReport:
    """The result of `undo` for each Mac, by name: "undone", "nothing to undo", or the error."""

    outcomes: dict[str, str]
    errors: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether it succeeded on every Mac."""
        return not self.errors


async def apply(cluster: Cluster, plan: NetworkPlan, *, yes: bool, on_event: OnEvent = ignore) -> ApplyReport:
    """Apply a plan, step by step.

    Args:
        cluster: the plan's Macs, in the same order.
        plan: the plan, which the user has seen.
        yes: the user's explicit confirmation.
        on_event: receives a stage before each step.

    Raises:
        InputError: it was not confirmed, or the plan is for other Macs.
        JacclError: the undo scripts cannot be saved; nothing was changed.
    """
    _require_confirmation(cluster, plan, yes=yes)
    files = _save(plan)  # first: a user who has to paste the commands needs the undo scripts too
    if obstacle := await _obstacle(cluster, plan, on_event):
        return ApplyReport(plan, error=str(obstacle.what), fix=obstacle.fix, undo_files=files)
    for node in plan.nodes:
        tell(on_event, "undo", f"{plan.labels[node]}: saving its undo script")
        try:
            await cluster.nodes[node].script(_STORE, plan.undo_script(node), deadline=COMMAND_DEADLINE_S)
        except NodeError as error:
            what = f"Nothing was changed: cannot save the undo script on {plan.labels[node]}: {error.what}"
            return ApplyReport(plan, error=what, fix=error.fix, undo_files=files)
    done: list[NetworkStep] = []
    for number, step in enumerate(plan.steps):
        tell(on_event, "network", f"{plan.labels[step.node]}: {step.line}", number / len(plan.steps))
        try:
            await cluster.nodes[step.node].run(["sudo", "-n", *step.command], deadline=COMMAND_DEADLINE_S)
        except NodeError as error:
            return _failed(plan, done, step, error, files)
        except asyncio.CancelledError:
            tell(on_event, "stopped", _stopped(plan, done, step))
            raise
        done.append(step)
    return ApplyReport(plan, tuple(done), undo_files=files)


def _save(plan: NetworkPlan) -> tuple[Path, ...]:
    """Write the undo scripts on this machine, one per Mac."""
    folder = results_dir() / f"network-undo-{stamp()}"
    return tuple(
        save_text(plan.labels[node], ".sh", plan.undo_script(node), folder=folder) for node in plan.nodes
    )


async def undo(cluster: Cluster, *, yes: bool, on_event: OnEvent = ignore) -> UndoReport:
    """Run each Mac's undo script, if it has one, and rename it to `undo-network.done-…`.

    Raises:
        InputError: it was not confirmed.
    """
    if not yes:
        raise InputError("not confirmed: nothing was changed", fix="Pass --yes to undo the changes.")
    _require_simulated_sudo(cluster)
    outcomes, errors = {}, {}
    for node in cluster.nodes:
        tell(on_event, "undo", f"{node.name}: {UNDO_SCRIPT}")
        try:
            outcomes[node.name] = await _undo_one(node)
        except NodeError as error:
            outcomes[node.name] = errors[node.name] = str(error)
    return UndoReport(outcomes, errors)


async def _undo_one(node: Node) -> str:
    done = await node.script(_UNDO, stamp(), deadline=UNDO_DEADLINE_S, check=False)
    if done.returncode == 0:
        return "undone"
    if done.returncode == _NOTHING:
        return "nothing to undo"
    lines = (done.stderr or done.stdout).strip().splitlines()
    fix = f"On that Mac, run: sh {UNDO_SCRIPT} (it may ask for your password). A reboot has the same effect."
    what = f"the undo script failed: {lines[-1] if lines else 'no output'}"
    raise CommandFailed(what, where=node.name, fix=fix, returncode=done.returncode)


def _require_confirmation(cluster: Cluster, plan: NetworkPlan, *, yes: bool) -> None:
    if not yes:
        raise InputError("not confirmed: nothing was changed", fix="Read the commands, then pass --yes.")
    if len(plan.labels) != len(cluster.nodes):
        raise InputError(f"the plan has {len(plan.labels)} Macs, but the cluster has {len(cluster.nodes)}")
    _require_simulated_sudo(cluster)


def _require_simulated_sudo(cluster: Cluster) -> None:
    """A rehearsal must not run this machine's own sudo."""
    if cluster.rehearsal and not all(
        (mac.commands / "sudo").exists() for mac in homes.macs(cluster.hostfile)
    ):
        raise InputError(
            "REHEARSAL: these simulated Macs have no simulated sudo, so their network cannot be changed",
            fix="Create them again: jaccl rehearse.",
        )


async def _obstacle(cluster: Cluster, plan: NetworkPlan, on_event: OnEvent) -> NodeError | None:
    """Return why the plan cannot start: a Mac is unreachable, or its sudo needs a password."""
    for node in plan.nodes:
        label = plan.labels[node]
        tell(on_event, "sudo", f"{label}: trying sudo without a password")
        try:
            await cluster.nodes[node].run(["sudo", "-n", "true"], deadline=COMMAND_DEADLINE_S)
        except CommandFailed as error:
            what = f"Nothing was changed: sudo on {label} needs a password ({error.output})."
            fix = f"Paste the commands into a terminal on each Mac:\n{plan.text()}"
            return NodeError(what, where=label, fix=fix)
        except NodeError as error:
            return NodeError(f"Nothing was changed: {error.what}", where=label, fix=error.fix)
    return None


def _failed(
    plan: NetworkPlan, done: list[NetworkStep], step: NetworkStep, error: NodeError, files: tuple[Path, ...]
) -> ApplyReport:
    label = plan.labels[step.node]
    what = f"{label}: `{step.line}` failed: {error.what} Completed before it: {_listed(plan, done)}."
    return ApplyReport(plan, tuple(done), step, what, f"{_UNDO_FIX}.", files)


def _stopped(plan: NetworkPlan, done: list[NetworkStep], step: NetworkStep) -> str:
    """Return the message for a user who stops the run."""
    unsure = f"it is unknown whether {plan.labels[step.node]} completed `{step.line}`"
    return f"Completed before the stop: {_listed(plan, done)}; {unsure}. {_UNDO_FIX}."


def _listed(plan: NetworkPlan, done: list[NetworkStep]) -> str:
    return "; ".join(f"{plan.labels[one.node]}: {one.line}" for one in done) or "nothing"
