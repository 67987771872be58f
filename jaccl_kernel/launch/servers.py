"""The registry of this user's servers on this machine: one folder per server; a held lock means it runs.

A folder has `state.json` (readable by its owner only: it holds the API key), `events.jsonl` (events for later
readers) and `log.txt` (the output of a detached server). The supervisor process holds the folder's lock while
it runs, so that a signal never goes to a reused process id. This module starts no process.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jaccl_kernel.core.codec import decode
from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import Event, Heartbeat, decode_line, encode_event
from jaccl_kernel.core.paths import cache_dir

MAX_ENDED_FOLDERS = 20  # folders of stopped servers to keep


@dataclass(frozen=True)
class ServerState:
    """The published state of a server.

    Args:
        id: the server's id, which is its folder's name.
        hostfile: path of the hostfile, or "".
        hosts: node names in rank order.
        model: the model's name on the ranks.
        url: base URL of the server, without /v1.
        only_there: why this machine cannot reach the URL, and the fix; or "".
        api_key: the key that clients must send, or None.
        since: start time of the supervisor, in seconds since the epoch.
        pid: process id of the supervisor; 0 before it has started.
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


class ServerFolder:
    """One server's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = path / "events.jsonl"
        self.log = path / "log.txt"

    @classmethod
    def create(cls) -> "ServerFolder":
        """Create a new folder.

        Raises:
            JobError: the folder cannot be written.
        """
        path = _root() / (time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
        try:
            path.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise JobError(
                f"cannot create the server folder: {error.strerror or error}",
                where=str(path),
                fix="Free disk space, or set JACCL_CACHE to a folder on another disk.",
            ) from error
        return cls(path)

    @property
    def id(self) -> str:
        """The server's id."""
        return self.path.name

    def write(self, state: ServerState) -> None:
        """Replace the state file atomically."""
        new = self.path / "state.new"
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump(asdict(state), file)
        new.replace(self.path / "state.json")

    def read(self) -> ServerState | None:
        """The state, or None if it is missing or unreadable."""
        try:
            return decode(ServerState, json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def forget_key(self) -> None:
        """Remove the API key from the files of a server that has ended."""
        (self.path / "asked.json").unlink(missing_ok=True)
        state = self.read()
        if state and state.api_key is not None:
            with contextlib.suppress(OSError):
                self.write(replace(state, api_key=None))

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the lock that marks the server as running."""
        with self._open_lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def alive(self) -> bool:
        """Whether the supervisor is running."""
        try:
            with self._open_lock() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def add_event(self, event: Event) -> None:
        """Append an event to the log; write errors are ignored, since a full disk must not stop a server."""
        if isinstance(event.body, Heartbeat):  # one per second
            return
        # the line format has no negative rank, so ranks are stored plus one (the host's rank is -1)
        line = encode_event(replace(event, rank=event.rank + 1))
        with contextlib.suppress(OSError), self.events.open("a", encoding="ascii") as file:
            file.write(line + "\n")

    def read_events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The events from a byte offset on, and the offset of the next event."""
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError:
            return [], offset
        complete = data[: data.rfind(b"\n") + 1]
        events = []
        for line in complete.decode("ascii", errors="replace").splitlines():
            _, event = decode_line(line)
            if event:
                events.append(replace(event, rank=event.rank - 1))
        return events, offset + len(complete)

    def signal(self, signum: signal.Signals) -> bool:
        """Signal the supervisor; False if it is not running."""
        state = self.read()
        if state is None or not state.pid or not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(state.pid, signum)
        return True

    def _open_lock(self) -> Any:
        return os.fdopen(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")


def folders(*, alive: bool = True) -> list[ServerFolder]:
    """The server folders, oldest first; only those of running servers, or all."""
    try:
        found = [ServerFolder(path) for path in sorted(_root().iterdir()) if path.is_dir()]
    except OSError:
        return []
    return [one for one in found if one.alive()] if alive else found


def of_process(pid: int) -> str | None:
    """The id of the running server whose supervisor has this process id; None if there is none."""
    states = (folder.read() for folder in folders())
    return next((state.id for state in states if state and state.pid == pid), None)


def remove_old_folders() -> None:
    """Remove the oldest folders of stopped servers beyond MAX_ENDED_FOLDERS, and the keys of the others."""
    ended = [folder for folder in folders(alive=False) if not folder.alive()]
    for one in ended[:-MAX_ENDED_FOLDERS]:
        shutil.rmtree(one.path, ignore_errors=True)
    for one in ended:
        if one.read():  # a server that was killed; without a state, it is being started
            one.forget_key()


def _root() -> Path:
    return cache_dir() / "servers"
