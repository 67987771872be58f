"""What has happened so far, from a step's events: the host's stages in order, and where each rank is. Pure.

Times are seconds since the epoch. `snapshot()` is what the progress view draws.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaccl_kernel.wire import HOST, Event

State = Literal["waiting", "running", "done", "failed", "stopped"]

# What a rank's bare events mean to someone who watches
_MEANING = {"ready": ("ready", "waiting for the others"), "joined": ("joined", "in the group")}


@dataclass
class Stage:
    """A stretch of work: of the host, or the one that a rank is in."""

    name: str
    text: str = ""
    fraction: float | None = None
    state: State = "running"
    began: float | None = None
    ended: float | None = None

    def end(self, state: State, at: float) -> None:
        """Close it, unless it is closed already."""
        if self.state in ("running", "waiting"):
            self.state, self.ended = state, at


@dataclass
class Timeline:
    """The events of one run, folded up.

    Args:
        names: the nodes' names, by rank.
    """

    names: Sequence[str] = ()
    state: State = "waiting"
    began: float | None = None
    ended: float | None = None
    stages: list[Stage] = field(default_factory=list)
    ranks: dict[int, Stage] = field(default_factory=dict)
    first_heard: dict[int, float] = field(default_factory=dict)

    def begin(self, at: float) -> None:
        """A run starts: what was before it is forgotten."""
        self.state, self.began, self.ended = "running", at, None
        self.stages, self.ranks, self.first_heard = [], {}, {}

    def end(self, state: State, at: float) -> None:
        """The run has ended: whatever still ran has ended with it, in the same way."""
        self.state, self.ended = state, at
        for stage in [*self.stages, *self.ranks.values()]:
            stage.end(state, at)

    def hear(self, event: Event) -> bool:
        """Take an event in; whether it changed anything that can be seen."""
        if event.rank == HOST:
            return self._hear_host(event)
        return self._hear_rank(event)

    def label(self, rank: int) -> str:
        """What to call a rank: "rank 1 · mac2"."""
        return f"rank {rank} · {self.names[rank]}" if rank < len(self.names) else f"rank {rank}"

    def snapshot(self, now: float) -> dict[str, Any]:
        """All of it as JSON, with the present time on the clock that made the other times."""
        return {
            "state": self.state,
            "began": self.began,
            "ended": self.ended,
            "now": now,
            "stages": [asdict(stage) for stage in self.stages],
            "ranks": [{"label": self.label(rank), **asdict(self.ranks[rank])} for rank in sorted(self.ranks)],
        }

    def _hear_host(self, event: Event) -> bool:
        if event.kind == "job":  # new ranks: the last job's are gone
            self.ranks, self.first_heard = {}, {}
            return True
        if event.kind != "stage":
            return False
        name, text, fraction = event.data["name"], event.data.get("text") or "", event.data.get("fraction")
        last = self.stages[-1] if self.stages else None
        if last and last.name == name and (last.text == text or fraction is not None):
            last.text, last.fraction = text, fraction
            return True
        if last:
            last.end("done", event.at)
        self.stages.append(Stage(name, text, fraction, began=event.at))
        return True

    def _hear_rank(self, event: Event) -> bool:
        rank, data, now = event.rank, event.data, self.ranks.get(event.rank)
        first = self.first_heard.setdefault(rank, event.at)
        if event.kind == "stage":
            began = now.began if now and now.name == data["name"] else event.at
            text, fraction = data.get("text") or "", data.get("fraction")
            self.ranks[rank] = Stage(data["name"], text, fraction, began=began)
        elif event.kind in _MEANING:
            self.ranks[rank] = Stage(*_MEANING[event.kind], began=event.at)
        elif event.kind == "done":
            failed = bool(data.get("returncode"))
            self.ranks[rank] = Stage("done", "", None, "failed" if failed else "done", first, event.at)
        elif event.kind == "error":
            text = f"at {data.get('stage') or (now.name if now else 'start')}: {data.get('message', '')}"
            self.ranks[rank] = Stage("failed", text, None, "failed", first, event.at)
        elif event.kind == "exit" and not (now and now.state == "done" and data["returncode"] == 0):
            if now and now.state == "failed":
                return False  # its own words say more than its exit status
            text = f"exit status {data['returncode']}"
            self.ranks[rank] = Stage("ended", text, None, "failed", first, event.at)
        else:
            return False
        return True
