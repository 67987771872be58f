"""One job's life: its launcher child, the events of its ranks, and an end that leaves nothing behind.

`Job` starts and ends processes and turns their output into events; what the events mean, and when enough is
enough, is decided above (`run.py`). One reader at a time may take its events.
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
from typing import Any, Self, TextIO

from jaccl_kernel import wire
from jaccl_kernel.errors import JobError
from jaccl_kernel.jobs.ending import to_its_end
from jaccl_kernel.jobs.spec import JobSpec, scrubbed_environ
from jaccl_kernel.paths import cache_dir

TAIL_LINES = 40  # of each rank's output, kept for its last words
RECORD_LIMIT = 8 * wire.EVENT_LIMIT  # bytes of a launcher's line: JSON escapes a byte in six at most
KEPT_JOBS = 50  # folders of older jobs' logs
STOP_GRACE_S = 1.0
STOP_DEADLINE_S = 12.0  # the launcher's own grace, a remote kill, and then some


@dataclass
class RankState:
    """What the host knows of one rank."""

    number: int
    name: str
    pid: int | None = None  # only of a rank on this machine
    stage: str = "start"
    ready: bool = False
    done: bool = False
    returncode: int | None = None
    ended_at: float | None = None
    error: wire.Event | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


class Job:
    """A started mlx.launch job: `async with Job(spec) as job: event = await job.next_event(60)`.

    Leaving the block ends every process of it, whatever happened inside.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec.as_launched()
        self.id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        self.folder = cache_dir() / "jobs" / self.id
        self.ranks = [RankState(number, name) for number, name in enumerate(spec.names())]
        self.refusal: deque[str] = deque(maxlen=TAIL_LINES)  # what the launcher itself wrote to stderr
        self.ended = False
        self._queue: asyncio.Queue[wire.Event | None] = asyncio.Queue()
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
        # shielded: a second interrupt must not leave ranks behind
        await to_its_end(self.stop())

    async def start(self) -> None:
        """Write the job's folder and start its launcher.

        Raises:
            JobError: the folder for its logs cannot be written.
        """
        try:
            self._make_folder()
        except OSError as error:
            raise JobError(
                f"cannot write the job's folder: {error.strerror or error}",
                where=str(self.folder),
                fix="Free some space there, or set JACCL_CACHE to a folder on another disk.",
            ) from error
        arguments = self.spec.launch_arguments(self.folder / "hostfile.json", wired=True, job=self.id)
        env = scrubbed_environ()
        if self.spec.rank_env:
            env["JACCL_KERNEL_RANK_ENV"] = json.dumps([dict(one) for one in self.spec.rank_env])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "jaccl_kernel.jobs.launcher",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            limit=RECORD_LIMIT,
            start_new_session=True,  # a terminal's Ctrl-C is ours to pass on, not the ranks' to feel
        )
        assert self._process.stdout
        assert self._process.stderr
        self._pumps = [
            asyncio.create_task(self._read_records(self._process.stdout)),
            asyncio.create_task(self._read_refusal(self._process.stderr)),
        ]

    async def next_event(self, deadline: float) -> wire.Event | None:
        """The next event, or None when the job has ended.

        Raises:
            TimeoutError: none came within `deadline` seconds.
        """
        # not wait_for: Python 3.11's can swallow a cancellation that comes together with an event
        async with asyncio.timeout(deadline):
            event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)  # the end stays the end
        return event

    async def send(self, kind: str, *, to: int | None = None, **data: Any) -> None:
        """Send a message to one rank, or to all; one that is gone is passed over."""
        await self._order({"to": to, "lines": wire.encode_message(kind, **data)})

    async def stop(self, grace: float = STOP_GRACE_S) -> None:
        """End every process of this job: asked first, killed after `grace` seconds. Safe to call again."""
        process = self._process
        if process is None:
            self._close_logs()
            return
        if process.returncode is None:
            await self._order({"end": grace})
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
        old = sorted(self.folder.parent.iterdir())[:-KEPT_JOBS]
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

    async def _order(self, order: dict[str, Any]) -> None:
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(json.dumps(order).encode("ascii") + b"\n")
            await self._process.stdin.drain()

    async def _read_records(self, stream: asyncio.StreamReader) -> None:
        try:
            while line := await stream.readline():
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if "pidfile" in record:  # mlx.launch leaves it behind: the rank removes it when it goes
                        await self.send("litter", to=record["rank"], paths=[record["pidfile"]])
                    else:
                        self._take(record)
        finally:
            assert self._process
            await self._process.wait()
            self.ended = True
            self._kill_local_ranks()  # the launcher ends its ranks itself, unless it was killed
            self._queue.put_nowait(None)

    async def _read_refusal(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.refusal.append(line.decode("utf-8", errors="replace").rstrip())

    def _take(self, record: dict[str, Any]) -> None:
        rank = self.ranks[record["rank"]]
        if "pid" in record:
            rank.pid = record["pid"]
        elif "exit" in record:
            rank.returncode, rank.ended_at, rank.pid = record["exit"], time.time(), None
            self._queue.put_nowait(wire.Event(rank.number, "exit", {"returncode": record["exit"]}))
        else:
            self._take_line(rank, record["text"], record["stream"])

    def _take_line(self, rank: RankState, text: str, stream: str) -> None:
        if self._logs:
            with contextlib.suppress(OSError, ValueError):  # a full disk must not end the job
                self._logs[rank.number].write(text + "\n")
        chatter, event = wire.decode_line(text)
        if event is not None and event.rank != rank.number:  # only a rank's own events count
            chatter, event = text, None
        if chatter:
            rank.tail.append(chatter)
            self._queue.put_nowait(wire.Event(rank.number, "line", {"text": chatter, "stream": stream}))
        if event is None:
            return
        if event.kind == "stage":
            rank.stage = event.data["name"]
        elif event.kind == "error":
            rank.error = event
        elif event.kind in ("ready", "done"):
            setattr(rank, event.kind, True)
        self._queue.put_nowait(event)

    def _kill_local_ranks(self) -> None:
        for rank in self.ranks:
            if rank.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.pid = None
