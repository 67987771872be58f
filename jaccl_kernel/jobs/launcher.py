"""The child process in which mlx.launch runs, mended: `python -m jaccl_kernel.jobs.launcher …` as mlx.launch.

mlx.launch's own argument parsing, environment and launch scripts are used as they are; only its I/O loop is
replaced, since that one spins on a core, exits 0 when ranks fail, loses last lines and leaves orphans (mlx
0.32.4, `_launch_with_io`). tests/jobs/test_launcher_contract.py fails when upstream changes under us.

Speaks JSON lines with its starter. Out: `{"rank", "pid"}`, `{"rank", "pidfile"}` (upstream's, on the node),
`{"rank", "stream", "text"}`, `{"rank", "exit"}`.
In: `{"to": rank or null, "lines": […]}`, `{"end": seconds}`. The end of its stdin, SIGINT, SIGTERM or SIGHUP
end the job: the ranks' stdin is closed (each leaves by its lifeline), and what is still there is killed.
Of events it knows the mark alone, of programs nothing, and it decides nothing: when to end a job is its
starter's business.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlx._distributed_utils import launch as upstream

from jaccl_kernel import wire
from jaccl_kernel.cluster import ssh

GRACE_S = 1.0  # between closing a rank's stdin and killing it
REMOTE_KILL_S = 5.0
DRAIN_S = 2.0  # how long a dead rank's pipes may stay open (a child of it may hold them)
LINE_LIMIT = 1 << 16  # bytes; a longer line of chatter is passed on in pieces, an event is not
MARK = wire.MARK.encode("ascii")
STARTED = "@@jaccl-started"  # what stands before it on stdout is the remote shell's own
RANK_ENV = "JACCL_KERNEL_RANK_ENV"


class Rank:
    """One rank's process: bash on this machine, or ssh to another; upstream's launch script in either."""

    def __init__(self, number: int, host: str, script: str, env: Mapping[str, str]) -> None:
        self.number = number
        self.host = host
        self.local = host == "127.0.0.1"
        script = f"printf '%s\\n' {STARTED}; {script}"
        # /bin/bash by name: upstream's script is bash, and the login shell over there need not be
        command = ("/bin/bash", "-c", script)
        # a shell stays around it over there: of a command that a signal ended, ssh itself would only say 255
        far = ("/bin/sh", "-c", '"$@"; exit $?', "sh", *command)
        self._argv = command if self.local else _over_ssh(host, far)
        self._env = {**os.environ, **env} if self.local else dict(os.environ)
        self._pidfile: str | None = None
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start the process in a session of its own, so that its whole group can be ended."""
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._env,
            start_new_session=True,
        )
        await tell(rank=self.number, pid=self._process.pid if self.local else None)

    async def follow(self) -> int:
        """Pass its output on until it ends, to the last line; tells and returns its exit status."""
        assert self._process.stdout
        assert self._process.stderr
        pumps = [
            asyncio.create_task(self._pump(self._process.stdout, "out")),
            asyncio.create_task(self._pump(self._process.stderr, "err")),
        ]
        returncode = await self._process.wait()
        _, late = await asyncio.wait(pumps, timeout=DRAIN_S)
        for pump in late:
            pump.cancel()
        if self.local and self._pidfile:
            with contextlib.suppress(OSError):
                os.unlink(self._pidfile)  # noqa: PTH108
        await tell(rank=self.number, exit=returncode)
        return returncode

    def write(self, lines: list[str]) -> None:
        """Write lines to its stdin; a rank that is gone will be told of by its exit."""
        stdin = self._process.stdin
        if stdin and not stdin.is_closing():
            stdin.write("".join(f"{line}\n" for line in lines).encode())

    async def end(self, grace: float) -> None:
        """Close its stdin, wait `grace` seconds, then kill what is left."""
        if self._process.returncode is not None:
            return
        if self._process.stdin:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._process.wait()
            return
        if not self.local and self._pidfile:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(REMOTE_KILL_S):
                    await self._kill_remote(self._pidfile)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _kill_remote(self, pidfile: str) -> None:
        script = f"kill -9 $(cat {shlex.quote(pidfile)}); rm -f {shlex.quote(pidfile)}"
        killer = await asyncio.create_subprocess_exec(
            *_over_ssh(self.host, ("/bin/sh", "-c", script)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await killer.wait()
        finally:
            if killer.returncode is None:
                killer.kill()
                await killer.wait()

    async def _pump(self, stream: asyncio.StreamReader, name: str) -> None:
        unfinished = bytearray()
        while data := await stream.read(LINE_LIMIT):
            *ends, rest = data.split(b"\n")
            for end in ends:
                await self._line(name, bytes(unfinished + end))
                unfinished.clear()
            unfinished += rest
            if len(unfinished) > (wire.EVENT_LIMIT if MARK in unfinished else LINE_LIMIT):
                await self._line(name, bytes(unfinished))
                unfinished.clear()
        if unfinished:
            await self._line(name, bytes(unfinished))

    async def _line(self, stream: str, raw: bytes) -> None:
        text = raw.decode("utf-8", errors="replace").rstrip("\r")
        if stream == "out" and self._pidfile is None:
            # upstream's script prints the name of its pid file first; ours prints STARTED before that
            if text == STARTED:
                self._pidfile = ""
                return
        elif stream == "out" and self._pidfile == "":
            self._pidfile = text
            await tell(rank=self.number, pidfile=text)
            return
        await tell(rank=self.number, stream=stream, text=text)


def _over_ssh(host: str, argv: Sequence[str]) -> tuple[str, ...]:
    """What runs a command on another node. Upstream asks ssh for a tty, ours does not.

    A tty merges stderr into stdout and hides the end of stdin from the rank.
    """
    return (*ssh.command(), "--", host, ssh.command_line(argv))


async def tell(**record: Any) -> None:
    """One JSON line to our starter, waiting while its pipe is full."""
    if _starter.is_closing():
        return
    _starter.write(json.dumps(record).encode("ascii") + b"\n")
    with contextlib.suppress(ConnectionError):  # our starter is gone: its end of our stdin says so too
        await _starter.drain()


_starter: asyncio.StreamWriter


async def _open_pipes() -> asyncio.StreamReader:
    """Our stdin as a reader; our stdout becomes `_starter`."""
    global _starter
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    _starter = asyncio.StreamWriter(transport, protocol, None, loop)
    return reader


async def _obey(reader: asyncio.StreamReader, ranks: list[Rank]) -> float:
    """Carry out our starter's lines until it wants the job ended; returns the grace that it grants."""
    while line := await reader.readline():
        order = json.loads(line)
        if "end" in order:
            return float(order["end"])
        for rank in ranks:
            if order["to"] in (None, rank.number):
                rank.write(order["lines"])
    return GRACE_S


async def supervise(ranks: list[Rank]) -> int:
    """Start the ranks, relay until all have ended or the job is to end; 0 if every rank exited 0."""
    loop = asyncio.get_running_loop()
    reader = await _open_pipes()
    told_to_end = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, told_to_end.set)
    for rank in ranks:
        await rank.start()
    following = asyncio.gather(*(rank.follow() for rank in ranks))
    orders = asyncio.create_task(_obey(reader, ranks))
    signalled = asyncio.create_task(told_to_end.wait())
    ends: set[asyncio.Future[Any]] = {following, orders, signalled}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not following.done():
        grace = orders.result() if orders.done() and not orders.exception() else GRACE_S
        await asyncio.gather(*(rank.end(grace) for rank in ranks))
    returncodes = await following
    signalled.cancel()
    orders.cancel()
    return next((code for code in returncodes if code), 0)


def launch_with_io(command_class: Any, arguments: list[Any], verbose: bool) -> None:
    """Stands in for upstream's `_launch_with_io`: same arguments, and exits with the job's true status."""
    del command_class, verbose
    extra = json.loads(os.environ.pop(RANK_ENV, "[]"))
    ranks = []
    for positional, _ in arguments:
        number, host, python, cwd, files, env, command = positional
        # is_local=True leaves out `stty -echo`, which there is no tty for
        script = upstream.RemoteProcess.make_launch_script(number, python, cwd, files, env, command, True)
        ranks.append(Rank(number, host, script, extra[number] if extra else {}))
    returncode = asyncio.run(supervise(ranks))
    sys.stdout = None  # its pipe was closed with the loop
    sys.exit(returncode if returncode >= 0 else 128 - returncode)


def main() -> None:
    """mlx.launch with the mended loop."""
    upstream._launch_with_io = launch_with_io
    upstream.main()


if __name__ == "__main__":
    main()
