"""A command or a copy on one node: over system ssh, or on this machine with a home and PATH of its own.

`Node` is what probe, steps and jobs speak to; they need not know which of the two it is. Every wait has a
deadline, and nothing that was started outlives it. Errors say the node, the command and the reason. How a
process is held is in `child.py`; ssh's and rsync's words are in `ssh.py` and `rsync.py`.
"""

import os
import re
import shlex
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel import child
from jaccl_kernel.cluster import rsync, ssh
from jaccl_kernel.errors import CommandFailed, CommandTimeout, InputError, NodeError, NodeUnreachable

OnLine = Callable[[str], None]
OnProgress = Callable[[rsync.Progress], None]

_SHOWN = 120
"""Characters of a command that an error shows."""

_LOCAL = "127.0.0.1"
"""The one host name that mlx.launch runs without ssh."""


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself.

    Args:
        argv: what was run, without the way there.
        returncode: its exit status; 128 + n if signal n ended it, as shells say.
        stdout, stderr: what it wrote, carriage returns and all, as UTF-8 (what is not UTF-8 becomes U+FFFD).
            What shell start files or ssh itself print is not in them.
        truncated: it wrote more than `max_output` bytes to one of them, whose first ones are missing.
        seconds: how long it took, the way there and back included.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class _Launch:
    """What this machine executes so that a node runs a command; `env` None is our own environment."""

    argv: list[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None


class Node(ABC):
    """One Mac, real or simulated, on which commands can be run and to which folders can be copied.

    Args:
        name: what reports and errors call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def where(self) -> str:
        """What an error calls the node."""
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
        """Run a program on the node, in its home folder, and wait for its end.

        The arguments arrive to the letter. The program gets `input` whole, or, without one, an empty stdin.
        When we give up (deadline, cancel) or die, its process group is ended there; so are children that it
        leaves running, unless they made a session of their own.

        Args:
            argv: the program and its arguments. Over ssh macOS gives a short PATH: prefer absolute programs.
            deadline: seconds that it may take, the way there included.
            input: what it reads from its stdin; it is kept in a file there for a moment: no secrets.
            max_output: how many of the last bytes are kept of its stdout, and of its stderr.
            check: raise CommandFailed unless it ends with 0.
            env: variables added to the node's own. They show in `ps` there: no secrets.
            on_line: called with each line of stdout and stderr as it comes; a \\r ends a line too.

        Raises:
            NodeUnreachable: it could not be reached, or does not let us in, or the connection broke.
            CommandTimeout: the program did not end before the deadline.
            CommandFailed: it ended with another status than 0.
            InputError: a program, argument or variable that no system can take.
        """
        env = env or {}
        _check(argv, env)
        shown = _shown(argv)
        data = input or b""
        launch = self._launch(argv, env, len(data))
        try:
            ended = await child.run(
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
        if unreached := self._unreached(ended, shown, deadline):
            raise unreached
        last = ended.last_words
        if ended.timed_out or ended.returncode is None:
            what = f"`{shown}` did not end within {deadline:g} s, and was ended"
            raise CommandTimeout(what + (f"; its last words: {last}" if last else ""), where=self.where)
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
        """Run a POSIX sh script, its arguments `$1`…: many commands in one round trip. Otherwise as `run`.

        It travels as one argument (128 KB at most), not on stdin: half a script is never run.
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
        """Make the node's folder `dest` hold what the folder `src` of this machine holds, or the file `src`.

        Args:
            src: a folder or a file here.
            dest: a folder there, made if need be; `~/…` and relative ones stand in the node's home.
            deadline: seconds.
            on_progress: told how far it is, about once a second.
            options: more of rsync's, such as `--partial` or `--delete`.

        Raises:
            CommandFailed: rsync failed: a full disk, a folder that may not be written, …
            NodeUnreachable, CommandTimeout: as `run`.
            NodeError: there is no rsync on this machine.
            InputError: there is no such `src`, or `dest` is no folder name.
        """
        here = _source(src, self.where)
        way, there = self._far_folder(dest, make=True)
        await self._copy([*options, *way, here, there], f"{src} to {dest}", deadline, on_progress)

    async def copy_from(
        self,
        src: str,
        dest: Path,
        *,
        deadline: float,
        on_progress: OnProgress | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Make the folder `dest` here hold what the node's folder `src` holds; otherwise as `copy_to`."""
        way, there = self._far_folder(src, make=False)
        here = f"{_made(dest, self.where)}/"
        await self._copy([*options, *way, there, here], f"{src} to {dest}", deadline, on_progress)

    async def _copy(
        self, args: Sequence[str], shown: str, deadline: float, on_progress: OnProgress | None
    ) -> None:
        copier = self._copier()
        if not copier.has("rsync"):
            fix = "It is part of macOS (/usr/bin/rsync); on Linux install the package rsync."
            raise NodeError("there is no rsync on this machine to copy with", where=self.where, fix=fix)
        reader = rsync.ProgressReader()

        def on_line(line: str) -> None:
            if on_progress and (progress := reader.feed(line)):
                on_progress(progress)

        argv = rsync.command(args, progress=on_progress is not None)
        done = await copier.run(argv, deadline=deadline, check=False, on_line=on_line)
        if done.returncode:
            raise self._not_copied(done, shown)

    def _not_copied(self, done: Completed, shown: str) -> NodeError:
        why, fix = rsync.explain(done.stderr)
        what = f"rsync of {shown} ended with status {done.returncode}: {why}"
        return CommandFailed(what, where=self.where, fix=fix, returncode=done.returncode, output=why)

    def _unreached(self, ended: child.Ended, shown: str, deadline: float) -> NodeUnreachable | None:
        """The error for a command that the node never started, or lost; None if it ran."""
        return None

    @abstractmethod
    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> _Launch:
        """What is executed here so that `argv` runs there, on its lifeline."""

    @abstractmethod
    def _not_started(self, error: OSError, shown: str) -> NodeError:
        """The error for a launch that this machine could not execute."""

    @abstractmethod
    def _far_folder(self, folder: str, *, make: bool) -> tuple[list[str], str]:
        """rsync's options for the way to that folder, and what rsync calls it."""

    @abstractmethod
    def _copier(self) -> "LocalNode":
        """Where rsync is started; its errors carry this node's name."""


class LocalNode(Node):
    """This machine, or a simulated Mac on it: a home folder and a PATH of its own, else our environment.

    Args:
        name: what reports and errors call it.
        home: its HOME, where commands start; ours if None.
        path: its PATH; ours if None.
        env: more variables that its commands see.
    """

    def __init__(
        self,
        name: str,
        home: Path | None = None,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name)
        self.home = (home or Path.home()).absolute()
        own_path = {} if path is None else {"PATH": path}
        self._env = {"HOME": str(self.home), **own_path, **(env or {})}

    def has(self, program: str) -> bool:
        """Whether its PATH leads to that program."""
        return shutil.which(program, path=self._env.get("PATH")) is not None

    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> _Launch:
        return _Launch(child.guarded(argv, input_size), {**os.environ, **self._env, **env}, self.home)

    def _not_started(self, error: OSError, shown: str) -> NodeError:
        return NodeError(f"`{shown}` could not be started in {self.home}: {error}", where=self.where)

    def _far_folder(self, folder: str, *, make: bool) -> tuple[list[str], str]:
        path = self.home / rsync.below_home(folder)
        return [], f"{_made(path, self.where) if make else path}/"

    def _copier(self) -> "LocalNode":
        return self


class SshNode(Node):
    """A Mac that system ssh reaches, with the user's own ssh config and keys, and never a question.

    The login shell there may be zsh, bash, sh, dash, ksh or fish; not csh.

    Args:
        host: what ssh is given: a name, user@name, an alias of the ssh config.
        name: what reports and errors call it; the host if None.
        options: more of ssh's, such as ("-F", "config"); words without white space.

    Raises:
        InputError: a host or an option that ssh cannot take.
    """

    def __init__(self, host: str, name: str | None = None, options: Sequence[str] = ()) -> None:
        super().__init__(name or host)
        self.host = ssh.check_host(host)
        self._ssh = ssh.command(options)

    @property
    def where(self) -> str:
        """What an error calls the node: its name, and its ssh name where that differs."""
        return self.name if self.name == self.host else f"{self.name} (ssh {self.host})"

    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> _Launch:
        settings = ["/usr/bin/env", *(f"{key}={value}" for key, value in env.items())] if env else []
        far = child.guarded([*settings, *argv], input_size)
        return _Launch([*self._ssh, "--", self.host, ssh.command_line(far)])

    def _not_started(self, error: OSError, shown: str) -> NodeError:
        if not isinstance(error, FileNotFoundError):
            return NodeError(f"`{shown}` could not be sent: {error}", where=self.where)
        fix = "Install OpenSSH's client: it is part of macOS; on Linux the package is openssh-client."
        return NodeUnreachable(
            f"`{shown}` was not run: there is no ssh on this machine", where=self.where, fix=fix
        )

    def _unreached(self, ended: child.Ended, shown: str, deadline: float) -> NodeUnreachable | None:
        if ended.began:
            if ended.timed_out or ended.own_255 or ended.returncode != 255:
                return None
            return self._lost(ssh.lost(ended.stderr) or "ssh gives no reason", f"`{shown}` ran")
        trouble = ssh.explain(ended.noise, self.host)
        if not trouble:
            said = " / ".join(filter(None, ended.noise.splitlines())) or "nothing"
            how = (
                f"ssh was not through after {deadline:g} s"
                if ended.timed_out
                else f"the other side ended with status {ended.returncode} instead"
            )
            trouble = ssh.Trouble(f"{how}, and said {said}", f"Try by hand: ssh -v {self.host} true")
        return NodeUnreachable(f"`{shown}` was not run: {trouble.what}", where=self.where, fix=trouble.fix)

    def _lost(self, why: str, meanwhile: str) -> NodeUnreachable:
        fix = f"Is it still on, awake and on the network? Try by hand: ssh {self.host} true"
        return NodeUnreachable(f"the connection broke while {meanwhile}: {why}", where=self.where, fix=fix)

    def _not_copied(self, done: Completed, shown: str) -> NodeError:
        if trouble := ssh.explain(done.stderr, self.host):
            what = f"rsync of {shown} failed: {trouble.what}"
            return NodeUnreachable(what, where=self.where, fix=trouble.fix)
        if why := ssh.lost(done.stderr):
            return self._lost(why, f"rsync copied {shown}")
        return super()._not_copied(done, shown)

    def _far_folder(self, folder: str, *, make: bool) -> tuple[list[str], str]:
        return rsync.over_ssh(self._ssh, folder, make=make), rsync.far_place(self.host)

    def _copier(self) -> LocalNode:
        return LocalNode(self.where)


def node_for(host: str, name: str | None = None, options: Sequence[str] = ()) -> Node:
    """The node of a hostfile's `ssh` name: as for mlx.launch, the literal 127.0.0.1 is this machine."""
    return LocalNode(name or host) if host == _LOCAL else SshNode(host, name, options)


def _check(argv: Sequence[str], env: Mapping[str, str]) -> None:
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise InputError(f"{list(argv)!r} names no program to run")
    for key in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise InputError(f"{key!r} is no name of an environment variable")
    for word in (*argv, *env.values()):
        if "\0" in word:
            raise InputError(f"{word!r} holds a NUL, which no argument or variable can carry")


def _source(path: Path, where: str) -> str:
    """A folder's content, or one file, as rsync names it: absolute, or a colon in it would mean a host."""
    if not path.exists():
        raise InputError(f"there is no {path} to copy", where=where)
    return f"{path.absolute()}/" if path.is_dir() else str(path.absolute())


def _made(folder: Path, where: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}", where=where) from error
    return folder.absolute()


def _shown(argv: Sequence[str]) -> str:
    if tuple(argv[:2]) == ("/bin/sh", "-c") and tuple(argv[3:4]) == ("sh",):  # `script`: a screenful
        return "a shell script"
    text = " ".join(shlex.join(argv).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _failure(program: str, shown: str, code: int, last: str) -> tuple[str, str]:
    """What to say of an exit status other than 0, and what to do about it."""
    tail = f": {last}" if last else ""
    if code == 127 and program in last:
        fix = "Install it there, or give its absolute path: over ssh, macOS gives commands a short PATH."
        return f"there is no `{program}` ({last})", fix
    if code == 126 and program in last:
        return f"`{program}` cannot be executed{tail}", f"chmod +x {shlex.quote(program)}"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"`{shown}` was ended by {signal.Signals(code - 128).name}{tail}", ""
    return f"`{shown}` ended with status {code}{tail}", ""
