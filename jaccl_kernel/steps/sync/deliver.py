"""Copies the model to one node: tries the routes in turn, reports progress, and verifies the checksums.

An interrupted copy leaves a hidden folder, from which the next one resumes; the model's own folder is always
complete.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import (
    CommandFailed,
    JacclError,
    ModelError,
    NodeError,
)
from jaccl_kernel.core.events import Body, Line
from jaccl_kernel.nodes import rsync, staging
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.rsync import Progress
from jaccl_kernel.nodes.survey import OnHash, Survey, survey
from jaccl_kernel.nodes.transfer import LoginFailed, Route, push
from jaccl_kernel.nodes.tree import Tree
from jaccl_kernel.steps.sync import keys
from jaccl_kernel.steps.sync.events import CopyKept, CopyProgress, HashProgress
from jaccl_kernel.steps.sync.locate import Copy
from jaccl_kernel.steps.sync.report import Kept
from jaccl_kernel.topology.routes import thunderbolt_routes
from jaccl_kernel.topology.wiring import Wiring

Tell = Callable[[Body], None]
"""Receives (kind of event, its data)."""

_MIN_RATE = 1e6  # bytes per second on average, which sets the deadline of a copy
_MIN_DEADLINE_S = 3600.0
_WINDOW_S = 5.0  # window of the transfer rate
_EVERY_S = 0.25  # minimum interval of progress events
_TRIES = 2  # a file that arrives damaged is sent once more
_GB = 1e9
SourceRoute = tuple[Copy, Route]


@dataclass(frozen=True)
class Delivered:
    """The result of a successful copy.

    Attributes:
        path: the model's folder.
        source: the node that it came from.
        route: the route.
        tree: the files.
        sent: bytes that were missing before.
        seconds: the total time, including the verification.
    """

    path: str
    source: str
    route: Route
    tree: Tree
    sent: int
    seconds: float


def find_routes(
    sources: Sequence[Copy], target: Node, index: int, wiring: Wiring | None
) -> list[SourceRoute]:
    """Return all routes to a node, the best first: a local copy, or each source's cables and network.

    A relay through this machine moves the data twice: it comes last, if this machine has no copy.

    Args:
        sources: the possible sources, the preferred first.
        target, index: the node and its rank.
        wiring: of the cluster, if known.
    """
    if local := [copy for copy in sources if one_machine(copy.node, target)]:
        return [(local[0], Route("same machine"))]
    routes: list[SourceRoute] = []
    for copy in sources:
        if wiring is not None and copy.index is not None:
            routes += [(copy, route) for route in thunderbolt_routes(wiring, copy.index, index)]
        routes.append((copy, Route("lan")))
    if not any(isinstance(node, LocalNode) for node in (target, *(copy.node for copy in sources))):
        routes += [(copy, Route("relay")) for copy in sources]
    return routes


def one_machine(source: Node, target: Node) -> bool:
    """Return whether a copy between them needs no network."""
    return source is target or (isinstance(source, LocalNode) and isinstance(target, LocalNode))


def shortage(needed: int, free: int | None) -> str | None:
    """Return the message about insufficient disk space; None if there is enough, or it is unknown."""
    if free is None or needed <= free:
        return None
    return f"not enough disk space: {needed / _GB:.2f} GB needed, {free / _GB:.2f} GB free"


class Delivery:
    """The copy of the model to one node.

    Args:
        target: the node.
        there: the survey of its folder.
        routes: the routes to it, best first; all sources have the same content.
        tell: receives CopyProgress, HashProgress, CopyKept and Line.
    """

    def __init__(self, target: Node, there: Survey, routes: Sequence[SourceRoute], tell: Tell) -> None:
        self._target = target
        self._there = there
        self._fresh = True
        self._routes = routes
        self._expected = routes[0][0].tree
        self._tell = tell
        self._notes: list[str] = []
        self._meter: _Meter | None = None
        self._sent: int | None = None
        self._partial = ""

    async def run(self) -> Delivered:
        """Copy the model, verify it, and rename it to its final name.

        Raises:
            NodeError: the copy failed; partial data is kept.
            ModelError: the source changed during the copy.
        """
        started = time.monotonic()
        try:
            for tried in range(1, _TRIES + 1):
                copy, route = await self._transfer()
                damaged = await self._damaged()
                if not damaged:
                    return await self._finish(copy, route, started)
                await self._check_source(copy)
                self._note(f"arrived damaged over {route.kind}: {', '.join(damaged)}")
                await staging.discard(self._target, self._there, damaged)
                if tried == _TRIES:
                    what = f"{', '.join(damaged)} arrived damaged {_TRIES} times"
                    fix = "Check the disks and memory of both Macs, and the cable."
                    raise NodeError(what, where=self._target.where, fix=fix)
            raise AssertionError  # the last try returns or raises
        except (asyncio.CancelledError, JacclError):
            self._tell_kept()
            raise

    def _note(self, text: str) -> None:
        if text in self._notes:
            return
        self._notes.append(text)
        self._tell(Line(f"{self._target.name}: {text}", "sync"))

    def _tell_kept(self) -> None:
        if kept := self.kept:
            self._tell(CopyKept(self._target.name, kept))

    @property
    def notes(self) -> tuple[str, ...]:
        """Routes that failed and why, damaged files, and extra files of the old folder."""
        return tuple(self._notes)

    @property
    def kept(self) -> Kept | None:
        """The hidden folder of a failed copy and the bytes in it, for the next copy to resume."""
        if not self._meter or not self._meter.done:
            return None
        return Kept(self._partial, self._meter.done)

    async def _transfer(self) -> SourceRoute:
        """Try the routes in turn; each resumes where the previous one failed."""
        for position, (copy, route) in enumerate(self._routes):
            there = await self._look()
            steps = staging.plan(self._expected, there)
            if why := shortage(steps.needed, there.free):
                raise NodeError(
                    why, where=self._target.where, fix=f"Free space on the volume of {there.path}."
                )
            if self._sent is None:
                self._sent = steps.needed
            self._partial = await staging.prepare(self._target, there, steps)
            self._meter = _Meter(self._target.name, str(route), self._expected.bytes, steps.done, self._tell)
            try:
                if len(steps.in_place) < len(self._expected.files):
                    await self._push(copy, route, steps)
            except NodeError as error:
                if isinstance(error, CommandFailed):
                    await self._explain(error, copy)
                if position + 1 == len(self._routes):
                    raise
                self._note(f"route {route} from {copy.node.name} failed: {error.what}")
                if isinstance(error, LoginFailed):
                    for line in await keys.advice(copy.node, self._target):
                        self._note(line)
                continue
            self._meter.finish()
            return copy, route
        raise AssertionError  # the last route returns or raises

    async def _look(self) -> Survey:
        """Return the current state of the folder and its hidden sibling."""
        if not self._fresh:
            self._there = await survey(self._target, self._there.path)
        self._fresh = False
        return self._there

    async def _push(self, copy: Copy, route: Route, steps: staging.StagingPlan) -> None:
        assert self._meter
        target = self._target
        if route.kind == "same machine" and isinstance(target, LocalNode) and not target.has("rsync"):
            self._note("copied without rsync, which is not installed on this machine")
        await push(
            copy.node,
            copy.survey.path,
            self._target,
            self._partial,
            route,
            files=self._expected,
            skip=steps.in_place,
            deadline=max(_MIN_DEADLINE_S, self._expected.bytes / _MIN_RATE),
            on_progress=self._meter.progress,
        )

    async def _explain(self, error: CommandFailed, copy: Copy) -> None:
        """Raise the cause of a failed rsync, if it can be determined."""
        if rsync.FULL.search(error.what):
            there = await self._look()
            needed = staging.plan(self._expected, there).needed
            free = "an unknown amount" if there.free is None else f"{there.free / _GB:.2f} GB"
            what = f"the disk is full: {needed / _GB:.2f} GB more needed, {free} free"
            fix = f"Free space on the volume of {there.path}, then sync again: it resumes from here."
            raise NodeError(what, where=self._target.where, fix=fix) from error
        with contextlib.suppress(NodeError):  # it does not answer: the next route may have another source
            await self._check_source(copy)

    async def _check_source(self, copy: Copy) -> None:
        """Raise ModelError if the source has changed since the copy started."""
        now = await survey(copy.node, copy.survey.path)
        if difference := self._expected.difference(now.tree):
            what = f"the source changed during the copy ({difference})"
            fix = "Sync again when no program writes to it."
            raise ModelError(what, where=f"{copy.node.name}:{copy.survey.path}", fix=fix)

    async def _damaged(self) -> tuple[str, ...]:
        """Return the files whose hash is wrong, and unexpected files."""
        arrived = await survey(self._target, self._partial, on_hash=self._hash_progress("verify"))
        difference = self._expected.difference(arrived.tree)
        return (*difference.missing, *difference.changed, *difference.extra)

    def _hash_progress(self, stage_name: str) -> OnHash:
        return lambda done, total: self._tell(HashProgress(self._target.name, stage_name, done, total))

    async def _finish(self, copy: Copy, route: Route, started: float) -> Delivered:
        if aside := await staging.commit(self._target, self._there, self._expected):
            self._note(f"moved files that only the old folder had to {aside}")
        seconds = time.monotonic() - started
        return Delivered(self._there.path, copy.node.name, route, self._expected, self._sent or 0, seconds)


class _Meter:
    """Progress of one copy, as events: bytes done, rate over the last seconds, remaining time."""

    def __init__(self, node: str, route: str, total: int, done: int, tell: Tell) -> None:
        self.done = done
        self._node = node
        self._route = route
        self._total = total
        self._base = done
        self._tell = tell
        self._last = 0.0
        self._window: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self._event(time.monotonic())

    def progress(self, progress: Progress) -> None:
        """Handle rsync's progress."""
        self.done = min(self._base + progress.sent, self._total)
        now = time.monotonic()
        self._window.append((now, self.done))
        while self._window[0][0] < now - _WINDOW_S and len(self._window) > 2:
            self._window.popleft()
        if now - self._last >= _EVERY_S:
            self._event(now)

    def finish(self) -> None:
        """Report completion."""
        self.done = self._total
        self._event(time.monotonic())

    def _event(self, now: float) -> None:
        self._last = now
        since, before = self._window[0]
        passed = now - since
        rate = (self.done - before) / passed if passed > 0 and self.done > before else None
        eta = (self._total - self.done) / rate if rate else None
        self._tell(CopyProgress(self._node, self._route, self.done, self._total, rate, eta))
