"""Carries out the plan of `fanout.py`: each node gets the model from one that has it, as soon as it can.

A sender that fails is replaced by another one. Nodes that were lost are tried again at the end.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jaccl_kernel.core.errors import JacclError, NodeError, NodeUnreachable
from jaccl_kernel.core.events import Body, Line
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.survey import Survey, survey
from jaccl_kernel.steps.sync import fanout
from jaccl_kernel.steps.sync.deliver import Delivered, Delivery, find_routes, one_machine, shortage
from jaccl_kernel.steps.sync.events import NodeFinished
from jaccl_kernel.steps.sync.fanout import OUTSIDE, Link, Send, Sender
from jaccl_kernel.steps.sync.locate import Copy, State
from jaccl_kernel.steps.sync.report import NodeSync
from jaccl_kernel.topology.routes import thunderbolt_routes
from jaccl_kernel.topology.wiring import Wiring

REBOOT_S = 120.0
"""How long the end of a sync waits for a node that was lost: a Mac restarts within two minutes."""

_POLL_S = 3.0


@dataclass(frozen=True)
class Found:
    """One node before the transfer; `copy` is None if it did not answer, and `error` says why."""

    node: Node
    index: int
    copy: Copy | None
    state: State
    detail: str
    needed: int
    error: NodeError | None = None

    @property
    def short(self) -> str | None:
        """The message about insufficient disk space, or None."""
        return shortage(self.needed, self.copy.survey.free) if self.copy else None

    def report(self) -> NodeSync:
        """Return the node's result without a transfer."""
        seen = self.copy.survey if self.copy else None
        return NodeSync(
            node=self.node.name,
            path=seen.path if seen else None,
            before=self.state,
            state=self.state,
            detail=self.detail,
            needed_bytes=self.needed,
            free_bytes=seen.free if seen else None,
            resumable_bytes=seen.partial.bytes if seen else 0,
            error=self.error.what if self.error else "",
            fix=self.error.fix if self.error else "",
        )


class Copies:
    """The copies of one model to all nodes that lack it.

    Args:
        sources: the complete copies, all with the same content, the preferred first.
        targets: the nodes that lack it; each has answered.
        wiring: of the cluster.
        tell: receives Line, NodeFinished and the events of `deliver.py`.
    """

    def __init__(
        self, sources: Sequence[Copy], targets: Sequence[Found], wiring: Wiring, tell: Callable[[Body], None]
    ) -> None:
        self._targets = {one.index: one for one in targets}
        self._wiring = wiring
        self._tell = tell
        self._holders: dict[Sender, Copy] = {}
        for copy in sources:
            self._holders.setdefault(copy.index, copy)
        self._ended: Mapping[int, asyncio.Event] = {index: asyncio.Event() for index in self._targets}
        self._channels: defaultdict[object, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lost: set[int] = set()

    async def run(self) -> dict[int, NodeSync]:
        """Copy to all nodes; a failure of one does not stop the others. The results, by rank."""
        sends = [send for sends in self._plan() for send in sends]
        async with asyncio.TaskGroup() as group:
            tasks = {send.target: group.create_task(self._send(send)) for send in sends}
        results = {target: task.result() for target, task in tasks.items()}
        async with asyncio.TaskGroup() as group:
            again = {index: group.create_task(self._again(index, results[index])) for index in self._lost}
        return results | {index: task.result() for index, task in again.items()}

    def _plan(self) -> tuple[tuple[Send, ...], ...]:
        needed = {index: one.needed if one.short is None else 1 << 62 for index, one in self._targets.items()}
        rounds = fanout.plan(self._holders, needed, self._link)
        for number, sends in enumerate(rounds, 1):
            words = ", ".join(f"{self._name(one.source)} → {self._name(one.target)}" for one in sends)
            self._tell(Line(f"round {number} of {len(rounds)}: {words}", "sync"))
        return rounds

    def _link(self, source: Sender, target: int) -> Link:
        if one_machine(self._node(source), self._targets[target].node):
            return "local"
        if source is OUTSIDE:
            return "uplink"
        return "cable" if thunderbolt_routes(self._wiring, source, target) else "network"

    def _node(self, index: Sender) -> Node:
        held = self._holders.get(index)
        if held is not None:
            return held.node
        assert index is not OUTSIDE  # it sends only if it holds the model
        return self._targets[index].node

    def _name(self, index: Sender) -> str:
        return self._node(index).name

    async def _send(self, send: Send) -> NodeSync:
        """Copy to one node, once its planned sender has the model and is free."""
        found = self._targets[send.target]
        try:
            if send.source not in self._holders and send.source is not OUTSIDE:
                await self._ended[send.source].wait()
            planned = send.source in self._holders
            async with self._channels[_channel(send) if planned else "uplink"]:
                assert found.copy
                return await self._deliver(found, found.copy.survey, send.source)
        finally:
            self._ended[send.target].set()

    async def _deliver(self, found: Found, there: Survey, planned: Sender) -> NodeSync:
        """Copy to one node: from the planned sender, else from another one, the uplink last."""
        order = sorted(self._holders, key=lambda index: (index != planned, index is OUTSIDE))
        sources = [self._holders[index] for index in order]
        delivery = Delivery(
            found.node, there, find_routes(sources, found.node, found.index, self._wiring), self._tell
        )
        try:
            done = await delivery.run()
        except JacclError as error:
            report = _failed(found.report(), delivery, error)
            if isinstance(error, NodeUnreachable) and found.index not in self._lost:
                self._lost.add(found.index)
                self._tell(Line(f"{found.node.name}: {report.error}; tried again at the end", "sync"))
                return report
        else:
            self._holders.setdefault(found.index, _copy(found, there, done, sources[0]))
            report = _copied(found.report(), delivery, done)
        self._tell(NodeFinished(report))
        return report

    async def _again(self, index: int, failed: NodeSync) -> NodeSync:
        """Copy once more to a node that was lost, if it answers before the deadline."""
        found = self._targets[index]
        assert found.copy
        there = await self._awaited(found.node, found.copy.survey.path)
        if there is None:
            self._tell(NodeFinished(failed))
            return failed
        report = await self._deliver(found, there, index)
        note = f"the first try failed: {failed.error}"
        return replace(report, notes=(*failed.notes, note, *report.notes))

    async def _awaited(self, node: Node, folder: str) -> Survey | None:
        """The survey of a node that may be restarting; None if it does not answer."""
        now = asyncio.get_running_loop().time
        end = now() + REBOOT_S
        while True:
            try:
                return await survey(node, folder)
            except NodeUnreachable:
                if now() + _POLL_S > end:
                    return None
                self._tell(Line(f"{node.name}: no answer; waiting up to {end - now():.0f} s", "sync"))
            except NodeError:
                return None
            await asyncio.sleep(_POLL_S)


def _channel(send: Send) -> object:
    """What a send uses alone: a node's network interface, the uplink, or the way between two nodes."""
    if send.link == "network":
        return send.source
    return "uplink" if send.link == "uplink" else (send.source, send.target)


def _copy(found: Found, there: Survey, done: Delivered, source: Copy) -> Copy:
    """The new copy as a source for other nodes."""
    arrived = replace(there, path=done.path, state="folder", tree=done.tree)
    return Copy(found.node, found.index, arrived, source.facts, "")


def _failed(report: NodeSync, delivery: Delivery, error: JacclError) -> NodeSync:
    return replace(
        report,
        state="failed",
        error=f"{error.where}: {error.what}" if error.where else error.what,
        fix=error.fix,
        kept=delivery.kept,
        notes=delivery.notes,
    )


def _copied(report: NodeSync, delivery: Delivery, done: Delivered) -> NodeSync:
    return replace(
        report,
        state="copied",
        source=done.source,
        route=str(done.route),
        sent_bytes=done.sent,
        seconds=done.seconds,
        notes=delivery.notes,
    )
