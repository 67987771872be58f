"""Apply a network plan to the Macs, after a yes, and take it back.

Before the first change every Mac has its undo script, here and there, and sudo has been tried everywhere
without a password: if one Mac would ask for it, none is changed, and the commands are there to paste. They
run one by one; the first that fails ends it, and the report says what was done. Nothing asks for a password.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.cluster.network import NetworkPlan, Step
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import CommandFailed, InputError, NodeError
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.paths import results_dir
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.saved import save_text, stamp
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.scan import tell

UNDO_SCRIPT = "~/.jaccl/undo-network.sh"
COMMAND_DEADLINE_S = 30.0
UNDO_DEADLINE_S = 120.0

# A set-up that was not taken back yet is taken back by the same script, after the new one: last change first.
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
_TAKE_BACK = f"Take back what was done with `undo`, or on each Mac: sh {UNDO_SCRIPT}"


@dataclass(frozen=True)
class ApplyReport:
    """What `apply` did.

    Attributes:
        plan: what was to be done.
        done: the steps that were carried out, in order.
        failed: the step that failed, if one did; none after it was tried.
        error: why it stopped; "" when all was done.
        fix: what to do about it.
        undo_files: the undo scripts on this machine, one a Mac.
    """

    plan: NetworkPlan
    done: tuple[Step, ...] = ()
    failed: Step | None = None
    error: str = ""
    fix: str = ""
    undo_files: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every step was carried out."""
        return not self.error

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
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
    """What `undo` did on each Mac: "undone", "nothing to undo", or why it failed, by name."""

    outcomes: dict[str, str]
    errors: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether no Mac failed."""
        return not self.errors


async def apply(cluster: Cluster, plan: NetworkPlan, *, yes: bool, on_event: OnEvent = ignore) -> ApplyReport:
    """Carry out a plan, step by step.

    Args:
        cluster: the same Macs, in the same order, as the plan's.
        plan: shown to the person before.
        yes: their explicit yes.
        on_event: hears a stage before each step.

    Raises:
        InputError: there was no yes, or the plan is of other Macs.
        JacclError: the undo scripts cannot be stored; nothing was changed.
    """
    _demand(cluster, plan, yes=yes)
    files = _save(plan)  # first: whoever has to paste the commands has what takes them back too
    if obstacle := await _obstacle(cluster, plan, on_event):
        return ApplyReport(plan, error=str(obstacle.what), fix=obstacle.fix, undo_files=files)
    for node in plan.nodes:
        tell(on_event, "undo", f"{plan.labels[node]}: storing its undo script")
        try:
            await cluster.nodes[node].script(_STORE, plan.undo_script(node), deadline=COMMAND_DEADLINE_S)
        except NodeError as error:
            what = f"Nothing was changed: {plan.labels[node]} takes no undo script: {error.what}"
            return ApplyReport(plan, error=what, fix=error.fix, undo_files=files)
    done: list[Step] = []
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
    """Write the undo scripts on this machine, one a Mac."""
    folder = results_dir() / f"network-undo-{stamp()}"
    return tuple(
        save_text(plan.labels[node], ".sh", plan.undo_script(node), folder=folder) for node in plan.nodes
    )


async def undo(cluster: Cluster, *, yes: bool, on_event: OnEvent = ignore) -> UndoReport:
    """Run the undo script that each Mac has, if it has one; then it is kept as done.

    Raises:
        InputError: there was no yes.
    """
    if not yes:
        raise InputError("nothing was changed: taking the set-up back needs an explicit yes")
    _demand_simulated_sudo(cluster)
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
    words = (done.stderr or done.stdout).strip().splitlines()
    fix = f"On that Mac, run: sh {UNDO_SCRIPT} (it may ask for your password). A reboot does the same."
    what = f"the undo script did not get through: {words[-1] if words else 'it gave no reason'}"
    raise CommandFailed(what, where=node.name, fix=fix, returncode=done.returncode)


def _demand(cluster: Cluster, plan: NetworkPlan, *, yes: bool) -> None:
    if not yes:
        raise InputError(
            "nothing was changed: a change to a Mac needs an explicit yes", fix="Read the commands first."
        )
    if len(plan.labels) != len(cluster.nodes):
        raise InputError(f"the plan is of {len(plan.labels)} Macs, the cluster of {len(cluster.nodes)}")
    _demand_simulated_sudo(cluster)


def _demand_simulated_sudo(cluster: Cluster) -> None:
    """In a rehearsal nothing may reach this machine's own sudo."""
    if cluster.rehearsal and not all(
        (mac.commands / "sudo").exists() for mac in homes.macs(cluster.hostfile)
    ):
        raise InputError(
            "REHEARSAL: these simulated Macs have no network that could be changed",
            fix="Make them anew: jaccl rehearse.",
        )


async def _obstacle(cluster: Cluster, plan: NetworkPlan, on_event: OnEvent) -> NodeError | None:
    """Why the plan should not even be begun: a Mac that cannot be reached, or whose sudo wants a password."""
    for node in plan.nodes:
        label = plan.labels[node]
        tell(on_event, "sudo", f"{label}: trying sudo without a password")
        try:
            await cluster.nodes[node].run(["sudo", "-n", "true"], deadline=COMMAND_DEADLINE_S)
        except CommandFailed as error:
            what = f"Nothing was changed: sudo on {label} does not go without a password ({error.output})."
            fix = f"Paste the commands into a terminal on each Mac:\n{plan.text()}"
            return NodeError(what, where=label, fix=fix)
        except NodeError as error:
            return NodeError(f"Nothing was changed: {error.what}", where=label, fix=error.fix)
    return None


def _failed(
    plan: NetworkPlan, done: list[Step], step: Step, error: NodeError, files: tuple[Path, ...]
) -> ApplyReport:
    label = plan.labels[step.node]
    what = f"{label}: `{step.line}` failed: {error.what} Done before it: {_told(plan, done)}."
    return ApplyReport(plan, tuple(done), step, what, f"{_TAKE_BACK}.", files)


def _stopped(plan: NetworkPlan, done: list[Step], step: Step) -> str:
    """What a person who stops it has to know."""
    unsure = f"whether {plan.labels[step.node]} still did `{step.line}` is not known"
    return f"Done before the stop: {_told(plan, done)}; {unsure}. {_TAKE_BACK}."


def _told(plan: NetworkPlan, done: list[Step]) -> str:
    return "; ".join(f"{plan.labels[one.node]}: {one.line}" for one in done) or "nothing"
