"""The servers of this machine and user: a folder each, found again by anyone, alive while its lock is held.

`state.json` (readable by its owner only: it holds the API key), `events.jsonl` (what happened, for who comes
later), `log.txt` (the output of a detached one). The supervisor holds a lock on the folder for its life, so a
process id is only signalled while it is certain whose it is. Starts nothing.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaccl_kernel import wire
from jaccl_kernel.errors import JobError
from jaccl_kernel.paths import cache_dir

KEPT = 20  # folders of servers that have ended
QUIET = ("beat",)  # events that are not written down: one a second


@dataclass(frozen=True)
class State:
    """What others may want to know of a server.

    Args:
        id: its name here.
        hostfile: path of the hostfile, or "".
        hosts: names of the nodes, in rank order.
        model: its name for the ranks.
        url: where it serves, without /v1.
        only_there: why no program on this machine reaches that, and what to do; or "".
        api_key: what clients must send, or None.
        since: when its supervisor started, seconds since the epoch.
        pid: the supervisor's process id; 0 until it has started.
        rehearsal: whether the Macs are simulated.
        local: whether every rank runs on this machine.
    """

    id: str
    hostfile: str
    hosts: tuple[str, ...]
    model: str
    url: str
    api_key: str | None = None
    since: float = field(default_factory=time.time)
    pid: int = 0
    rehearsal: bool = False
    local: bool = False
    only_there: str = ""


class Folder:
    """One server's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = path / "events.jsonl"
        self.log = path / "log.txt"

    @classmethod
    def make(cls) -> "Folder":
        """A new one.

        Raises:
            JobError: it cannot be written.
        """
        path = _root() / (time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
        try:
            path.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise JobError(
                f"cannot make the server's folder: {error.strerror or error}",
                where=str(path),
                fix="Free some space there, or set JACCL_CACHE to a folder on another disk.",
            ) from error
        return cls(path)

    @property
    def id(self) -> str:
        """Its server's name."""
        return self.path.name

    def write(self, state: State) -> None:
        """Replace the state, whole or not at all."""
        new = self.path / "state.new"
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump(asdict(state), file)
        new.replace(self.path / "state.json")

    def read(self) -> State | None:
        """The state, or None if there is none that can be read."""
        try:
            told = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
            return State(**told | {"hosts": tuple(told["hosts"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold its lock: the sign of life."""
        with self._open_lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def alive(self) -> bool:
        """Whether its supervisor lives."""
        try:
            with self._open_lock() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def add_event(self, event: wire.Event) -> None:
        """Write an event down; a full disk must not end a server."""
        if event.kind in QUIET:
            return
        with contextlib.suppress(OSError), self.events.open("a", encoding="ascii") as file:
            file.write(wire.encode_event(_on_paper(event)) + "\n")

    def read_events(self, offset: int = 0) -> tuple[list[wire.Event], int]:
        """The events from a byte offset on, and where the next ones will begin."""
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        events = []
        for line in whole.decode("ascii", errors="replace").splitlines():
            _, event = wire.decode_line(line)
            if event:
                events.append(_off_paper(event))
        return events, offset + len(whole)

    def signal(self, signum: signal.Signals) -> bool:
        """Signal its supervisor, if it lives; False if it does not."""
        state = self.read()
        if state is None or not state.pid or not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(state.pid, signum)
        return True

    def _open_lock(self) -> Any:
        return os.fdopen(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")


def folders(*, alive: bool = True) -> list[Folder]:
    """The servers' folders, oldest first; only those that live, or all."""
    try:
        found = [Folder(path) for path in sorted(_root().iterdir()) if path.is_dir()]
    except OSError:
        return []
    return [one for one in found if one.alive()] if alive else found


def forget_old() -> None:
    """Remove all but the last few folders of servers that have ended."""
    for one in [folder for folder in folders(alive=False) if not folder.alive()][:-KEPT]:
        shutil.rmtree(one.path, ignore_errors=True)


def _root() -> Path:
    return cache_dir() / "servers"


def _on_paper(event: wire.Event) -> wire.Event:
    """The host's own rank has no place in the wire's format: it is written as the next number."""
    return wire.Event(event.rank + 1, event.kind, event.data, event.at)


def _off_paper(event: wire.Event) -> wire.Event:
    return wire.Event(event.rank - 1, event.kind, event.data, event.at)
