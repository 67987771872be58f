"""Sync: copy one model to every node of a cluster, complete and with matching checksums.

It first checks which nodes have the model, whether it fits and splits, and the disk space. Then it copies the
model to all nodes that lack it, at once. A failure on one node does not stop the others. The result is one
saved record.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import InputError, NodeError
from jaccl_kernel.core.events import HOST, Body, Event, Stage
from jaccl_kernel.core.files import save_json
from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.launch import lock
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.nodes import staging
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.survey import Hashes, OnHash, survey
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.fit import Finding, fit
from jaccl_kernel.steps.sync.copies import Copies, Found
from jaccl_kernel.steps.sync.events import FitChecked, HashProgress, NodeFinished, NodesFound
from jaccl_kernel.steps.sync.locate import (
    HERE,
    Copy,
    ModelTarget,
    choose,
    is_here,
    judge,
    named_nodes,
    resolve_target,
    state_of,
)
from jaccl_kernel.steps.sync.report import SCHEMA, NodeSync, SyncReport
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.probe import probe
from jaccl_kernel.topology.wiring import build_wiring

OnEvent = Callable[[Event], None]


async def sync(
    cluster: Cluster,
    options: SyncOptions,
    *,
    facts: Sequence[NodeFacts] | None = None,
    on_event: OnEvent = lambda event: None,
    save: bool = True,
) -> SyncReport:
    """Check the nodes, copy the model, and verify the copies.

    Sends Stage, Line and the events of `steps/sync/events.py`. Cancelling ends all copies and keeps their
    partial data.

    Args:
        cluster: the target nodes.
        options: the model, its source and its target folder.
        facts: of the nodes, if known; None for a new scan.
        on_event: receives the events.
        save: whether to save the record.

    Raises:
        InputError: the model's name or the source is invalid, or complete copies differ.
        ModelError: no node has a complete copy.
        NodeError: no node is reachable.
        Busy: another sync to one of these nodes is running.
    """
    return await _Sync(cluster, options, on_event).run(facts, save=save)


class _Sync:
    """One run of the step."""

    def __init__(self, cluster: Cluster, options: SyncOptions, on_event: OnEvent) -> None:
        self._cluster = cluster
        self._options = options
        self._on_event = on_event
        self._hashes: Hashes = "fresh" if options.rehash else "cached"

    async def run(self, facts: Sequence[NodeFacts] | None, *, save: bool) -> SyncReport:
        target, source = await self._resolve()
        self._stage("look", f"checking which nodes have {target.name}")
        copies, nodes_facts = await asyncio.gather(self._survey_all(target, source), self._facts(facts))
        sources = copies.choose(target, source, alone=self._options.source is not None)
        found = [self._compare(sources[0], copies, index) for index in range(len(self._cluster.nodes))]
        self._event(NodesFound(tuple(one.report() for one in found)))
        findings = self._fit(sources[0], found, nodes_facts)
        if self._options.check:
            nodes = [one.report() for one in found]
        else:
            self._stage("copy", f"{target.name} from {sources[0].node.name}")
            nodes = await self._copy_all(target, sources, found, nodes_facts)
        record = self._record(target, sources[0], nodes, findings)
        return SyncReport(record, tuple(nodes), findings, save_json("sync", record) if save else None)

    async def _resolve(self) -> tuple[ModelTarget, int | None]:
        """Return the target, and the rank of the source if a node was named."""
        options = self._options
        if options.source is None or is_here(options.source):
            if options.model == DEMO:
                await ensure_demo(lambda text, fraction: self._stage("demo model", text, fraction))
            target = resolve_target(options.model, options.dest)
            if options.source is not None and target.here is None:
                raise InputError(
                    f"{options.model!r} not found on this machine", fix="Name its folder on this machine."
                )
            return target, None
        hosts = [host.ssh for host in self._cluster.hostfile.hosts]
        matches = list(named_nodes(self._cluster.names, hosts, options.source))
        if len(matches) != 1:
            what = "matches more than one node" if matches else "is not a node of this cluster"
            known = ", ".join(self._cluster.names)
            raise InputError(
                f"{options.source} {what}", where="--from", fix=f"Name one of {known}, or localhost."
            )
        home = (await survey(self._cluster.nodes[matches[0]], "~/", hashes="none")).home
        return resolve_target(options.model, options.dest, elsewhere=True, home=home), matches[0]

    async def _survey_all(self, target: ModelTarget, source: int | None) -> "_Copies":
        """Survey all folders that could have the model, at once."""
        nodes: list[tuple[int | None, Node, str]] = [
            (index, node, target.dest) for index, node in enumerate(self._cluster.nodes)
        ]
        if source is not None and target.origin != target.dest:
            nodes.append((source, self._cluster.nodes[source], target.origin))
        elif source is None and target.here is not None:
            nodes.append((None, LocalNode(HERE), str(target.here)))

        async def one(index: int | None, node: Node, folder: str) -> Copy | NodeError:
            try:
                tell = self._hashing(node.name)
                seen = await survey(node, folder, hashes=self._hashes, heads=True, on_hash=tell)
            except NodeError as error:
                return error
            return await asyncio.to_thread(judge, node, index, seen)

        seen = await asyncio.gather(*(one(*asked) for asked in nodes))
        size = len(self._cluster.nodes)
        return _Copies(tuple(seen[:size]), seen[size] if len(seen) > size else None)

    async def _facts(self, facts: Sequence[NodeFacts] | None) -> Sequence[NodeFacts]:
        return await probe(self._cluster.nodes) if facts is None else facts

    def _compare(self, reference: Copy, copies: "_Copies", index: int) -> Found:
        node, seen = self._cluster.nodes[index], copies.nodes[index]
        if isinstance(seen, NodeError):
            return Found(node, index, None, "not tested", "", 0, seen)
        state, difference = state_of(reference, seen)
        needed = 0 if state == "identical" else staging.plan(reference.tree, seen.survey).needed
        detail = seen.trouble if state == "incomplete" and not difference else str(difference)
        return Found(node, index, seen, state, detail, needed)

    def _fit(
        self, reference: Copy, found: Sequence[Found], facts: Sequence[NodeFacts]
    ) -> tuple[Finding, ...]:
        assert reference.facts
        short = [
            Finding("problem", one.node.name, why, "Free space there.") for one in found if (why := one.short)
        ]
        findings = (*fit(reference.facts, facts), *short)
        self._event(FitChecked(findings))
        return findings

    async def _copy_all(
        self,
        target: ModelTarget,
        sources: Sequence[Copy],
        found: Sequence[Found],
        facts: Sequence[NodeFacts],
    ) -> list[NodeSync]:
        wiring = build_wiring(facts)
        lacking = [one for one in found if one.copy and one.state != "identical"]
        _require_distinct(lacking)
        busy = [f"sync-{one.node.name}" for one in lacking]
        for one in found:
            if one not in lacking:
                self._event(NodeFinished(one.report()))
        with lock.hold(busy, f"a sync of {target.name}"):
            copied = await Copies(sources, lacking, wiring, self._event).run()
        return [copied.get(one.index) or one.report() for one in found]

    def _event(self, body: Body) -> None:
        self._on_event(Event(HOST, body))

    def _stage(self, name: str, text: str, fraction: float | None = None) -> None:
        self._event(Stage(name, text, fraction))

    def _hashing(self, node: str) -> OnHash:
        return lambda done, total: self._event(HashProgress(node, "look", done, total))

    def _record(
        self, target: ModelTarget, reference: Copy, nodes: Sequence[NodeSync], findings: Sequence[Finding]
    ) -> dict[str, Any]:
        hostfile = self._cluster.hostfile
        return {
            "schema": SCHEMA,
            "ok": all(node.ok for node in nodes),
            "model": target.name,
            "path": target.dest,
            "checked_only": self._options.check,
            "source": {"node": reference.node.name, "path": reference.survey.path},
            "digest": reference.tree.digest,
            "bytes": reference.tree.bytes,
            "files": len(reference.tree.files),
            "nodes": [node.to_json() for node in nodes],
            "fit": [asdict(one) for one in findings],
            "provenance": {
                "date": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
                "workbench": __version__,
                "rehearsal": self._cluster.rehearsal,
                "hostfile": {
                    "path": str(hostfile.path) if hostfile.path else None,
                    "digest": hostfile.digest(),
                },
            },
        }


@dataclass(frozen=True)
class _Copies:
    """The surveys: each node's copy or error, and the copy that the user named."""

    nodes: tuple[Copy | NodeError, ...]
    named: Copy | NodeError | None

    def choose(self, target: ModelTarget, source: int | None, *, alone: bool) -> tuple[Copy, ...]:
        """Return the sources, the reference first.

        Raises:
            NodeError: the source, or every node, did not answer.
            ModelError, InputError: see `locate.choose`.
        """
        answers = [seen for seen in self.nodes if isinstance(seen, Copy)]
        errors = [seen for seen in self.nodes if isinstance(seen, NodeError)]
        if not answers:
            raise errors[0]
        first = self.named if self.named is not None else None if source is None else self.nodes[source]
        if isinstance(first, NodeError):
            raise first
        if first:
            first = next((copy for copy in answers if _is_same(copy, first)), first)
            answers = [first, *(copy for copy in answers if copy is not first)]
        certain = alone or target.explicit
        return choose(target.name, answers, certain=certain and first is not None, alone=alone)


def _is_same(one: Copy, other: Copy) -> bool:
    """Return whether both are the same folder of one machine."""
    here = isinstance(one.node, LocalNode) and isinstance(other.node, LocalNode)
    return one.survey.path == other.survey.path and (here or one.node is other.node)


def _require_distinct(lacking: Sequence[Found]) -> None:
    """Two copies must not write to one hidden folder.

    Raises:
        InputError: two of the nodes are one machine with the same target folder.
    """
    first: dict[tuple[str, str], str] = {}
    for one in lacking:
        assert one.copy
        place = (getattr(one.node, "host", ""), one.copy.survey.path)
        other = first.setdefault(place, one.node.name)
        if other != one.node.name:
            what = f"{other} and {one.node.name} are the same Mac, with the same target folder {place[1]}"
            raise InputError(what, fix="Name each Mac once in the hostfile.")
