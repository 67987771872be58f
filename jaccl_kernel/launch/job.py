"""The processes of one job: the launcher child, the events of its ranks, and a stop that ends every process.

`Job` starts and stops processes and turns their output into events. `run.py` interprets the events and
applies the deadlines. Only one reader at a time may take events.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TextIO

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import (
    EVENT_LIMIT,
    Done,
    Event,
    Exited,
    Hello,
    Line,
    Pulse,
    RankError,
    Ready,
    Stage,
    decode_line,
)
from jaccl_kernel.core.messages import Message, TemporaryFiles, encode_message
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.core.process import is_suspended
from jaccl_kernel.launch.cleanup import finish_cleanup
from jaccl_kernel.launch.records import RECORDS, Deliver, Ended, EndJob, Output, PidFile, Started
from jaccl_kernel.launch.spec import JobSpec, scrubbed_environ

TAIL_LINES = 40  # lines of each rank's output that an error can quote
RECORD_LIMIT = 8 * EVENT_LIMIT  # bytes of a launcher record: JSON escapes one byte as up to six
MAX_JOB_FOLDERS = 50  # log folders to keep
STOP_GRACE_S = 1.0
STOP_DEADLINE_S = 12.0  # covers the launcher's own grace period and a remote kill


@dataclass
class RankState:
    """The host's view of one rank."""

    number: int
    name: str
    pid: int | None = None  # of its process group, only for a rank on this machine
    program_pid: int | None = None  # of its Python process, on its machine
    stage: str = "start"
    ready: bool = False
    done: bool = False
    returncode: int | None = None
    ended_at: float | None = None
    error: RankError | None = None
    failed_at: float | None = None  # when it reported its error, on its own clock
    heard_at: float | None = None  # when the last line of it arrived, on this machine's monotonic clock
    pulse: Pulse | None = None  # its last one
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def is_suspended(self) -> bool:
        """Whether its process is known to be stopped by a signal; only of a rank on this machine."""
        return bool(self.pid and self.program_pid and is_suspended(self.program_pid))


class Job:
    """A started mlx.launch job: `async with Job(spec) as job: event = await job.next_event(60)`.

    On exit from the block, every process of the job is stopped, also after an exception.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec.as_launched()
        self.id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        self.folder = cache_dir() / "jobs" / self.id
        self.ranks = [RankState(number, name) for number, name in enumerate(spec.names())]
        self.launcher_stderr: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = False
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._logs: list[TextIO] = []

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a second interrupt must not leave ranks running
        await finish_cleanup(self.stop())

    async def start(self) -> None:
        """Write the job folder and start the launcher.

        Raises:
            JobError: the job folder cannot be written.
        """
        try:
            self._make_folder()
        except OSError as error:
            raise JobError(
                f"cannot write the job folder: {error.strerror or error}",
                where=str(self.folder),
                fix="Free disk space, or set JACCL_CACHE to a folder on another disk.",
            ) from error
        arguments = self.spec.launch_arguments(self.folder / "hostfile.json", wired=True, job=self.id)
        env = scrubbed_environ()
        if self.spec.rank_env:
            env["JACCL_KERNEL_RANK_ENV"] = json.dumps([dict(one) for one in self.spec.rank_env])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "jaccl_kernel.launch.launcher",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            limit=RECORD_LIMIT,
            # so that a terminal's Ctrl-C reaches only this process, which stops the job
            start_new_session=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._pumps = [
            asyncio.create_task(self._read_records(self._process.stdout)),
            asyncio.create_task(self._read_launcher_stderr(self._process.stderr)),
        ]

    async def next_event(self, deadline: float) -> Event | None:
        """The next event, or None when the job has ended.

        Raises:
            TimeoutError: none came within `deadline` seconds.
        """
        # not wait_for: in Python 3.11 it can lose a cancellation that arrives together with an event
        async with asyncio.timeout(deadline):
            event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)  # every later call returns None too
        return event

    async def send(self, message: Message, *, to: int | None = None) -> None:
        """Send a message to one rank, or to all; ranks that have exited are skipped."""
        await self._send_order(Deliver(to, tuple(encode_message(message))))

    async def stop(self, grace: float = STOP_GRACE_S) -> None:
        """Stop every process of this job; kill it after `grace` seconds. Safe to call again."""
        process = self._process
        if process is None:
            self._close_logs()
            return
        if process.returncode is None:
            await self._send_order(EndJob(grace))
            if process.stdin:
                process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace + STOP_DEADLINE_S):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        self._kill_local_ranks()
        if self._pumps:
            _, late = await asyncio.wait(self._pumps, timeout=STOP_DEADLINE_S)
            for pump in late:
                pump.cancel()
        self._close_logs()

    @property
    def returncode(self) -> int | None:
        """The launcher's exit status, or None while it runs: 0 when every rank exited 0."""
        return self._process.returncode if self._process else None

    @property
    def pid(self) -> int | None:
        """The launcher's process id."""
        return self._process.pid if self._process else None

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True)
        old = sorted(self.folder.parent.iterdir())[:-MAX_JOB_FOLDERS]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        self.spec.hostfile.write(self.folder / "hostfile.json")
        command = self.spec.plain_command(self.folder / "hostfile.json")
        (self.folder / "command.txt").write_text(command + "\n", encoding="utf-8")
        self._logs = [
            (self.folder / f"rank{rank.number}.log").open("w", encoding="utf-8", buffering=1)
            for rank in self.ranks
        ]

    def _close_logs(self) -> None:
        for log in self._logs:
            log.close()
        self._logs = []

    async def _send_order(self, order: Deliver | EndJob) -> None:
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(RECORDS.dumps(order).encode("ascii") + b"\n")
            await self._process.stdin.drain()

    async def _read_records(self, stream: asyncio.StreamReader) -> None:
        try:
            while line := await stream.readline():
                match RECORDS.loads(line):
                    case PidFile(number, path):  # mlx.launch leaves it behind; the rank removes it
                        await self.send(TemporaryFiles((path,)), to=number)
                    case Started(number, pid):
                        self.ranks[number].pid = pid
                    case Output(number, stream_name, text):
                        self._handle_line(self.ranks[number], text, stream_name)
                    case Ended(number, returncode):
                        rank = self.ranks[number]
                        rank.returncode, rank.ended_at, rank.pid = returncode, time.time(), None
                        self._queue.put_nowait(Event(number, Exited(returncode)))
        finally:
            assert self._process
            await self._process.wait()
            self.ended = True
            self._kill_local_ranks()  # the launcher does this itself, unless it was killed
            self._queue.put_nowait(None)

    async def _read_launcher_stderr(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.launcher_stderr.append(line.decode("utf-8", errors="replace").rstrip())

    def _handle_line(self, rank: RankState, text: str, stream: str) -> None:
        rank.heard_at = time.monotonic()
        output, event = decode_line(text)
        if event and event.rank == rank.number and isinstance(event.body, Pulse):  # for launch/watchdog.py
            rank.pulse = event.body
            return
        if self._logs:
            with contextlib.suppress(OSError, ValueError):  # a full disk must not end the job
                self._logs[rank.number].write(text + "\n")
        if event is not None and event.rank != rank.number:  # accept only the rank's own events
            output, event = text, None
        if output:
            rank.tail.append(output)
            self._queue.put_nowait(Event(rank.number, Line(output, stream)))
        if event is None:
            return
        match event.body:
            case Hello(pid):
                rank.program_pid = pid
            case Stage(name):
                rank.stage = name
            case RankError() as error:
                rank.error, rank.failed_at = error, event.at
            case Ready():
                rank.ready = True
            case Done():
                rank.done = True
        self._queue.put_nowait(event)

    def _kill_local_ranks(self) -> None:
        for rank in self.ranks:
            if rank.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.pid = None
