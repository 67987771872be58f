"""Apply an environment plan: all nodes in parallel, each step with a deadline and its output as events.

Nothing is changed without confirmation. A node that fails does not stop the others, and its previous
environment is restored; a cancel restores all of them. If the restore fails too (the node is unreachable),
the unfinished environment remains, and the next plan removes it.
"""

import asyncio
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.core.events import Body, Done, Event, Line, RankError, Stage
from jaccl_kernel.launch import lock
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.steps.environment.plan import Copy, EnvironmentPlan, NodePlan, Run, put_back

LAST_LINES = 12
"""Lines of output in the report of a failed step."""

Outcome = Literal["created", "unchanged", "failed", "skipped"]


@dataclass(frozen=True)
class Applied:
    """The result on one node.

    Attributes:
        name: the node's name.
        outcome: created, unchanged (it was up to date), failed, or skipped (the plan cannot create it).
        at: the step that failed.
        error: the cause, with the fix.
        last_lines: the last lines of the step's output.
        left: the state after a failure: "restored" or "unfinished".
    """

    name: str
    outcome: Outcome
    at: str = ""
    error: str = ""
    last_lines: tuple[str, ...] = ()
    left: Literal["", "restored", "unfinished"] = ""


@dataclass(frozen=True)
class ApplyReport:
    """The result on each node, in rank order. `python` is the new interpreter, for `check`."""

    nodes: tuple[Applied, ...]
    python: str
    rehearsal: bool

    @property
    def ok(self) -> bool:
        """Whether every node has the environment."""
        return all(node.outcome in ("created", "unchanged") for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        nodes = [asdict(node) | {"last_lines": list(node.last_lines)} for node in self.nodes]
        return {"ok": self.ok, "rehearsal": self.rehearsal, "python": self.python, "nodes": nodes}


async def apply(plan: EnvironmentPlan, *, yes: bool = False, on_event: OnEvent = ignore) -> ApplyReport:
    """Create the environment on every node that supports it.

    Sends a `stage` of the node's rank for each step, and a `line` for each line of its output.

    Args:
        plan: the plan, which the user has seen.
        yes: the user's explicit confirmation.
        on_event: receives the events.

    Raises:
        InputError: it was not confirmed.
        Busy: a job, or another `apply`, is running on one of the nodes.
    """
    if not yes:
        raise InputError("not confirmed: nothing was changed", fix="Check the plan, then pass --yes.")
    cluster = plan.cluster
    with lock.hold([host.ssh for host in cluster.hostfile.hosts], "creating an environment"):
        # a task group: on a cancel it waits until every node is restored (gather returns at the first)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_Creation(rank, node, todo, on_event).run())
                for rank, (node, todo) in enumerate(zip(cluster.nodes, plan.nodes, strict=True))
            ]
    return ApplyReport(tuple(task.result() for task in tasks), plan.python, cluster.rehearsal)


class _Creation:
    """The creation of one node's environment."""

    def __init__(self, rank: int, node: Node, plan: NodePlan, on_event: OnEvent) -> None:
        self._rank = rank
        self._node = node
        self._plan = plan
        self._on_event = on_event
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._started = False  # our own .part exists

    async def run(self) -> Applied:
        """Run all steps; restore the previous environment on a failure."""
        name, plan = self._node.name, self._plan
        if plan.action == "skip":
            return self._failed(Applied(name, "skipped", error=f"{plan.why} {plan.fix}".strip()))
        at = ""
        try:
            for number, step in enumerate(plan.steps, 1):
                at = step.label
                self._send_stage(at, f"step {number} of {len(plan.steps)}")
                self._last_lines.clear()
                await self._run_step(step)
                self._started = self._started or (isinstance(step, Run) and step.begins)
        except JacclError as error:
            last_lines = tuple(self._last_lines)  # before the restore writes lines
            left = await self._restore()
            return self._failed(Applied(name, "failed", at, str(error), last_lines, left))
        except BaseException:
            await self._restore()
            raise
        self._send(Done())
        return Applied(name, "created" if plan.steps else "unchanged")

    async def _run_step(self, step: Run | Copy) -> None:
        if isinstance(step, Copy):
            await self._node.copy_to(step.source, step.folder, deadline=step.deadline_s)
        else:
            await self._node.run(step.argv, deadline=step.deadline_s, on_line=self._on_line)

    async def _restore(self) -> Literal["", "restored", "unfinished"]:
        """Restore the previous environment; "" if nothing was changed."""
        if not self._started:
            return ""
        step = put_back(self._plan.path or "")
        self._send_stage(step.label, "restoring")
        try:
            await self._run_step(step)
        except JacclError:
            return "unfinished"
        return "restored"

    def _failed(self, result: Applied) -> Applied:
        self._send(RankError("environment", result.error, stage=result.at or "plan"))
        return result

    def _on_line(self, line: str) -> None:
        if text := line.strip():
            self._last_lines.append(text)
            self._send(Line(text))

    def _send_stage(self, name: str, text: str) -> None:
        self._send(Stage(name, text))

    def _send(self, body: Body) -> None:
        self._on_event(Event(self._rank, body))
