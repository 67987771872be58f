"""Events: what the ranks and the host report. A tagged union of frozen dataclasses, and its line format.

On the wire an event is one ASCII JSON line behind a marker that carries the rank; any other line of a rank is
its output. Ranks send events only when `JACCL_KERNEL_WIRE=1` is set: without it a rank program prints plain
text and ends when it is done. Performs no I/O.
"""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from jaccl_kernel.core.codec import TaggedUnion, dumps
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.results import BenchRun, Power, Score

WIRE_ENV = "JACCL_KERNEL_WIRE"
MARK = "@@jaccl "
EVENT_LIMIT = 1 << 23  # bytes of an event's line: a benchmark of 1024 tokens takes 160 KB
HOST = -1  # the "rank" of an event of the host

_EVENT = re.compile(re.escape(MARK) + r"(\d+) (\{.*\})\s*$")


class Body:
    """What an event carries. Only the members of WireEvent cross a process; steps add their own progress."""

    KIND: ClassVar[str] = ""  # its tag on the wire


@dataclass(frozen=True)
class Event:
    """A body with its sender (HOST for the host) and its time, in seconds since the epoch."""

    rank: int
    body: Body
    at: float = field(default_factory=time.time)


# of a rank's start and end


@dataclass(frozen=True)
class Hello(Body):
    """A rank's process has started: its process id and its log file."""

    KIND = "hello"
    pid: int
    log: str | None = None


@dataclass(frozen=True)
class Ready(Body):
    """A rank has imported its program and waits for go: `rank_of` ranks, and what its machine is."""

    KIND = "ready"
    rank_of: int = 1
    host: str = ""
    machine: str = ""
    chip: str = ""
    system: str = ""
    build: str = ""
    python: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Joined(Body):
    """A rank has joined and proved a group of `size` ranks over `backend`."""

    KIND = "joined"
    size: int
    backend: str


@dataclass(frozen=True)
class RankError(Body):
    """An exception ended a rank: its type and message, the fix or "", and the stage where it occurred."""

    KIND = "error"
    type: str
    message: str
    fix: str = ""
    stage: str = ""


@dataclass(frozen=True)
class Done(Body):
    """A rank has finished its program and waits for the host's ack; `returncode` is its exit status."""

    KIND = "done"
    returncode: int = 0


@dataclass(frozen=True)
class Exited(Body):
    """A rank's process has exited; a negative `returncode` is the signal that ended it."""

    KIND = "exit"
    returncode: int


# of the work


@dataclass(frozen=True)
class Stage(Body):
    """The present part of the work; `fraction` of it that is done, 0..1, or None."""

    KIND = "stage"
    name: str
    text: str = ""
    fraction: float | None = None


@dataclass(frozen=True)
class Pulse(Body):
    """A rank's process runs; sent once per second by a thread of its own, also during a collective.

    Attributes:
        still_s: seconds since its work last made progress.
        longest_s: the longest time between two points of progress in the present stage.
        points: points of progress that were seen in the present stage.
        steps: steps of the model so far; 0 before the first.
    """

    KIND = "pulse"
    still_s: float
    longest_s: float
    points: int
    steps: int = 0


@dataclass(frozen=True)
class Line(Body):
    """One line of output; `stream` is "out" or "err"."""

    KIND = "line"
    text: str
    stream: str = "out"


@dataclass(frozen=True)
class SmokeResult(Body):
    """Result of `smoke`.

    Attributes:
        latency_s: median seconds of a 4 KB all_sum; None for one rank.
        size: the number of ranks.
        proven_bytes: the largest message whose sums were correct; 0 for one rank.
    """

    KIND = "result"
    latency_s: float | None
    size: int
    proven_bytes: int = 0


@dataclass(frozen=True)
class BenchResult(Body):
    """Result of `bench`: load seconds, peak bytes, digest of all tokens, power; the rest from rank 0 only."""

    KIND = "result"
    peak_memory_bytes: int
    tokens_digest: str
    power: Power
    load_s: float = 0.0
    prompt_tokens: int = 0
    runs: tuple[BenchRun, ...] = ()
    text: str = ""
    score: Score | None = None


@dataclass(frozen=True)
class AnswerChunk(Body):
    """One chunk of the answer to call number `call`, as the API streams it."""

    KIND = "chunk"
    call: int
    body: dict[str, Any]


@dataclass(frozen=True)
class AnswerEnd(Body):
    """The answer to call number `call` is complete."""

    KIND = "answered"
    call: int


# of a server


@dataclass(frozen=True)
class Serving(Body):
    """The server accepts requests: URL without /v1, model, tokens of context, load seconds.

    `only_there` says why this machine cannot reach the URL, and the fix; or "".
    """

    KIND = "serving"
    url: str
    model: str = ""
    context: int = 0
    load_s: float = 0.0
    only_there: str = ""


@dataclass(frozen=True)
class Heartbeat(Body):
    """Rank 0 of a server is alive; `busy_s` is the time that the present step has taken, in seconds."""

    KIND = "beat"
    busy_s: float = 0.0


@dataclass(frozen=True)
class WorkerDown(Body):
    """Rank 0 of a server has lost worker `rank_of`; `why`."""

    KIND = "sick"
    rank_of: int
    why: str


@dataclass(frozen=True)
class WorkerRecovered(Body):
    """Worker `rank_of` answers rank 0 again."""

    KIND = "well"
    rank_of: int


# of the host


@dataclass(frozen=True)
class JobStarted(Body):
    """A job has started: its id, its log folder, and the equivalent mlx.launch command."""

    KIND = "job"
    id: str
    folder: str
    command: str


@dataclass(frozen=True)
class Failed(Body):
    """A job failed: type, what, where and fix of the error; the rank that failed and its last lines."""

    KIND = "failed"
    type: str
    what: str
    where: str = ""
    fix: str = ""
    rank: int | None = None
    last_lines: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: JacclError) -> "Failed":
        """The event of an error."""
        rank, last_lines = getattr(error, "rank", None), getattr(error, "last_lines", ())
        return cls(type(error).__name__, error.what, error.where, error.fix, rank, tuple(last_lines))


@dataclass(frozen=True)
class Restarting(Body):
    """The server restarts in `in_s` seconds after failure `number`."""

    KIND = "restart"
    in_s: float
    number: int


@dataclass(frozen=True)
class ServerStopped(Body):
    """The server was stopped on request."""

    KIND = "stopped"


@dataclass(frozen=True)
class RanksKilled(Body):
    """These ranks did not exit on request and were killed."""

    KIND = "killed"
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Unknown(Body):
    """An event that this version cannot decode: its kind and fields as received."""

    kind: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class PointMeasured(Body):
    """A point of a benchmark, as the record holds it. Never crosses a process."""

    point: dict[str, Any]


WireEvent = (
    Hello | Ready | Joined | RankError | Done | Exited | Stage | Pulse | Line | SmokeResult | BenchResult
    | AnswerChunk | AnswerEnd | Serving | Heartbeat | WorkerDown | WorkerRecovered
    | JobStarted | Failed | Restarting | ServerStopped | RanksKilled
)  # fmt: skip
UNION: TaggedUnion[Body] = TaggedUnion(get_args(WireEvent))


def encode_event(event: Event) -> str:
    """The event as one ASCII line, without the newline."""
    match event.body:
        case Unknown(kind, fields):
            content = {"kind": kind, **fields}
        case body:
            content = UNION.encode(body)
    content = {"kind": content.pop("kind"), "at": round(event.at, 6), **content}
    return f"{MARK}{event.rank} {dumps(content)}"


def decode_line(line: str) -> tuple[str, Event | None]:
    """Split a line of a rank's output into plain output and the event at its end, or None.

    A carriage return at the end (from a terminal) and output before the marker (a print without a newline)
    are tolerated; a damaged event is plain output.
    """
    line = line.rstrip("\r\n")
    found = _EVENT.search(line)
    if found is None:
        return line, None
    try:
        content = json.loads(found[2])
        kind, at = str(content.pop("kind")), float(content.pop("at"))
    except (ValueError, KeyError, TypeError):
        return line, None
    body = UNION.decode(kind, content) or Unknown(kind, content)
    return line[: found.start()], Event(int(found[1]), body, at)
