"""What the host and the ranks say to each other: events up, messages down. No mlx, no I/O.

Up, an event is one ASCII JSON line behind a marker that carries the rank; anything else that a rank writes
is its chatter. Down, a message is one JSON object, cut into short numbered lines, since a terminal on the way
may take about 1 KB a line (macOS). Both are spoken only when `JACCL_KERNEL_WIRE=1` is set: without it a rank
program prints plain text and ends when it is done.
"""

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

WIRE_ENV = "JACCL_KERNEL_WIRE"
MARK = "@@jaccl "
EVENT_LIMIT = 1 << 23  # bytes of an event's line: a benchmark of 1024 tokens takes 160 KB
LINE_LIMIT = 900  # characters of a host-to-rank line, under the ~1 KB that a macOS tty passes on
HOST = -1  # the "rank" of an event that the host side itself tells

_EVENT = re.compile(re.escape(MARK) + r"(\d+) (\{.*\})\s*$")
_PART = re.compile(r"^>(\d+)/(\d+) (.*)$")


@dataclass(frozen=True)
class Event:
    """One thing that happened: on a rank, or (rank -1) on the host side.

    Kinds that every program uses: `stage` (name, text, fraction or None), `line` (text, stream: chatter),
    `ready`, `joined`, `result`, `error` (type, message, stage), `done`, `exit` (returncode).
    """

    rank: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)  # seconds since the epoch, of the side that made it


def encode_event(event: Event) -> str:
    """The event as one ASCII line, without the newline."""
    body = {"kind": event.kind, "at": round(event.at, 6), **event.data}
    return f"{MARK}{event.rank} {json.dumps(body, ensure_ascii=True, separators=(',', ':'))}"


def decode_line(line: str) -> tuple[str, Event | None]:
    """Split a line of a rank's output into its chatter and the event at its end, if there is one.

    A carriage return at the end (a terminal was on the way) and chatter before the marker (a print without a
    newline) are tolerated; a damaged event is chatter.
    """
    line = line.rstrip("\r\n")
    found = _EVENT.search(line)
    if found is None:
        return line, None
    try:
        body = json.loads(found[2])
        kind, at = str(body.pop("kind")), float(body.pop("at"))
    except (ValueError, KeyError, TypeError):
        return line, None
    return line[: found.start()], Event(int(found[1]), kind, body, at)


def encode_message(kind: str, **data: Any) -> list[str]:
    """A host-to-rank message as short ASCII lines, without newlines."""
    text = json.dumps({"kind": kind, **data}, ensure_ascii=True, separators=(",", ":"))
    pieces = [text[i : i + LINE_LIMIT] for i in range(0, len(text), LINE_LIMIT)]
    return [f">{number}/{len(pieces)} {piece}" for number, piece in enumerate(pieces, 1)]


class Assembler:
    """Puts the lines of `encode_message` together again; lines of another form are ignored."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def feed(self, line: str) -> dict[str, Any] | None:
        """Take one line; the whole message once its last line is in, else None."""
        found = _PART.match(line.rstrip("\r\n"))
        if found is None:
            return None
        number, total = int(found[1]), int(found[2])
        if number == 1:
            self._pieces = []
        elif number != len(self._pieces) + 1:  # a line was lost: this message cannot be whole any more
            self._pieces = []
            return None
        self._pieces.append(found[3])
        if number < total:
            return None
        text, self._pieces = "".join(self._pieces), []
        try:
            message = json.loads(text)
        except ValueError:
            return None
        return message if isinstance(message, dict) and "kind" in message else None
