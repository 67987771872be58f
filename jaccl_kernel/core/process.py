"""One child process that cannot outlive this one: its lifeline, deadline, bounded output and end.

Wraps a command so that it ends with this process, here or behind ssh, and separates the command's output from
the noise around it. Contains no nodes, ssh or user errors: see `nodes/node.py`.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

BEGIN = b"\x1ejaccl\x1e"
"""The lifeline's first output, on stdout and stderr: earlier output is of others (shell start files, ssh)."""

OWN_255 = b"\x1ejaccl:255\x1e"
"""Its last output on stderr if the command itself exited with 255, which is also ssh's own failure status."""

# Runs `$4…` with the first `$3` bytes of stdin as its stdin, and ends the command's process group at EOF of
# the rest of stdin, which a dead parent, a cancelled wait and a broken connection all cause.
# * sshd makes each command a process group (so does `run` below): `-$$` is that group, or else no group at
#   all. Stock macOS has no `setsid`; dash has no `set -m` without a tty.
# * The input is written to a file first, so that a command never gets an incomplete input.
# * `exec` runs programs only: a command called `exit` or `cd` does not become a builtin of this shell.
# * Background children of the command end with it.
# * The shell's own messages (`Terminated`) are discarded: stderr is the command's.
# No single quote and no backslash here: the text passes through the remote login shell, which may be fish.
_LIFELINE = """
begin=$1 own=$2 size=$3
shift 3
printf %s "$begin"
printf %s "$begin" >&2
exec 3<&0 </dev/null
if [ "$size" -gt 0 ]; then
  held=$(mktemp) || exit 125
  head -c "$size" <&3 >"$held" && [ $(wc -c <"$held") -eq "$size" ] && exec <"$held"
  whole=$?
  rm -f "$held"
  [ "$whole" -eq 0 ] || exit 125
fi
trap : TERM
(
  while read -r line; do :; done
  trap "" TERM
  kill -s TERM -- "-$$"
  tenths=0
  while [ "$tenths" -lt 10 ] && kill -s 0 "$$"; do
    sleep 0.1
    tenths=$((tenths + 1))
  done
  kill -s KILL -- "-$$"
) <&3 >/dev/null 2>&1 &
exec 4>&2 2>/dev/null
(exec 3<&- 2>&4 4>&-; exec "$@")
status=$?
trap "" TERM
kill -s TERM -- "-$$"
[ "$status" -ne 255 ] || printf %s "$own" >&4
exit "$status"
""".strip()

_GRACE = 3.0
"""Seconds for a command to end after its lifeline: TERM, at most one second, KILL, and a round trip."""

_DRAIN = 1.0
"""Seconds for the last output after the exit: an ssh master or a daemon may keep the pipe open forever."""

_NOISE = 1 << 16
"""Bytes to keep of the output before the command begins."""

_LINE = 1 << 16
"""Bytes after which an unfinished line is passed on."""


@dataclass(frozen=True)
class Ended:
    """The result of a child process.

    Args:
        returncode: its exit status (negative: the signal that ended it); None if it survived SIGKILL.
        own_255: the command itself exited with 255, not ssh.
        began: the wrapped command was started (if ssh fails, it is not).
        noise: the output on stderr before it began.
        stdout, stderr: the last `max_output` bytes of each, as UTF-8 with replacement characters.
        truncated: one of the two was longer.
        timed_out: it was ended at its deadline.
        seconds: its duration.
    """

    returncode: int | None
    own_255: bool
    began: bool
    noise: str
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    seconds: float

    @property
    def last_lines(self) -> str:
        """The last three non-empty lines of stderr, or else of stdout, as one line."""
        lines = [line.strip() for line in (self.stderr.strip() or self.stdout).splitlines()]
        return " / ".join([line for line in lines if line][-3:])


def guarded(argv: Sequence[str], input_size: int = 0) -> list[str]:
    """The command line that runs `argv` on a lifeline (POSIX sh); stdin is the input, then the lifeline."""
    marks = (BEGIN.decode(), OWN_255.decode())
    return ["/bin/sh", "-c", _LIFELINE, "jaccl", *marks, str(input_size), *argv]


async def run(
    argv: Sequence[str],
    *,
    deadline: float,
    input: bytes = b"",  # noqa: A002 - the standard library's name for it
    max_output: int = 1 << 20,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Ended:
    """Run a `guarded` command, directly or behind ssh, until it exits or for `deadline` seconds.

    When this returns or raises (deadline, cancellation, an exception of `on_line`), the command has ended,
    also on a remote node if the connection still works; children that ignore SIGTERM are killed a second
    later.

    Args:
        argv: the command line.
        deadline: seconds from now.
        input: the command's stdin; its size must be the one given to `guarded`.
        max_output: how many of the last bytes of stdout, and of stderr, to keep.
        env: the complete environment of the child; None for this process's.
        cwd: its working directory.
        on_line: called with each line of stdout and stderr as it arrives; a carriage return also ends a line.

    Raises:
        OSError: it could not be started.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    transport, protocol = await loop.subprocess_exec(
        lambda: _Protocol(max_output, on_line), *argv, env=env, cwd=cwd, start_new_session=True
    )
    timed_out = False
    try:
        if input:
            _stdin(transport).write(input)
        async with asyncio.timeout(deadline):
            await protocol.finished.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await _end(transport, protocol)
    if protocol.error:
        raise protocol.error
    stdout, stderr = protocol.pipes[1], protocol.pipes[2]
    own_255 = stderr.take_suffix(OWN_255)
    for pipe in (stdout, stderr):
        pipe.flush()
    return Ended(
        returncode=transport.get_returncode(),
        own_255=own_255,
        began=stderr.began,
        noise=stderr.noise.decode(errors="replace"),
        stdout=stdout.kept.decode(errors="replace"),
        stderr=stderr.kept.decode(errors="replace"),
        truncated=stdout.truncated or stderr.truncated,
        timed_out=timed_out,
        seconds=loop.time() - started,
    )


def _stdin(transport: asyncio.SubprocessTransport) -> asyncio.WriteTransport:
    return cast("asyncio.WriteTransport", transport.get_pipe_transport(0))


async def _end(transport: asyncio.SubprocessTransport, protocol: "_Protocol") -> None:
    """End the child if it is running: by its lifeline, and if that fails, by SIGKILL."""
    try:
        lifeline = _stdin(transport)
        if not lifeline.is_closing():
            lifeline.abort()  # close() would first wait until all input is written
        began = protocol.pipes[2].began  # an ssh that has not connected yet does not forward the lifeline
        if not await protocol.has_exited(within=_GRACE if began else 0):
            _kill(transport)
            await protocol.has_exited(within=_GRACE)
    finally:  # also after a second cancellation
        _kill(transport)
        protocol.close()
        transport.close()


def _kill(transport: asyncio.SubprocessTransport) -> None:
    if transport.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)


class _Protocol(asyncio.SubprocessProtocol):
    """A child's output and exit; `finished` is set when there is nothing more to wait for."""

    def __init__(self, max_output: int, on_line: Callable[[str], None] | None) -> None:
        self.pipes = {fd: _Pipe(max_output, on_line) for fd in (1, 2)}
        self.exited = asyncio.Event()
        self.finished = asyncio.Event()
        self.error: Exception | None = None
        self._open = {1, 2}
        self._drain: asyncio.TimerHandle | None = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if self.error:
            return
        try:
            self.pipes[fd].feed(data)
        except Exception as error:  # of on_line: raised by `run`, not in the event loop
            self.error = error
            self.finished.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        self._settle()

    def process_exited(self) -> None:
        self.exited.set()
        self._drain = asyncio.get_running_loop().call_later(_DRAIN, self.finished.set)
        self._settle()

    def _settle(self) -> None:
        if self.exited.is_set() and not self._open:
            self.finished.set()

    async def has_exited(self, *, within: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.exited.wait()
        return self.exited.is_set()

    def close(self) -> None:
        if self._drain:
            self._drain.cancel()


class _Pipe:
    """One output of a child: the noise before BEGIN, the last bytes after it, and its lines."""

    def __init__(self, limit: int, on_line: Callable[[str], None] | None) -> None:
        self.noise = bytearray()
        self.began = False
        self.kept = bytearray()
        self.truncated = False
        self._limit = limit
        self._on_line = on_line
        self._unended = b""

    def feed(self, data: bytes) -> None:
        if not self.began:
            self.noise += data
            at = self.noise.find(BEGIN)
            if at < 0:
                del self.noise[:-_NOISE]
                return
            self.began = True
            data = bytes(self.noise[at + len(BEGIN) :])
            del self.noise[at:]
        self.kept += data
        if len(self.kept) > self._limit:
            self.truncated = True
            del self.kept[: -self._limit]
        if self._on_line:
            *lines, self._unended = re.split(rb"[\r\n]", self._unended + data)
            if len(self._unended) > _LINE:
                lines, self._unended = [*lines, self._unended], b""
            self._pass_on(lines)

    def take_suffix(self, mark: bytes) -> bool:
        """Remove the mark from the end; whether it was there."""
        if not self.kept.endswith(mark):
            return False
        del self.kept[-len(mark) :]
        self._unended = self._unended.removesuffix(mark)
        return True

    def flush(self) -> None:
        """Pass on the last line if it is unfinished."""
        lines, self._unended = [self._unended], b""
        self._pass_on(lines)

    def _pass_on(self, lines: list[bytes]) -> None:
        if self._on_line:
            for line in filter(None, lines):
                self._on_line(line.decode(errors="replace"))


def is_suspended(pid: int) -> bool:
    """Whether a process of this machine is stopped by a signal (SIGSTOP, Ctrl-Z)."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        if sys.platform == "linux":
            state = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        else:
            command = ("ps", "-o", "stat=", "-p", str(pid))
            state = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return False
    return state.strip().startswith("T")
