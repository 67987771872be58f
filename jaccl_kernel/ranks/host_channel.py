"""A rank's connection to the host: events on stdout, messages on stdin, and the lifeline.

A thread reads the host's messages. EOF on stdin means that the host is gone: the process exits at once with
`os._exit`. The thread runs even while MLX waits in a collective, which releases the GIL; only
`mx.distributed.init` holds it, and `group.join` bounds that wait. Imports no mlx.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from jaccl_kernel.core.errors import DeadlineExceeded
from jaccl_kernel.core.events import WIRE_ENV, Body, Done, Event, Heartbeat, Hello, Pulse, Stage, encode_event
from jaccl_kernel.core.messages import Ack, Message, MessageReader, TemporaryFiles

PULSE_S = 1.0  # between two pulses
ACK_DEADLINE_S = 10.0  # how long a finished rank waits for the host's ack
LIFELINE_EXIT = 86  # exit status of a rank whose host is gone


M = TypeVar("M", bound=Message)


class Link:
    """One rank's connection to the host, or its plain-text form under plain mlx.launch.

    If wired, `send` sends events; otherwise stages go to stderr as text, and the program prints its result.
    All methods are safe from any thread.
    """

    def __init__(self, rank: int, *, wired: bool, log: Path | None = None) -> None:
        self.rank = rank
        self.wired = wired
        self.stage_name = "start"
        self.log = log.open("a", encoding="utf-8", buffering=1) if log else None
        self._out = os.dup(1)  # the pipe itself: a library that redirects stdout does not affect events
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._temporary_files: list[str] = []
        self._progress = Progress()
        if wired:
            threading.Thread(target=self._send_pulses, name="jaccl-pulse", daemon=True).start()
            threading.Thread(target=self._read, name="jaccl-lifeline", daemon=True).start()

    @classmethod
    def open(cls) -> "Link":
        """The link for this process's environment; a wired one has a log file."""
        wired = os.environ.get(WIRE_ENV) == "1"
        rank = int(os.environ.get("MLX_RANK", "0"))
        log = _log_path(rank) if wired else None
        link = cls(rank, wired=wired, log=log)
        if wired:
            # mlx.launch creates these with mktemp and does not delete them
            link._temporary_files += filter(None, map(os.environ.get, ("MLX_HOSTFILE", "MLX_IBV_DEVICES")))
            link.send(Hello(os.getpid(), str(log) if log else None))
        return link

    def send(self, body: Body) -> None:
        """Send one event, and log it; without the wire, do nothing."""
        if not self.wired:
            return
        line = encode_event(Event(self.rank, body))
        if self.log and not isinstance(body, Heartbeat | Pulse):  # one per second, for as long as a rank runs
            self.log.write(line + "\n")
        payload = (line + "\n").encode("ascii")
        with self._lock, contextlib.suppress(OSError):  # the host is gone: EOF on stdin ends this process
            while payload:
                payload = payload[os.write(self._out, payload) :]

    def stage(self, name: str, text: str = "", fraction: float | None = None) -> None:
        """Report the present part of the work; `fraction` of it is done, 0..1, if known."""
        new = name != self.stage_name
        self.stage_name = name
        self._progress.begin(name)
        self.send(Stage(name, text, fraction))
        if not self.wired and new and self.rank == 0:
            sys.stderr.write(f"[{name}] {text}\n")

    def watch(self, steps: Callable[[], int]) -> None:
        """Count each step of the model as progress; `steps` is called from another thread."""
        self._progress.steps = steps

    def receive(self, kind: type[M], *, deadline: float) -> M:
        """The next message of this class; others before it are dropped.

        Raises:
            DeadlineExceeded: none came within `deadline` seconds.
        """
        end = time.monotonic() + deadline
        while True:
            try:
                message = self.next_message(max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise DeadlineExceeded(
                    f"no {kind.KIND!r} from the host within {deadline:.0f} s", where=f"rank {self.rank}"
                ) from None
            if isinstance(message, kind):
                return message

    def next_message(self, deadline: float = threading.TIMEOUT_MAX) -> Message:
        """The host's next message of any class.

        Raises:
            queue.Empty: none came within `deadline` seconds.
        """
        return self._inbox.get(timeout=min(deadline, threading.TIMEOUT_MAX))

    def finish(self, returncode: int) -> None:
        """Exit after the host's ack, or after ACK_DEADLINE_S."""
        if self.wired:
            self.send(Done(returncode))
            with contextlib.suppress(DeadlineExceeded):
                self.receive(Ack, deadline=ACK_DEADLINE_S)
            self.leave(returncode)
        sys.exit(returncode)

    def leave(self, returncode: int) -> NoReturn:
        """Exit now, from any thread, also while another thread waits in a collective."""
        for path in self._temporary_files:
            with contextlib.suppress(OSError):
                Path(path).unlink()
        for stream in (sys.stdout, sys.stderr, self.log):
            with contextlib.suppress(OSError, ValueError):
                if stream:
                    stream.flush()
        # not sys.exit: the tear-down of a broken group can wait for dead peers
        os._exit(returncode)

    def _send_pulses(self) -> None:
        while True:
            time.sleep(PULSE_S)
            self.send(self._progress.pulse())

    def _read(self) -> None:
        reader = MessageReader()
        with contextlib.suppress(OSError), os.fdopen(os.dup(0), encoding="ascii", errors="replace") as stdin:
            for line in stdin:
                match reader.feed(line):
                    case None:
                        pass
                    case TemporaryFiles(paths):
                        self._temporary_files += paths
                    case message:
                        self._inbox.put(message)
        self.leave(LIFELINE_EXIT)


class Progress:
    """When a rank's work made progress: at each report of a stage, and at each step of the model.

    Attributes:
        steps: returns the number of steps so far.
    """

    def __init__(self) -> None:
        self.steps: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()
        self._stage = ""
        self._seen = 0
        self._at = time.monotonic()
        self._longest_s, self._points = 0.0, 0

    def begin(self, stage: str) -> None:
        """A stage begins, or reports a part of it that is done."""
        with self._lock:
            if stage != self._stage:
                self._stage, self._longest_s, self._points = stage, 0.0, 0
                self._at = time.monotonic()
            else:
                self._advance()

    def pulse(self) -> Pulse:
        """The state now."""
        with self._lock:
            if (steps := self.steps()) != self._seen:
                self._seen = steps
                self._advance()
            still_s = time.monotonic() - self._at
            return Pulse(round(still_s, 3), round(self._longest_s, 3), self._points, steps)

    def _advance(self) -> None:
        now = time.monotonic()
        self._longest_s, self._at = max(self._longest_s, now - self._at), now
        self._points += 1


def _log_path(rank: int) -> Path | None:
    """This rank's log file, on its own machine; None if it cannot be written."""
    from jaccl_kernel.core.paths import cache_dir

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
