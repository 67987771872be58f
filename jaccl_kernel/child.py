"""One child process that cannot outlive us: its lifeline, its deadline, its bounded output, its end.

Knows how a command is wrapped so that it ends when we do, here or behind ssh, and how the wrapped command's
output is told from the noise around it. Knows nothing of nodes, ssh or errors for users: see `shell.py`.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

BEGIN = b"\x1ejaccl\x1e"
"""What the lifeline writes first, on stdout and stderr: before it, others speak (shell start files, ssh)."""

OWN_255 = b"\x1ejaccl:255\x1e"
"""What it writes last on stderr when the command itself ended with 255, which from ssh means "I failed"."""

# Runs `$4…` with the first `$3` bytes of stdin as its stdin, and ends the command's whole process group when
# the rest of stdin ends, which is what a dead starter, a cancelled wait and a cut connection have in common.
#   * sshd makes each command a process group of its own (so does `run` below): `-$$` is that group or, should
#     it ever not be one, no group at all. Stock macOS has no `setsid`; dash has no `set -m` without a tty.
#   * The input is held in a file first: a command never sees half of it as if it were whole.
#   * `exec` runs programs only: a command called `exit` or `cd` does not become a builtin of this shell.
#   * Background children that a command leaves behind are ended with it.
#   * The shell's own remarks (`Terminated`) go nowhere: stderr is the command's.
# No single quote and no backslash in here: the text goes through the far login shell, fish among them.
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
"""Seconds for a command to end after its lifeline: TERM, a second at most, KILL, there and back."""

_DRAIN = 1.0
"""Seconds for the last output after the end: an ssh master, or a daemon, may hold the pipe open for ever."""

_NOISE = 1 << 16
"""Bytes kept of what is said before the command begins."""

_LINE = 1 << 16
"""Bytes after which a line without an end is handed on as it is."""


@dataclass(frozen=True)
class Ended:
    """What is left of a child process.

    Args:
        returncode: its exit status (negative: the signal that ended it); None if even SIGKILL did not.
        own_255: the command itself ended with 255: not ssh.
        began: the wrapped command was started (an ssh that fails never gets that far).
        noise: what was said on stderr before it began.
        stdout, stderr: the last `max_output` bytes of each, as UTF-8, what is not UTF-8 replaced.
        truncated: one of the two was longer.
        timed_out: it was ended at its deadline.
        seconds: how long it took.
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
    def last_words(self) -> str:
        """The last three lines that say something, of stderr or else of stdout, as one line."""
        lines = [line.strip() for line in (self.stderr.strip() or self.stdout).splitlines()]
        return " / ".join([line for line in lines if line][-3:])


def guarded(argv: Sequence[str], input_size: int = 0) -> list[str]:
    """What runs `argv` on a lifeline: POSIX sh, whose stdin is first the input and then the lifeline."""
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
    """Run a `guarded` command, itself or behind ssh, to its end or for `deadline` seconds.

    Whatever ends the wait (the deadline, a cancel, an `on_line` that raises), the command has ended when this
    returns, on the far side too if the connection still stands; children that ignore SIGTERM a second later.

    Args:
        argv: what to execute.
        deadline: seconds from now.
        input: what the command reads from its stdin; as many bytes as `guarded` was told.
        max_output: how many of the last bytes are kept of stdout, and of stderr.
        env: the whole environment of the child; None for ours.
        cwd: its working folder.
        on_line: called with each line of stdout and stderr as it comes; a carriage return ends a line too.

    Raises:
        OSError: it could not be started.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    transport, talk = await loop.subprocess_exec(
        lambda: _Talk(max_output, on_line), *argv, env=env, cwd=cwd, start_new_session=True
    )
    timed_out = False
    try:
        if input:
            _stdin(transport).write(input)
        async with asyncio.timeout(deadline):
            await talk.finished.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await _end(transport, talk)
    if talk.error:
        raise talk.error
    stdout, stderr = talk.pipes[1], talk.pipes[2]
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


async def _end(transport: asyncio.SubprocessTransport, talk: "_Talk") -> None:
    """End the child, if it has not ended: by its lifeline, and if that does not help, by SIGKILL."""
    try:
        lifeline = _stdin(transport)
        if not lifeline.is_closing():
            lifeline.abort()  # close() would first wait for input that nobody reads
        began = talk.pipes[2].began  # an ssh that is not through yet passes no lifeline on
        if not await talk.has_exited(within=_GRACE if began else 0):
            _kill(transport)
            await talk.has_exited(within=_GRACE)
    finally:  # a second cancel arrives here
        _kill(transport)
        talk.close()
        transport.close()


def _kill(transport: asyncio.SubprocessTransport) -> None:
    if transport.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)


class _Talk(asyncio.SubprocessProtocol):
    """What a child says, and whether it has ended; `finished` when there is nothing more to wait for."""

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
        except Exception as error:  # on_line's: it belongs to who called run, not to the event loop
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
    """One output of a child: what came before BEGIN, the last bytes of what came after, and its lines."""

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
            self._tell(lines)

    def take_suffix(self, mark: bytes) -> bool:
        """Cut the mark off the end, and say whether it was there."""
        if not self.kept.endswith(mark):
            return False
        del self.kept[-len(mark) :]
        self._unended = self._unended.removesuffix(mark)
        return True

    def flush(self) -> None:
        """Hand on the last line, if nothing ended it."""
        lines, self._unended = [self._unended], b""
        self._tell(lines)

    def _tell(self, lines: list[bytes]) -> None:
        if self._on_line:
            for line in filter(None, lines):
                self._on_line(line.decode(errors="replace"))
