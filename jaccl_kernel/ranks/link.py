"""A rank's end of the wire: events out on stdout, messages in on stdin, and the lifeline.

A reader thread takes the host's lines. When stdin ends, the host is gone and this process leaves at once with
`os._exit`: the thread runs even while MLX waits in a collective (those release the GIL). The one wait that
holds the GIL is `mx.distributed.init`; `world.join` bounds it by other means. Knows no mlx and no program.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from jaccl_kernel import wire
from jaccl_kernel.errors import DeadlineExceeded

ACK_DEADLINE_S = 10.0  # how long a finished rank waits for the host to have read its last words
LIFELINE_EXIT = 86  # the exit status of a rank that left because its host was gone


class Link:
    """The wire of one rank, or its plain-text stand-in when nobody speaks the wire.

    Under the wire, `say` sends events; without it, stages go to stderr as text and `results` are the
    program's own to print. All methods are safe from any thread.
    """

    def __init__(self, rank: int, *, wired: bool, log: Path | None = None) -> None:
        self.rank = rank
        self.wired = wired
        self.stage_name = "start"
        self.log = log.open("a", encoding="utf-8", buffering=1) if log else None
        self._out = os.dup(1)  # the pipe itself: chatter that a library redirects cannot cut an event
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._litter: list[str] = []
        if wired:
            threading.Thread(target=self._read, name="jaccl-lifeline", daemon=True).start()

    @classmethod
    def open(cls) -> "Link":
        """The link that this process's environment asks for, with its log file when wired."""
        wired = os.environ.get(wire.WIRE_ENV) == "1"
        rank = int(os.environ.get("MLX_RANK", "0"))
        log = _log_path(rank) if wired else None
        link = cls(rank, wired=wired, log=log)
        if wired:
            # mlx.launch writes these with mktemp and leaves them behind
            link._litter += filter(None, map(os.environ.get, ("MLX_HOSTFILE", "MLX_IBV_DEVICES")))
            link.say("hello", pid=os.getpid(), log=str(log) if log else None)
        return link

    def say(self, kind: str, **data: Any) -> None:
        """Send one event (nothing without the wire)."""
        event = wire.Event(self.rank, kind, data)
        line = wire.encode_event(event)
        if self.log and kind != "beat":  # one a second, for as long as a server lives
            self.log.write(line + "\n")
        if not self.wired:
            return
        payload = (line + "\n").encode("ascii")
        with self._lock, contextlib.suppress(OSError):  # the reader is gone: stdin's end will say so too
            while payload:
                payload = payload[os.write(self._out, payload) :]

    def stage(self, name: str, text: str = "", fraction: float | None = None) -> None:
        """Tell which part of the work this rank is in; `fraction` is 0..1 where it is known."""
        new = name != self.stage_name
        self.stage_name = name
        self.say("stage", name=name, text=text, fraction=fraction)
        if not self.wired and new and self.rank == 0:
            sys.stderr.write(f"[{name}] {text}\n")

    def receive(self, kind: str, *, deadline: float) -> dict[str, Any]:
        """The next message of this kind; others before it are dropped.

        Raises:
            DeadlineExceeded: none came within `deadline` seconds.
        """
        end = time.monotonic() + deadline
        while True:
            try:
                message = self.next_message(max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise DeadlineExceeded(
                    f"no {kind!r} from the host within {deadline:.0f} s", where=f"rank {self.rank}"
                ) from None
            if message["kind"] == kind:
                return message

    def next_message(self, deadline: float = threading.TIMEOUT_MAX) -> dict[str, Any]:
        """The host's next message, whatever its kind.

        Raises:
            queue.Empty: none came within `deadline` seconds.
        """
        return self._inbox.get(timeout=min(deadline, threading.TIMEOUT_MAX))

    def finish(self, returncode: int) -> None:
        """End the process, once the host has read all that was said (bounded)."""
        if self.wired:
            self.say("done", returncode=returncode)
            with contextlib.suppress(DeadlineExceeded):
                self.receive("ack", deadline=ACK_DEADLINE_S)
            self.leave(returncode)
        sys.exit(returncode)

    def leave(self, returncode: int) -> NoReturn:
        """End the process now, from any thread, also while another one waits in a collective."""
        for path in self._litter:
            with contextlib.suppress(OSError):
                Path(path).unlink()
        for stream in (sys.stdout, sys.stderr, self.log):
            with contextlib.suppress(OSError, ValueError):
                if stream:
                    stream.flush()
        # not sys.exit: tearing down a broken group can wait for peers that are gone
        os._exit(returncode)

    def _read(self) -> None:
        assembler = wire.Assembler()
        with contextlib.suppress(OSError), os.fdopen(os.dup(0), encoding="ascii", errors="replace") as stdin:
            for line in stdin:
                message = assembler.feed(line)
                if message is None:
                    continue
                if message["kind"] == "litter":
                    self._litter += message["paths"]
                else:
                    self._inbox.put(message)
        self.leave(LIFELINE_EXIT)


def _log_path(rank: int) -> Path | None:
    """This rank's own log file, on its own machine; None when the disk does not let us."""
    from jaccl_kernel.paths import cache_dir

    job = os.environ.get("JACCL_KERNEL_JOB", "job")
    path = cache_dir() / "ranks" / f"{job}-rank{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(path.parent.glob("*.log"), key=lambda p: p.stat().st_mtime)[:-64]:
            old.unlink(missing_ok=True)
        path.touch()
    except OSError:
        return None
    return path
