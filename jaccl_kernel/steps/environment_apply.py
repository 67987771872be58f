"""Carry out an environment's plan: all nodes side by side, each step with a deadline, told line by line.

Nothing is changed without a yes. A node that fails does not stop the others, and is put back as it was; so
are all of them on a cancel. Only when even that fails (the node is gone) an unfinished environment stays, and
the next plan takes it away.
"""

import asyncio
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import InputError, JacclError
from jaccl_kernel.jobs import lock
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.steps.environment_plan import Copy, EnvironmentPlan, NodePlan, Run, put_back
from jaccl_kernel.wire import Event

LAST_WORDS = 12
"""Lines that are kept of what a failing step said."""

Outcome = Literal["made", "kept", "failed", "cannot"]


@dataclass(frozen=True)
class Applied:
    """How it went at one node.

    Attributes:
        name: the node's.
        outcome: made, kept (it was there), failed, or cannot (nothing was tried).
        at: the step that failed.
        error: why, with what to do.
        last_words: the last lines that the step wrote.
        left: what is left of a failed one: "put back" or "unfinished".
    """

    name: str
    outcome: Outcome
    at: str = ""
    error: str = ""
    last_words: tuple[str, ...] = ()
    left: Literal["", "put back", "unfinished"] = ""


@dataclass(frozen=True)
class ApplyReport:
    """How it went at each node, in rank order. `python` is the interpreter that was made, for `check`."""

    nodes: tuple[Applied, ...]
    python: str
    rehearsal: bool

    @property
    def ok(self) -> bool:
        """Whether every node has the environment now."""
        return all(node.outcome in ("made", "kept") for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's own types."""
        nodes = [asdict(node) | {"last_words": list(node.last_words)} for node in self.nodes]
        return {"ok": self.ok, "rehearsal": self.rehearsal, "python": self.python, "nodes": nodes}


async def apply(plan: EnvironmentPlan, *, yes: bool = False, on_event: OnEvent = ignore) -> ApplyReport:
    """Make the environment on every node that can have it.

    Each step tells a `stage` of the node's rank, and each line that it writes a `line`.

    Args:
        plan: what to do, as it was shown.
        yes: the person has seen the plan and agrees; without it nothing is done.
        on_event: told what happens.

    Raises:
        InputError: there was no yes.
        Busy: a job, or another making, is running on one of the nodes.
    """
    if not yes:
        raise InputError("no yes was given, so nothing was changed", fix="Look at the plan, then say yes.")
    cluster = plan.cluster
    with lock.hold([host.ssh for host in cluster.hostfile.hosts], "making an environment"):
        # a task group: on a cancel it waits until every node is put back (gather would leave at the first)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_Making(rank, node, todo, on_event).run())
                for rank, (node, todo) in enumerate(zip(cluster.nodes, plan.nodes, strict=True))
            ]
    return ApplyReport(tuple(task.result() for task in tasks), plan.python, cluster.rehearsal)


class _Making:
    """The making of one node's environment."""

    def __init__(self, rank: int, node: Node, plan: NodePlan, on_event: OnEvent) -> None:
        self._rank = rank
        self._node = node
        self._plan = plan
        self._on_event = on_event
        self._said: deque[str] = deque(maxlen=LAST_WORDS)
        self._under_way = False  # our own .part stands there

    async def run(self) -> Applied:
        """Take all steps; what stops them is put back, and told."""
        name, plan = self._node.name, self._plan
        if plan.action == "cannot":
            return self._failed(Applied(name, "cannot", error=f"{plan.why} {plan.fix}".strip()))
        at = ""
        try:
            for number, step in enumerate(plan.steps, 1):
                at = step.label
                self._tell_stage(at, f"step {number} of {len(plan.steps)}")
                self._said.clear()
                await self._take(step)
                self._under_way = self._under_way or (isinstance(step, Run) and step.begins)
        except JacclError as error:
            words = tuple(self._said)  # before putting back speaks
            left = await self._put_back()
            return self._failed(Applied(name, "failed", at, str(error), words, left))
        except BaseException:
            await self._put_back()
            raise
        self._tell("done", returncode=0)
        return Applied(name, "made" if plan.steps else "kept")

    async def _take(self, step: Run | Copy) -> None:
        if isinstance(step, Copy):
            await self._node.copy_to(step.source, step.folder, deadline=step.deadline_s)
        else:
            await self._node.run(step.argv, deadline=step.deadline_s, on_line=self._hear)

    async def _put_back(self) -> Literal["", "put back", "unfinished"]:
        """Undo what was begun; "" if nothing was."""
        if not self._under_way:
            return ""
        step = put_back(self._plan.path or "")
        self._tell_stage(step.label, "undoing")
        try:
            await self._take(step)
        except JacclError:
            return "unfinished"
        return "put back"

    def _failed(self, result: Applied) -> Applied:
        self._tell("error", type="environment", message=result.error, stage=result.at or "plan")
        return result

    def _hear(self, line: str) -> None:
        if text := line.strip():
            self._said.append(text)
            self._tell("line", text=text, stream="stdout")

    def _tell_stage(self, name: str, text: str) -> None:
        self._tell("stage", name=name, text=text, fraction=None)

    def _tell(self, kind: str, **data: Any) -> None:
        self._on_event(Event(self._rank, kind, data))
