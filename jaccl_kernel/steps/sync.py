"""Sync: one model, whole and identical, on every node of a cluster.

First it looks: who has the model, is it whole, does it fit and split, is there room. Then the nodes that lack
it get it, all at once, from those that have it. What fails on one node stops no other. The result is one
record, saved.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.cluster import stage
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.probe import probe
from jaccl_kernel.cluster.shell import LocalNode, Node
from jaccl_kernel.cluster.survey import Hashes, OnHash, survey
from jaccl_kernel.cluster.wiring import Wiring, wire
from jaccl_kernel.errors import InputError, JacclError, NodeError
from jaccl_kernel.jobs import lock
from jaccl_kernel.models.demo import ensure_demo
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.saved import save_json
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.deliver import Delivery, shortage, ways
from jaccl_kernel.steps.fit import Finding, fit
from jaccl_kernel.steps.locate import (
    HERE,
    Copy,
    State,
    Wanted,
    choose,
    is_here,
    judge,
    named_nodes,
    state_of,
    understand,
)
from jaccl_kernel.steps.sync_report import SCHEMA, NodeSync, SyncReport
from jaccl_kernel.wire import HOST, Event

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class SyncOptions:
    """What to sync.

    Args:
        model: a name in `~/models`, a folder, a hub id in the local cache, or `demo`.
        source: the node to copy from, by name or ssh name, or `localhost`; None: whoever has it.
        dest: the folder on every node; None: see `locate.understand`.
        check: only look.
        rehash: read every file again instead of taking hashes of files that nothing touched since.
    """

    model: str
    source: str | None = None
    dest: str | None = None
    check: bool = False
    rehash: bool = False


async def sync(
    cluster: Cluster,
    options: SyncOptions,
    *,
    facts: Sequence[NodeFacts] | None = None,
    on_event: OnEvent = lambda event: None,
    save: bool = True,
) -> SyncReport:
    """Look, tell, copy, prove.

    Events of the host (rank -1): `stage`; `hash` and `copy` (node, done_bytes, total_bytes; a copy also
    route, rate in bytes per second and eta_s, None while unknown); `found` (each node's state) and `fit`
    (findings), both before anything moves; `node` (how it ended on one); `kept` (what a stopped copy leaves
    to go on from); `line`. Cancelling ends all copies; what arrived is kept, hidden.

    Args:
        cluster: whose nodes shall have it.
        options: what, from where, to where.
        facts: of the nodes, if they are known already; else they are asked.
        on_event: told of everything as it happens.
        save: keep the record as a file.

    Raises:
        InputError: the model's name or the source makes no sense, or whole copies differ.
        ModelError: nobody has the model whole.
        NodeError: no node could be reached.
        Busy: a sync to one of these nodes runs already.
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
        wanted, source = await self._understand()
        self._stage("look", f"who has {wanted.name}")
        looked, told = await asyncio.gather(self._look(wanted, source), self._facts(facts))
        sources = looked.choose(wanted, source, alone=self._options.source is not None)
        found = [self._compare(sources[0], looked, index) for index in range(len(self._cluster.nodes))]
        self._event("found", nodes=[one.report().to_json() for one in found])
        findings = self._fit(sources[0], found, told)
        if self._options.check:
            nodes = [one.report() for one in found]
        else:
            self._stage("copy", f"{wanted.name} from {sources[0].node.name}")
            nodes = await self._copy_all(wanted, sources, found, told)
        record = self._record(wanted, sources[0], nodes, findings)
        return SyncReport(record, tuple(nodes), findings, save_json("sync", record) if save else None)

    # --- what is asked for

    async def _understand(self) -> tuple[Wanted, int | None]:
        """The model's place, and the rank of the source if a node was named as one."""
        options = self._options
        if options.source is None or is_here(options.source):
            if options.model == DEMO:
                await ensure_demo(lambda text, fraction: self._stage("demo model", text, fraction))
            wanted = understand(options.model, options.dest)
            if options.source is not None and wanted.here is None:
                raise InputError(
                    f"{options.model!r} is no model on this machine", fix="Name its folder here."
                )
            return wanted, None
        hosts = [host.ssh for host in self._cluster.hostfile.hosts]
        meant = list(named_nodes(self._cluster.names, hosts, options.source))
        if len(meant) != 1:
            what = "means more than one node" if meant else "is no node of this cluster"
            known = ", ".join(self._cluster.names)
            raise InputError(
                f"{options.source} {what}", where="--from", fix=f"Name one of {known}, or localhost."
            )
        home = (await survey(self._cluster.nodes[meant[0]], "~/", hashes="none")).home
        return understand(options.model, options.dest, elsewhere=True, home=home), meant[0]

    # --- the look

    async def _look(self, wanted: Wanted, source: int | None) -> "_Looked":
        """All folders that could hold it, side by side."""
        nodes: list[tuple[int | None, Node, str]] = [
            (index, node, wanted.dest) for index, node in enumerate(self._cluster.nodes)
        ]
        if source is not None and wanted.origin != wanted.dest:
            nodes.append((source, self._cluster.nodes[source], wanted.origin))
        elif source is None and wanted.here is not None:
            nodes.append((None, LocalNode(HERE), str(wanted.here)))

        async def one(index: int | None, node: Node, folder: str) -> Copy | NodeError:
            try:
                tell = self._hashing(node.name)
                seen = await survey(node, folder, hashes=self._hashes, heads=True, on_hash=tell)
            except NodeError as error:
                return error
            return judge(node, index, seen)

        seen = await asyncio.gather(*(one(*asked) for asked in nodes))
        size = len(self._cluster.nodes)
        return _Looked(tuple(seen[:size]), seen[size] if len(seen) > size else None)

    async def _facts(self, facts: Sequence[NodeFacts] | None) -> Sequence[NodeFacts]:
        return await probe(self._cluster.nodes) if facts is None else facts

    def _compare(self, reference: Copy, looked: "_Looked", index: int) -> "_Found":
        node, seen = self._cluster.nodes[index], looked.nodes[index]
        if isinstance(seen, NodeError):
            return _Found(node, index, None, "untested", "", 0, seen)
        state, difference = state_of(reference, seen)
        needed = 0 if state == "identical" else stage.plan(reference.tree, seen.survey).needed
        detail = seen.trouble if state == "incomplete" and not difference else str(difference)
        return _Found(node, index, seen, state, detail, needed)

    def _fit(
        self, reference: Copy, found: "Sequence[_Found]", facts: Sequence[NodeFacts]
    ) -> tuple[Finding, ...]:
        assert reference.facts
        short = [
            Finding("problem", one.node.name, why, "Make room there.") for one in found if (why := one.short)
        ]
        findings = (*fit(reference.facts, facts), *short)
        self._event("fit", findings=[asdict(one) for one in findings])
        return findings

    # --- the copies

    async def _copy_all(
        self,
        wanted: Wanted,
        sources: Sequence[Copy],
        found: "Sequence[_Found]",
        facts: Sequence[NodeFacts],
    ) -> list[NodeSync]:
        wiring = wire(facts)
        lacking = [one for one in found if one.copy and one.state != "identical"]
        _refuse_twins(lacking)
        busy = [f"sync-{one.node.name}" for one in lacking]
        with lock.hold(busy, f"a sync of {wanted.name}"):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._copy_to(one, sources, wiring)) for one in found]
        return [task.result() for task in tasks]

    async def _copy_to(self, found: "_Found", sources: Sequence[Copy], wiring: Wiring) -> NodeSync:
        """One node's part; what goes wrong is told, and stops no other."""
        report = found.report()
        if found.copy and found.state != "identical":
            open_ways = ways(sources, found.node, found.index, wiring)
            delivery = Delivery(found.node, found.copy.survey, open_ways, self._tell)
            try:
                done = await delivery.run()
            except JacclError as error:
                report = replace(
                    report,
                    state="failed",
                    error=f"{error.where}: {error.what}" if error.where else error.what,
                    fix=error.fix,
                    kept=delivery.kept,
                    notes=delivery.notes,
                )
            else:
                report = replace(
                    report,
                    state="copied",
                    source=done.source,
                    route=str(done.route),
                    sent_bytes=done.sent,
                    seconds=done.seconds,
                    notes=delivery.notes,
                )
        self._event("node", **report.to_json())
        return report

    # --- what is told

    def _event(self, kind: str, **data: Any) -> None:
        self._on_event(Event(HOST, kind, data))

    def _tell(self, kind: str, data: dict[str, Any]) -> None:
        self._on_event(Event(HOST, kind, data))

    def _stage(self, name: str, text: str, fraction: float | None = None) -> None:
        self._event("stage", name=name, text=text, fraction=fraction)

    def _hashing(self, node: str) -> OnHash:
        return lambda done, total: self._event(
            "hash", node=node, stage="look", done_bytes=done, total_bytes=total
        )

    def _record(
        self, wanted: Wanted, reference: Copy, nodes: Sequence[NodeSync], findings: Sequence[Finding]
    ) -> dict[str, Any]:
        hostfile = self._cluster.hostfile
        return {
            "schema": SCHEMA,
            "ok": all(node.ok for node in nodes),
            "model": wanted.name,
            "path": wanted.dest,
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
class _Looked:
    """What the look gave: each node's copy, or why there is no answer; and the copy that the word names."""

    nodes: tuple[Copy | NodeError, ...]
    named: Copy | NodeError | None

    def choose(self, wanted: Wanted, source: int | None, *, alone: bool) -> tuple[Copy, ...]:
        """The copies to take it from, the one that counts first.

        Raises:
            NodeError: the source, or every node, could not be asked.
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
        certain = alone or wanted.explicit
        return choose(wanted.name, answers, certain=certain and first is not None, alone=alone)


def _is_same(one: Copy, other: Copy) -> bool:
    """Whether both are one folder of one machine."""
    here = isinstance(one.node, LocalNode) and isinstance(other.node, LocalNode)
    return one.survey.path == other.survey.path and (here or one.node is other.node)


def _refuse_twins(lacking: "Sequence[_Found]") -> None:
    """Two copies into one hidden folder would spoil each other.

    Raises:
        InputError: two of the nodes are one machine, and would have the model in the same folder.
    """
    first: dict[tuple[str, str], str] = {}
    for one in lacking:
        assert one.copy
        place = (getattr(one.node, "host", ""), one.copy.survey.path)
        other = first.setdefault(place, one.node.name)
        if other != one.node.name:
            what = f"{other} and {one.node.name} are one folder of one Mac: {place[1]}"
            raise InputError(what, fix="Name each Mac once in the hostfile; a model is copied to a Mac once.")


@dataclass(frozen=True)
class _Found:
    """One node before anything moved; `copy` None: it could not be asked, and `error` says why."""

    node: Node
    index: int
    copy: Copy | None
    state: State
    detail: str
    needed: int
    error: NodeError | None = None

    @property
    def short(self) -> str | None:
        """What to say of its disk, if that is too small."""
        return shortage(self.needed, self.copy.survey.free) if self.copy else None

    def report(self) -> NodeSync:
        """As the record tells it, when nothing moves."""
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
