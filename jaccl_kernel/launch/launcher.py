"""The child process that runs mlx.launch with its defects fixed: `python -m jaccl_kernel.launch.launcher …`.

It uses mlx.launch's own argument parsing, environment and launch scripts, and replaces only its I/O loop
(`_launch_with_io` of mlx 0.32.4), which busy-waits on a core, exits 0 when ranks fail, loses the last lines
and leaves orphan processes. tests/launch/test_launcher_contract.py fails when upstream changes.

It exchanges the lines of `records.py` with its parent. EOF on stdin, SIGINT, SIGTERM or SIGHUP stop the job:
the launcher closes the ranks' stdin, which makes each rank exit, and kills the ranks that remain. It does not
decode events; the parent decides when a job ends.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shlex
import signal
import sys
import termios
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mlx._distributed_utils import launch as upstream

from jaccl_kernel.core import events
from jaccl_kernel.launch.records import RECORDS, Deliver, Ended, EndJob, Output, PidFile, Record, Started
from jaccl_kernel.nodes import ssh

GRACE_S = 1.0  # between closing a rank's stdin and killing it
REMOTE_KILL_S = 8.0  # for the kill of a remote rank, with its repetitions
REMOTE_RETRY_S = 0.3
SSH_FAILED = 255  # ssh's own exit status
EOF_S = 2.0  # after all output of an exited rank, until its pipes end: a child of it may hold them open
DRAIN_TICK_S = 0.02
LINE_LIMIT = 1 << 16  # bytes; a longer output line is split, an event is not
MARK = events.MARK.encode("ascii")
STARTED = "@@jaccl-started"  # stdout before this line comes from the remote login shell
RANK_ENV = "JACCL_KERNEL_RANK_ENV"
# upstream's script writes to $(mktemp) without quotes: with a space in TMPDIR, every rank would run alone
TEMPORARY = (
    'case "${TMPDIR-}" in *[!A-Za-z0-9/._+-]*) export TMPDIR=/tmp;; esac; '
    't=$(mktemp 2>/dev/null) && rm -f "$t" || export TMPDIR=/tmp; '
)


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """A process's pipes, and its exit: asyncio's own `wait` reports it only once the pipes are closed."""

    def __init__(self) -> None:
        super().__init__(LINE_LIMIT, asyncio.get_running_loop())
        self.exited = asyncio.Event()
        self._pipes: asyncio.SubprocessTransport | None = None
        self._received = {1: 0, 2: 0}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._pipes = cast(asyncio.SubprocessTransport, transport)
        super().connection_made(transport)

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """Called by asyncio."""
        self._received[fd] += len(data)
        super().pipe_data_received(fd, data)

    def written(self, fd: int) -> int:
        """The bytes that were written to a pipe until now, read or not."""
        assert self._pipes
        pipe = self._pipes.get_pipe_transport(fd)
        unread = 0
        if pipe is not None and not pipe.is_closing():
            number = pipe.get_extra_info("pipe").fileno()
            unread = int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), sys.byteorder)
        return self._received[fd] + unread

    def process_exited(self) -> None:
        """Called by asyncio."""
        self.exited.set()
        super().process_exited()


class Rank:
    """One rank's process: bash on this machine, or ssh to another; upstream's launch script in either."""

    def __init__(self, number: int, host: str, script: str, env: Mapping[str, str]) -> None:
        self.number = number
        self.host = host
        self.local = host == "127.0.0.1"
        script = f"printf '%s\\n' {STARTED}; {TEMPORARY}{script}"
        # /bin/bash explicitly: upstream's script needs bash, and the remote login shell may be another
        command = ("/bin/bash", "-c", script)
        # the outer remote shell reports the exit status of a killed command; ssh itself reports only 255
        remote_command = ("/bin/sh", "-c", '"$@"; exit $?', "sh", *command)
        self._argv = command if self.local else _over_ssh(host, remote_command)
        self._env = {**os.environ, **env} if self.local else dict(os.environ)
        self._pidfile: str | None = None
        self._relayed = {"out": 0, "err": 0}  # bytes
        self._process: asyncio.subprocess.Process
        self._streams: _Streams

    async def start(self) -> None:
        """Start the process in its own session, so that the whole process group can be killed."""
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            _Streams, *self._argv, env=self._env, start_new_session=True
        )
        self._streams = protocol
        self._process = asyncio.subprocess.Process(transport, protocol, loop)
        await send_record(Started(self.number, self._process.pid if self.local else None))

    async def relay_output(self) -> int:
        """Relay all output until the process exits, then report and return its exit status."""
        assert self._process.stdout
        assert self._process.stderr
        pumps = [
            asyncio.create_task(self._pump(self._process.stdout, "out")),
            asyncio.create_task(self._pump(self._process.stderr, "err")),
        ]
        await self._streams.exited.wait()
        returncode = self._process.returncode
        assert returncode is not None
        written = {"out": self._streams.written(1), "err": self._streams.written(2)}
        while not all(pump.done() for pump in pumps) and any(
            self._relayed[name] < written[name] for name in written
        ):
            await asyncio.wait(pumps, timeout=DRAIN_TICK_S)
        _, late = await asyncio.wait(pumps, timeout=EOF_S)
        for pump in late:
            pump.cancel()  # it relays its last line first
        await asyncio.gather(*pumps, return_exceptions=True)
        if self.local and self._pidfile:
            with contextlib.suppress(OSError):
                os.unlink(self._pidfile)  # noqa: PTH108
        await send_record(Ended(self.number, returncode))
        return returncode

    def write(self, lines: Sequence[str]) -> None:
        """Write lines to the rank's stdin, unless that is closed."""
        stdin = self._process.stdin
        if stdin and not stdin.is_closing():
            stdin.write("".join(f"{line}\n" for line in lines).encode())

    async def end(self, grace: float) -> None:
        """Close the rank's stdin, wait `grace` seconds, then kill its process group."""
        if self._process.returncode is not None:
            return
        if self._process.stdin:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._streams.exited.wait()
            return
        if not self.local and self._pidfile:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(REMOTE_KILL_S):
                    await self._kill_remote(self._pidfile)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _kill_remote(self, pidfile: str) -> None:
        """Kill the rank on its node by its process id; a connection that fails is tried again."""
        script = f"pid=$(cat {shlex.quote(pidfile)}) && kill -9 $pid; rm -f {shlex.quote(pidfile)}"
        while True:
            killer = await asyncio.create_subprocess_exec(
                *_over_ssh(self.host, ("/bin/sh", "-c", script)),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                _, errors = await killer.communicate()
            finally:
                if killer.returncode is None:
                    killer.kill()
                    await killer.wait()
            if errors:
                sys.stderr.write(
                    f"ending rank {self.number} on {self.host}: {errors.decode(errors='replace')}"
                )
            if killer.returncode != SSH_FAILED:
                return
            await asyncio.sleep(REMOTE_RETRY_S)

    async def _pump(self, stream: asyncio.StreamReader, name: str) -> None:
        unfinished = bytearray()
        with contextlib.suppress(asyncio.CancelledError):
            while data := await stream.read(LINE_LIMIT):
                *ends, rest = data.split(b"\n")
                for end in ends:
                    await self._line(name, bytes(unfinished + end))
                    unfinished.clear()
                unfinished += rest
                if len(unfinished) > (events.EVENT_LIMIT if MARK in unfinished else LINE_LIMIT):
                    await self._line(name, bytes(unfinished))
                    unfinished.clear()
                self._relayed[name] += len(data)
        if unfinished:
            await self._line(name, bytes(unfinished))

    async def _line(self, stream: str, raw: bytes) -> None:
        text = raw.decode("utf-8", errors="replace").rstrip("\r")
        if stream == "out" and self._pidfile is None:
            # stdout begins with STARTED, then upstream's script prints the path of its pid file
            if text == STARTED:
                self._pidfile = ""
                return
        elif stream == "out" and self._pidfile == "":
            self._pidfile = text
            await send_record(PidFile(self.number, text))
            return
        await send_record(Output(self.number, stream, text))


def _over_ssh(host: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The ssh command line that runs `argv` on another node, without a tty (upstream requests one).

    A tty merges stderr into stdout and hides EOF on stdin from the rank.
    """
    return (*ssh.command(), "--", host, ssh.command_line(argv))


async def send_record(record: Record) -> None:
    """Write one line to the parent; wait while its pipe is full."""
    if _parent.is_closing():
        return
    _parent.write(RECORDS.dumps(record).encode("ascii") + b"\n")
    with contextlib.suppress(ConnectionError):  # the parent has exited; EOF on stdin stops the job
        await _parent.drain()


_parent: asyncio.StreamWriter


async def _open_pipes() -> asyncio.StreamReader:
    """Return stdin as a reader and set `_parent` to a writer on stdout."""
    global _parent
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    _parent = asyncio.StreamWriter(transport, protocol, None, loop)
    return reader


async def _handle_orders(reader: asyncio.StreamReader, ranks: list[Rank]) -> float:
    """Handle the parent's lines until one ends the job or stdin reaches EOF; returns the grace period."""
    while line := await reader.readline():
        match RECORDS.loads(line):
            case EndJob(grace):
                return grace
            case Deliver(to, lines):
                for rank in ranks:
                    if to in (None, rank.number):
                        rank.write(lines)
    return GRACE_S


async def supervise(ranks: list[Rank]) -> int:
    """Start the ranks and relay until all have exited or the job is stopped; 0 if every rank exited 0."""
    loop = asyncio.get_running_loop()
    reader = await _open_pipes()
    stop_requested = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop_requested.set)
    for rank in ranks:
        await rank.start()
    relays = asyncio.gather(*(rank.relay_output() for rank in ranks))
    orders = asyncio.create_task(_handle_orders(reader, ranks))
    signalled = asyncio.create_task(stop_requested.wait())
    ends: set[asyncio.Future[Any]] = {relays, orders, signalled}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not relays.done():
        grace = orders.result() if orders.done() and not orders.exception() else GRACE_S
        await asyncio.gather(*(rank.end(grace) for rank in ranks))
    returncodes = await relays
    signalled.cancel()
    orders.cancel()
    return next((code for code in returncodes if code), 0)


def launch_with_io(command_class: Any, arguments: list[Any], verbose: bool) -> None:
    """Replace upstream's `_launch_with_io`: same arguments, but exit with the job's actual status."""
    del command_class, verbose
    extra = json.loads(os.environ.pop(RANK_ENV, "[]"))
    ranks = []
    for positional, _ in arguments:
        number, host, python, cwd, files, env, command = positional
        # is_local=True omits `stty -echo`, which needs a tty
        script = upstream.RemoteProcess.make_launch_script(number, python, cwd, files, env, command, True)
        ranks.append(Rank(number, host, script, extra[number] if extra else {}))
    returncode = asyncio.run(supervise(ranks))
    sys.stdout = None  # the event loop has closed its pipe
    sys.exit(returncode if returncode >= 0 else 128 - returncode)


def main() -> None:
    """Run mlx.launch with the replaced I/O loop."""
    upstream._launch_with_io = launch_with_io
    upstream.main()


if __name__ == "__main__":
    main()
