"""One node gets the model: the ways to it in turn, what is kept, what is told meanwhile, and the proof.

A copy that failed half-way leaves a hidden folder from which the next one goes on; under the model's name
there is only ever a whole model.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaccl_kernel.cluster import rsync, stage
from jaccl_kernel.cluster.push import push
from jaccl_kernel.cluster.routes import Route, thunderbolt_routes
from jaccl_kernel.cluster.rsync import Progress
from jaccl_kernel.cluster.shell import LocalNode, Node
from jaccl_kernel.cluster.survey import OnHash, Survey, survey
from jaccl_kernel.cluster.wiring import Wiring
from jaccl_kernel.errors import CommandFailed, JacclError, ModelError, NodeError, NodeUnreachable
from jaccl_kernel.steps.locate import Copy

Tell = Callable[[str, dict[str, object]], None]
"""Told (kind of event, its data)."""

_SLOWEST = 1e6  # bytes per second that a copy must make on the whole, or it counts as stuck
_SHORTEST_S = 3600.0
_WINDOW_S = 5.0  # over which the rate is taken
_EVERY_S = 0.25  # at most so often is progress told
_TRIES = 2  # a file that arrives damaged is sent once more
_GB = 1e9
Way = tuple[Copy, Route]


@dataclass(frozen=True)
class Delivered:
    """How a copy ended well.

    Attributes:
        path: where the model is now.
        source: the node that it came from.
        route: the way that it came.
        sent: bytes that were not there before.
        seconds: all of it, the proof included.
    """

    path: str
    source: str
    route: Route
    sent: int
    seconds: float


def ways(sources: Sequence[Copy], target: Node, index: int, wiring: Wiring | None) -> list[Way]:
    """All ways to a node, the best first: within the machine, Thunderbolt, LAN from here, LAN, relayed.

    Sources are taken in turn over the targets, so that several share the work.
    """
    turn = index % len(sources)
    turned = [*sources[turn:], *sources[:turn]]
    if local := [copy for copy in turned if _one_machine(copy.node, target)]:
        return [(local[0], Route("same machine"))]
    cabled = [
        (copy, route)
        for copy in turned
        if wiring is not None and copy.index is not None
        for route in thunderbolt_routes(wiring, copy.index, index)
    ]
    near = sorted(turned, key=lambda copy: not isinstance(copy.node, LocalNode))
    lan = [(copy, Route("lan")) for copy in near]
    between = [
        copy for copy in turned if not isinstance(copy.node, LocalNode) and not isinstance(target, LocalNode)
    ]
    return [*cabled, *lan, *((copy, Route("relay")) for copy in between)]


def _one_machine(source: Node, target: Node) -> bool:
    return source is target or (isinstance(source, LocalNode) and isinstance(target, LocalNode))


def shortage(needed: int, free: int | None) -> str | None:
    """What to say of a disk that is too small; None if it is not, or did not say."""
    if free is None or needed <= free:
        return None
    return f"the disk is too full: {needed / _GB:.2f} GB more are needed, {free / _GB:.2f} GB are free"


class Delivery:
    """The model's way to one node.

    Args:
        target: the node.
        there: what its folder was found to be.
        sources: the copies that it can come from, all of one content.
        open_ways: the ways to it, best first.
        tell: told of the events `copy`, `hash`, `kept` and `line`.
    """

    def __init__(self, target: Node, there: Survey, open_ways: Sequence[Way], tell: Tell) -> None:
        self._target = target
        self._there = there
        self._fresh = True
        self._ways = open_ways
        self._wanted = open_ways[0][0].tree
        self._tell = tell
        self._notes: list[str] = []
        self._meter: _Meter | None = None
        self._sent: int | None = None
        self._partial = ""

    async def run(self) -> Delivered:
        """Bring it there, prove it, and give it its name.

        Raises:
            NodeError: it could not be brought there; what arrived is kept.
            ModelError: it changed at the source meanwhile.
        """
        started = time.monotonic()
        try:
            for tried in range(1, _TRIES + 1):
                copy, route = await self._bring()
                damaged = await self._damaged()
                if not damaged:
                    return await self._finish(copy, route, started)
                await self._check_source(copy)
                self._note(f"arrived damaged over {route.kind}: {', '.join(damaged)}")
                await stage.discard(self._target, self._there, damaged)
                if tried == _TRIES:
                    what = f"{', '.join(damaged)} arrived damaged {_TRIES} times"
                    fix = "Check the disks and the memory of both Macs, and the cable."
                    raise NodeError(what, where=self._target.where, fix=fix)
            raise AssertionError  # the last try returns or raises
        except (asyncio.CancelledError, JacclError):
            self._tell_kept()
            raise

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._tell("line", {"text": f"{self._target.name}: {text}", "stream": "sync"})

    def _tell_kept(self) -> None:
        if kept := self.kept:
            self._tell("kept", {"node": self._target.name, **kept})

    @property
    def notes(self) -> tuple[str, ...]:
        """Ways that were tried in vain and why, what arrived damaged, what the old folder had besides."""
        return tuple(self._notes)

    @property
    def kept(self) -> dict[str, object] | None:
        """The hidden folder that a failed copy leaves, and the bytes in it, for the next to go on from."""
        if not self._meter or not self._meter.done:
            return None
        return {"folder": self._partial, "bytes": self._meter.done}

    async def _bring(self) -> Way:
        """Try the ways in turn, each going on from where the last one broke."""
        for position, (copy, route) in enumerate(self._ways):
            there = await self._look()
            steps = stage.plan(self._wanted, there)
            if why := shortage(steps.needed, there.free):
                raise NodeError(
                    why, where=self._target.where, fix=f"Make room on the volume of {there.path}."
                )
            if self._sent is None:
                self._sent = steps.needed
            self._partial = await stage.prepare(self._target, there, steps)
            self._meter = _Meter(self._target.name, str(route), self._wanted.bytes, steps.done, self._tell)
            try:
                if len(steps.in_place) < len(self._wanted.files):
                    await self._push(copy, route, steps)
            except NodeUnreachable as error:
                if position + 1 == len(self._ways):
                    raise
                self._note(f"no way {route} from {copy.node.name}: {error.what}")
                continue
            except CommandFailed as error:
                await self._explain(error, copy)
                raise
            self._meter.finish()
            return copy, route
        raise AssertionError  # the last way returns or raises

    async def _look(self) -> Survey:
        """How the folder and its hidden sibling are now."""
        if not self._fresh:
            self._there = await survey(self._target, self._there.path)
        self._fresh = False
        return self._there

    async def _push(self, copy: Copy, route: Route, steps: stage.Plan) -> None:
        assert self._meter
        await push(
            copy.node,
            copy.survey.path,
            self._target,
            self._partial,
            route,
            files=self._wanted,
            skip=steps.in_place,
            deadline=max(_SHORTEST_S, self._wanted.bytes / _SLOWEST),
            on_progress=self._meter.progress,
        )

    async def _explain(self, error: CommandFailed, copy: Copy) -> None:
        """Raise what is behind a failed rsync, where that can be found out."""
        if rsync.FULL.search(error.what):
            there = await self._look()
            needed = stage.plan(self._wanted, there).needed
            free = "an unknown amount" if there.free is None else f"{there.free / _GB:.2f} GB"
            what = f"the disk ran full: {needed / _GB:.2f} GB more are needed, {free} is free"
            fix = f"Make room on the volume of {there.path}, then sync again: it goes on from here."
            raise NodeError(what, where=self._target.where, fix=fix) from error
        await self._check_source(copy)

    async def _check_source(self, copy: Copy) -> None:
        """Raise ModelError if the source is not what it was when the copy began."""
        now = await survey(copy.node, copy.survey.path)
        if difference := self._wanted.difference(now.tree):
            what = f"the model changed while it was copied: the source now {difference}"
            fix = "Sync again when nobody writes to it."
            raise ModelError(what, where=f"{copy.node.name}:{copy.survey.path}", fix=fix)

    async def _damaged(self) -> tuple[str, ...]:
        """The files that did not arrive as they should, by hash, and those that should not have arrived."""
        arrived = await survey(self._target, self._partial, on_hash=self._hash_progress("verify"))
        difference = self._wanted.difference(arrived.tree)
        return (*difference.missing, *difference.changed, *difference.extra)

    def _hash_progress(self, stage_name: str) -> OnHash:
        def tell(done: int, total: int) -> None:
            data = {"node": self._target.name, "stage": stage_name, "done_bytes": done, "total_bytes": total}
            self._tell("hash", dict(data))

        return tell

    async def _finish(self, copy: Copy, route: Route, started: float) -> Delivered:
        if aside := await stage.commit(self._target, self._there, self._wanted):
            self._note(f"files that only the old folder had are now in {aside}")
        seconds = time.monotonic() - started
        return Delivered(self._there.path, copy.node.name, route, self._sent or 0, seconds)


class _Meter:
    """Progress of one copy, as events: bytes that are there, rate over the last seconds, time left."""

    def __init__(self, node: str, route: str, total: int, done: int, tell: Tell) -> None:
        self.done = done
        self._about = {"node": node, "route": route, "total_bytes": total}
        self._total = total
        self._base = done
        self._tell = tell
        self._last = 0.0
        self._window: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self._event(time.monotonic())

    def progress(self, progress: Progress) -> None:
        """What rsync tells."""
        self.done = min(self._base + progress.sent, self._total)
        now = time.monotonic()
        self._window.append((now, self.done))
        while self._window[0][0] < now - _WINDOW_S and len(self._window) > 2:
            self._window.popleft()
        if now - self._last >= _EVERY_S:
            self._event(now)

    def finish(self) -> None:
        """Everything is there."""
        self.done = self._total
        self._event(time.monotonic())

    def _event(self, now: float) -> None:
        self._last = now
        since, before = self._window[0]
        passed = now - since
        rate = (self.done - before) / passed if passed > 0 and self.done > before else None
        eta = (self._total - self.done) / rate if rate else None
        self._tell("copy", {**self._about, "done_bytes": self.done, "rate": rate, "eta_s": eta})
