"""The interface of a node, and the code that all nodes share: run a command or a script, copy files.

Every wait has a deadline, after which the process is killed. Errors name the node, the command and the
reason. `local_node.py` and `ssh_node.py` implement the interface; `core/process.py` runs the child processes.
"""

import re
import shlex
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaccl_kernel.core import process
from jaccl_kernel.core.errors import (
    CommandFailed,
    CommandTimeout,
    InputError,
    NodeError,
    NodeUnreachable,
)
from jaccl_kernel.core.system_tools import TOOLS
from jaccl_kernel.nodes import local_copy, rsync

if TYPE_CHECKING:
    from jaccl_kernel.nodes.local_node import LocalNode

OnLine = Callable[[str], None]
OnProgress = Callable[[rsync.Progress], None]

SEARCH_PATH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/opt/homebrew/bin", "/usr/local/bin")
"""Directories to append to a node's PATH, which is short in a non-login ssh shell on macOS."""

_SHOWN = 120
"""Maximum number of characters of a command in an error."""

_LOCAL_COPY = [sys.executable, "-I", local_copy.__file__]
"""Replaces rsync for copies within this machine if rsync is not installed."""


@dataclass(frozen=True)
class Completed:
    """The result of a command that ended before its deadline.

    Args:
        argv: the command, without ssh.
        returncode: its exit status; 128 + n if signal n ended it, as in a shell.
        stdout, stderr: its output as UTF-8, including carriage returns (invalid bytes become U+FFFD), without
            the output of shell start-up files or of ssh.
        truncated: whether one of them exceeded `max_output` bytes, in which case its first bytes are missing.
        seconds: the duration, including the connection.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class Launch:
    """The local process that runs a command on a node; `env` None means our own environment."""

    argv: list[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None


class Node(ABC):
    """One Mac, real or simulated.

    Args:
        name: the name in reports and errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def where(self) -> str:
        """The name of the node in errors."""
        return self.name

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline: float,
        input: bytes | None = None,  # noqa: A002 - the standard library's name for it
        max_output: int = 1 << 20,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run a program on the node, in its home folder, and wait until it ends.

        The arguments are passed unchanged. The program reads the complete `input`, or an empty stdin. If the
        deadline expires, the call is cancelled or this process dies, the program's process group is killed on
        the node; so are children that it leaves behind, unless they started their own session.

        Args:
            argv: the program and its arguments. PATH is short over ssh on macOS: prefer absolute paths.
            deadline: seconds, including the connection.
            input: its stdin, which is temporarily stored in a file on the node: no secrets.
            max_output: the number of last bytes to keep of stdout, and of stderr.
            check: raise CommandFailed if the exit status is not 0.
            env: additional environment variables. They are visible in `ps` on the node: no secrets.
            on_line: called with each line of stdout and stderr as it arrives; \\r also ends a line.

        Raises:
            NodeUnreachable: the connection or the authentication failed, or the connection broke.
            CommandTimeout: the program did not end before the deadline.
            CommandFailed: the exit status is not 0.
            InputError: an invalid program, argument or variable.
        """
        env = env or {}
        _check_arguments(argv, env)
        shown = _describe(argv)
        data = input or b""
        launch = self._launch(argv, env, len(data))
        try:
            ended = await process.run(
                launch.argv,
                deadline=deadline,
                input=data,
                max_output=max_output,
                env=launch.env,
                cwd=launch.cwd,
                on_line=on_line,
            )
        except OSError as error:
            raise self._not_started(error, shown) from error
        if unreachable := self._connection_error(ended, shown, deadline):
            raise unreachable
        last = ended.last_lines
        if ended.timed_out or ended.returncode is None:
            what = f"`{shown}` did not end within {deadline:g} s and was killed"
            raise CommandTimeout(what + (f"; last output: {last}" if last else ""), where=self.where)
        if check and ended.returncode:
            what, fix = _failure(argv[0], shown, ended.returncode, last)
            raise CommandFailed(what, where=self.where, fix=fix, returncode=ended.returncode, output=last)
        return Completed(
            tuple(argv), ended.returncode, ended.stdout, ended.stderr, ended.truncated, ended.seconds
        )

    async def script(
        self,
        text: str,
        *args: str,
        deadline: float,
        max_output: int = 1 << 20,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> Completed:
        """Run a POSIX sh script with arguments `$1`…, as `run` does: many commands in one round trip.

        The script is passed as one argument (128 KB at most), not on stdin, so that it never runs partially.
        """
        return await self.run(
            ["/bin/sh", "-c", text, "sh", *args],
            deadline=deadline,
            max_output=max_output,
            check=check,
            env=env,
            on_line=on_line,
        )

    async def copy_to(
        self,
        src: Path,
        dest: str,
        *,
        deadline: float,
        on_progress: OnProgress | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Copy the content of the local folder `src`, or the local file `src`, to the node's folder `dest`.

        Args:
            src: a local folder or file.
            dest: a folder on the node, created if missing; `~/…` and relative paths are below the node's
                home.
            deadline: seconds.
            on_progress: called about once per second.
            options: additional rsync options, such as `--partial` or `--delete`.

        Raises:
            CommandFailed: rsync failed, for example because of a full disk or missing permissions.
            NodeUnreachable, CommandTimeout: as `run`.
            NodeError: rsync is not installed on this machine, and the node is another machine.
            InputError: `src` does not exist, or `dest` is not a valid path.
        """
        local = _source(src, self.where)
        ssh_options, remote = self._rsync_path(dest, create=True)
        await self._copy([*options, *ssh_options, local, remote], f"{src} to {dest}", deadline, on_progress)

    async def copy_from(
        self,
        src: str,
        dest: Path,
        *,
        deadline: float,
        on_progress: OnProgress | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Copy the content of the node's folder `src` to the local folder `dest`; otherwise as `copy_to`."""
        ssh_options, remote = self._rsync_path(src, create=False)
        local = f"{create_folder(dest, self.where)}/"
        await self._copy([*options, *ssh_options, remote, local], f"{src} to {dest}", deadline, on_progress)

    async def _copy(
        self, args: Sequence[str], shown: str, deadline: float, on_progress: OnProgress | None
    ) -> None:
        copier = self._copier()
        installed = copier.has("rsync")
        if not installed and copier is not self:
            what = "cannot copy: rsync is not installed on this machine"
            raise NodeError(what, where=self.where, fix=TOOLS["rsync"].fix)
        reader = rsync.ProgressReader()

        def on_line(line: str) -> None:
            if on_progress and (progress := reader.feed(line)):
                on_progress(progress)

        program, *more = rsync.command(args, progress=on_progress is not None)
        argv = [*([program] if installed else _LOCAL_COPY), *more]
        done = await copier.run(argv, deadline=deadline, check=False, on_line=on_line)
        if done.returncode:
            raise self._copy_error(done, shown)

    def _copy_error(self, done: Completed, shown: str) -> NodeError:
        why, fix = rsync.explain(done.stderr)
        what = f"the copy of {shown} failed with status {done.returncode}: {why}"
        return CommandFailed(what, where=self.where, fix=fix, returncode=done.returncode, output=why)

    def _connection_error(self, ended: process.Ended, shown: str, deadline: float) -> NodeUnreachable | None:
        """The error if the command did not start on the node or the connection broke; None if it ran."""
        return None

    @abstractmethod
    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> Launch:
        """The local process that runs `argv` on the node, with a lifeline."""

    @abstractmethod
    def _not_started(self, error: OSError, shown: str) -> NodeError:
        """The error if the local process could not start."""

    @abstractmethod
    def _rsync_path(self, folder: str, *, create: bool) -> tuple[list[str], str]:
        """The rsync options that reach that folder, and its rsync path."""

    @abstractmethod
    def _copier(self) -> "LocalNode":
        """The local node that runs rsync; its errors have this node's name."""


def _check_arguments(argv: Sequence[str], env: Mapping[str, str]) -> None:
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise InputError(f"{list(argv)!r} does not start with a program")
    for key in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"{key!r} is not a valid name of an environment variable")
    for word in (*argv, *env.values()):
        if "\0" in word:
            raise InputError(
                f"{word!r} contains a NUL character, which arguments and variables cannot contain"
            )


def _source(path: Path, where: str) -> str:
    """The rsync path of a folder's content or a file; absolute, since a colon would separate a host."""
    if not path.exists():
        raise InputError(f"{path} does not exist", where=where)
    return f"{path.absolute()}/" if path.is_dir() else str(path.absolute())


def create_folder(folder: Path, where: str) -> Path:
    """Create a local folder, if missing, and return its absolute path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror}", where=where) from error
    return folder.absolute()


def _describe(argv: Sequence[str]) -> str:
    if tuple(argv[:2]) == ("/bin/sh", "-c") and tuple(argv[3:4]) == ("sh",):  # from `script`: too long
        return "a shell script"
    text = " ".join(shlex.join(argv).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _failure(program: str, shown: str, code: int, last: str) -> tuple[str, str]:
    """The error text and fix for an exit status other than 0."""
    tail = f": {last}" if last else ""
    if code == 127 and program in last:
        fix = "Install it on the node, or pass its absolute path: PATH is short over ssh on macOS."
        return f"`{program}` was not found ({last})", fix
    if code == 126 and program in last:
        return f"`{program}` is not executable{tail}", f"Run: chmod +x {shlex.quote(program)}"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"`{shown}` was killed by {signal.Signals(code - 128).name}{tail}", ""
    return f"`{shown}` failed with status {code}{tail}", ""
