"""The timeline of a run, from its events: the host's stages in order, and the stage of each rank. Pure.

Times are seconds since the epoch. The progress view draws `snapshot()`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaccl_kernel.core.events import HOST, Done, Event, Exited, JobStarted, Joined, RankError, Ready
from jaccl_kernel.core.events import Stage as StageEvent

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class Stage:
    """A stage of the host or of a rank."""

    name: str
    text: str = ""
    fraction: float | None = None
    state: State = "running"
    began: float | None = None
    ended: float | None = None

    def end(self, state: State, at: float) -> None:
        """End the stage, unless it has ended."""
        if self.state in ("running", "waiting"):
            self.state, self.ended = state, at


@dataclass
class Timeline:
    """The state of one run after its events so far.

    Args:
        names: the nodes' names, by rank.
    """

    names: Sequence[str] = ()
    state: State = "waiting"
    began: float | None = None
    ended: float | None = None
    stages: list[Stage] = field(default_factory=list)
    ranks: dict[int, Stage] = field(default_factory=dict)
    first_seen: dict[int, float] = field(default_factory=dict)

    def begin(self, at: float) -> None:
        """Start a run; clears the previous one."""
        self.state, self.began, self.ended = "running", at, None
        self.stages, self.ranks, self.first_seen = [], {}, {}

    def end(self, state: State, at: float) -> None:
        """End the run, and all running stages with the same state."""
        self.state, self.ended = state, at
        for stage in [*self.stages, *self.ranks.values()]:
            stage.end(state, at)

    def handle(self, event: Event) -> bool:
        """Handle an event; whether it changed the snapshot."""
        if event.rank == HOST:
            return self._handle_host(event)
        return self._handle_rank(event)

    def label(self, rank: int) -> str:
        """The name of a rank: "rank 1 · mac2"."""
        return f"rank {rank} · {self.names[rank]}" if rank < len(self.names) else f"rank {rank}"

    def snapshot(self, now: float) -> dict[str, Any]:
        """The timeline as JSON, with the present time of the same clock."""
        return {
            "state": self.state,
            "began": self.began,
            "ended": self.ended,
            "now": now,
            "stages": [asdict(stage) for stage in self.stages],
            "ranks": [{"label": self.label(rank), **asdict(self.ranks[rank])} for rank in sorted(self.ranks)],
        }

    def _handle_host(self, event: Event) -> bool:
        match event.body:
            case JobStarted():  # new ranks replace those of the last job
                self.ranks, self.first_seen = {}, {}
                return True
            case StageEvent(name, text, fraction):
                self._begin_stage(name, text, fraction, event.at)
                return True
        return False

    def _begin_stage(self, name: str, text: str, fraction: float | None, at: float) -> None:
        last = self.stages[-1] if self.stages else None
        if last and last.name == name and (last.text == text or fraction is not None):
            last.text, last.fraction = text, fraction
            return
        if last:
            last.end("done", at)
        self.stages.append(Stage(name, text, fraction, began=at))

    def _handle_rank(self, event: Event) -> bool:
        at, now = event.at, self.ranks.get(event.rank)
        first = self.first_seen.setdefault(event.rank, at)
        match event.body:
            case StageEvent(name, text, fraction):
                stage = Stage(name, text, fraction, began=now.began if now and now.name == name else at)
            case Ready():
                stage = Stage("ready", "waiting for the others", began=at)
            case Joined():
                stage = Stage("joined", "in the group", began=at)
            case Done(returncode):
                stage = Stage("done", "", None, "failed" if returncode else "done", first, at)
            case RankError(_, message, _, where):
                text = f"at {where or (now.name if now else 'start')}: {message}"
                stage = Stage("failed", text, None, "failed", first, at)
            case Exited(returncode):
                if now and (now.state == "failed" or (now.state == "done" and returncode == 0)):
                    return False  # its error says more than its exit status
                stage = Stage("ended", f"exit status {returncode}", None, "failed", first, at)
            case _:
                return False
        self.ranks[event.rank] = stage
        return True
