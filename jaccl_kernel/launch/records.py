"""The lines between a `Job` and its launcher process, as JSON: records up, orders down. A tagged union."""

from dataclasses import dataclass
from typing import ClassVar

from jaccl_kernel.core.codec import TaggedUnion


class Record:
    """A line of the launcher, or an order to it."""

    KIND: ClassVar[str] = ""


@dataclass(frozen=True)
class Started(Record):
    """A rank's process has started; `pid` only on this machine."""

    KIND = "started"
    rank: int
    pid: int | None


@dataclass(frozen=True)
class PidFile(Record):
    """The path of mlx.launch's pid file, on the rank's node."""

    KIND = "pidfile"
    rank: int
    path: str


@dataclass(frozen=True)
class Output(Record):
    """A line of a rank's output; `stream` is "out" or "err"."""

    KIND = "output"
    rank: int
    stream: str
    text: str


@dataclass(frozen=True)
class Ended(Record):
    """A rank's process has exited; a negative `returncode` is the signal that ended it."""

    KIND = "ended"
    rank: int
    returncode: int


@dataclass(frozen=True)
class Deliver(Record):
    """Order: write these lines to the stdin of rank `to`, or of all ranks."""

    KIND = "deliver"
    to: int | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class EndJob(Record):
    """Order: end the job, and kill the ranks that remain after `grace` seconds."""

    KIND = "end"
    grace: float


RECORDS: TaggedUnion[Record] = TaggedUnion((Started, PidFile, Output, Ended, Deliver, EndJob))
