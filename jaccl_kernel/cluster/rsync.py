"""System rsync: its command line, its progress and its complaints, in both flavours.

Pure: builds argument lists and reads text. The flavours are rsync (2.6.9 to 3.x) and Apple's openrsync, which
has neither `--info=progress2` nor `-s`, and prints its progress a little differently.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.cluster import ssh
from jaccl_kernel.errors import InputError

# Run by the far shell, in front of rsync's own arguments. Making and entering the folder here keeps the path
# out of those, where each version quotes spaces in its own way (openrsync and rsync < 3.2.4: not at all).
_INTO = 'mkdir -p -- "$0" && cd -- "$0" && exec rsync "$@"'
_FROM = 'cd -- "$0" && exec rsync "$@"'

_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# rsync 3:    "        500,000  50%   12.34MB/s    0:00:01 (xfr#1, to-chk=0/3)"
# openrsync:  "           1000 100%    0.95kB/s   00:00:00 (xfer#1, to-check=0/3)"; some versions leave a slow
#             rate out, and divide by the size of an empty file
_PROGRESS = re.compile(
    r"\s*(?P<bytes>\d[\d,.']*)\s+(?P<percent>\d+|-?nan|inf)%"
    r"(?:\s+(?P<rate>\d+(?:[.,]\d+)?)(?P<unit>[kKMGT]?)B/s)?"
    r"(?:\s+(?:inf|-?nan)\S*)?"
    r"(?:\s+(?:(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)|\S+:\S+:\S+))?"
    r"(?P<ended>\s+\(xfe?r#.*)?\s*"
)


@dataclass(frozen=True)
class Progress:
    """How far a copy is.

    Args:
        sent: bytes of all files that rsync has dealt with so far, this one's included. A file that was there
            already is not among them.
        rate: bytes per second just now; None if rsync does not say.
        left: seconds for the rest of this file; None if rsync does not say.
        files: how many files are complete.
    """

    sent: int
    rate: float | None
    left: float | None
    files: int


class ProgressReader:
    """Makes one running figure of `--progress`, which counts file by file: feed it line after line."""

    def __init__(self) -> None:
        self._before = 0
        self._files = 0

    def feed(self, line: str) -> Progress | None:
        """The progress that a line tells (without its `\\r` or `\\n`), or None if it tells none."""
        found = _PROGRESS.fullmatch(line)
        if not found:
            return None
        sent = self._before + int(re.sub(r"\D", "", found["bytes"]))
        left: float | None = None
        if found["h"]:
            left = int(found["h"]) * 3600.0 + int(found["m"]) * 60 + int(found["s"])
        if found["ended"]:  # the time is now what the file took
            self._before, self._files, left = sent, self._files + 1, 0.0
        return Progress(sent, _rate(found["rate"], found["unit"]), left, self._files)


def _rate(number: str | None, unit: str | None) -> float | None:
    if number is None:
        return None
    return float(number.replace(",", ".")) * _UNITS[(unit or "").replace("K", "k")]


def command(args: Sequence[str], *, progress: bool) -> list[str]:
    """rsync's command line: folders, links and times are copied, but not owners, who differ between Macs."""
    return ["rsync", "-rlt", *(["--progress"] if progress else []), *args]


def over_ssh(ssh_command: Sequence[str], folder: str, *, make: bool) -> list[str]:
    """The options that make `far_place` mean that far folder, whatever its name; `make` it if need be."""
    enter = ["/bin/sh", "-c", _INTO if make else _FROM, below_home(folder)]
    return ["-e", " ".join(ssh_command), f"--rsync-path={' '.join(map(ssh.quote, enter))}"]


def far_place(host: str) -> str:
    """The folder that `over_ssh` enters, as rsync names it; an IPv6 address stands in brackets."""
    user, at, name = host.rpartition("@")
    return f"{user}{at}[{name}]:./" if ":" in name else f"{host}:./"


def below_home(folder: str) -> str:
    """A folder as seen from the home folder, where ssh and our own commands begin: `~/a` is `a`.

    Raises:
        InputError: it is empty, or another user's home.
    """
    if not folder or re.match(r"~[^/]", folder):
        raise InputError(f"{folder!r} is no folder that can be copied", fix="Begin it with / or ~/.")
    return re.sub(r"^~/*", "", folder) or "."


FULL = re.compile(r"No space left on device|Disk quota exceeded")
"""How rsync says that the disk it writes to is full."""


@dataclass(frozen=True)
class _Case:
    pattern: str
    what: str
    fix: str


# The first that matches tells.
_CASES = (
    _Case(
        r"rsync: (?:command )?not found|command not found: rsync|Unknown command:? '?rsync",
        "rsync is not there",
        "Install it: it is part of macOS; on Linux it is the package rsync.",
    ),
    _Case(
        FULL.pattern,
        "the disk is full",
        "Make room there. What has arrived is kept if --partial is among the options.",
    ),
    _Case(
        r"is your shell clean|protocol version mismatch|unexpected tag",
        "something else than rsync spoke on the connection: a shell start file there prints text",
        "Let ~/.zshenv or ~/.bashrc there print nothing when the shell is not interactive.",
    ),
    _Case(r"vanished", "files vanished while they were copied", "Copy again when nobody changes them."),
    _Case(
        r"unknown option|unrecognized option|invalid option",
        "one of the two rsyncs does not know an option",
        "Apple's rsync is openrsync, and knows fewer options than rsync 3.",
    ),
    _Case(
        r"Read-only file system|Permission denied|Operation not permitted",
        "something may not be read or written",
        "Choose a folder that the user may use; on macOS, folders such as Documents need a permission too.",
    ),
    _Case(r"No such file or directory|can't cd to", "a folder is missing", "Check the path on both sides."),
)


def explain(words: str) -> tuple[str, str]:
    """What rsync's stderr says: the cause with rsync's own words, and a fix ("" if none is known)."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    for case in _CASES:
        for line in lines:
            if re.search(case.pattern, line):
                return f"{case.what} ({line})", case.fix
    return (lines[0] if lines else "it gave no reason"), ""
