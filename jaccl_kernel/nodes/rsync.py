"""The command line, progress output and error messages of system rsync. Pure: builds arguments, parses text.

Supports rsync (2.6.9 to 3.x) and Apple's openrsync, which has neither `--info=progress2` nor `-s` and prints
progress slightly differently.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.nodes import ssh

# Run by the remote shell, before rsync's own arguments. The folder is created and entered here, so that its
# path is not an rsync argument: rsync versions quote spaces differently (openrsync and rsync < 3.2.4: not at
# all).
_CREATE_AND_ENTER = 'mkdir -p -- "$0" && cd -- "$0" && exec rsync "$@"'
_ENTER = 'cd -- "$0" && exec rsync "$@"'

_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# rsync 3:    "        500,000  50%   12.34MB/s    0:00:01 (xfr#1, to-chk=0/3)"
# openrsync:  "           1000 100%    0.95kB/s   00:00:00 (xfer#1, to-check=0/3)"; some versions omit a low
#             rate, and divide by zero for an empty file
_PROGRESS = re.compile(
    r"\s*(?P<bytes>\d[\d,.']*)\s+(?P<percent>\d+|-?nan|inf)%"
    r"(?:\s+(?P<rate>\d+(?:[.,]\d+)?)(?P<unit>[kKMGT]?)B/s)?"
    r"(?:\s+(?:inf|-?nan)\S*)?"
    r"(?:\s+(?:(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)|\S+:\S+:\S+))?"
    r"(?P<ended>\s+\(xfe?r#.*)?\s*"
)


@dataclass(frozen=True)
class Progress:
    """The progress of a copy.

    Args:
        sent: bytes of all files processed so far, including the current one, without files that were skipped.
        rate: current bytes per second; None if unknown.
        left: seconds until the current file is complete; None if unknown.
        files: number of complete files.
    """

    sent: int
    rate: float | None
    left: float | None
    files: int


class ProgressReader:
    """Converts the per-file output of `--progress` into a total; feed it line by line."""

    def __init__(self) -> None:
        self._before = 0
        self._files = 0

    def feed(self, line: str) -> Progress | None:
        """The progress in a line (without `\\r` or `\\n`), or None if it is not a progress line."""
        found = _PROGRESS.fullmatch(line)
        if not found:
            return None
        sent = self._before + int(re.sub(r"\D", "", found["bytes"]))
        left: float | None = None
        if found["h"]:
            left = int(found["h"]) * 3600.0 + int(found["m"]) * 60 + int(found["s"])
        if found["ended"]:  # the time is now the duration of the file
            self._before, self._files, left = sent, self._files + 1, 0.0
        return Progress(sent, _rate(found["rate"], found["unit"]), left, self._files)


def _rate(number: str | None, unit: str | None) -> float | None:
    if number is None:
        return None
    return float(number.replace(",", ".")) * _UNITS[(unit or "").replace("K", "k")]


def command(args: Sequence[str], *, progress: bool) -> list[str]:
    """rsync's command line: copies folders, links and times, but not owners, which differ between Macs."""
    return ["rsync", "-rlt", *(["--progress"] if progress else []), *args]


def ssh_options(ssh_command: Sequence[str], folder: str, *, create: bool) -> list[str]:
    """The rsync options that make `remote_path` refer to that remote folder; `create` it if missing."""
    enter = ["/bin/sh", "-c", _CREATE_AND_ENTER if create else _ENTER, relative_to_home(folder)]
    return ["-e", " ".join(ssh_command), f"--rsync-path={' '.join(map(ssh.quote, enter))}"]


def remote_path(host: str) -> str:
    """The rsync path of the folder that `ssh_options` enters; an IPv6 address is in brackets."""
    user, at, name = host.rpartition("@")
    return f"{user}{at}[{name}]:./" if ":" in name else f"{host}:./"


def relative_to_home(folder: str) -> str:
    """A path relative to the home folder, in which ssh and our own commands start: `~/a` is `a`.

    Raises:
        InputError: the path is empty, or in another user's home.
    """
    if not folder or re.match(r"~[^/]", folder):
        raise InputError(f"invalid folder path {folder!r}", fix="Start the path with / or ~/.")
    return re.sub(r"^~/*", "", folder) or "."


FULL = re.compile(r"No space left on device|Disk quota exceeded")
"""rsync's message for a full destination disk."""


@dataclass(frozen=True)
class _Case:
    pattern: str
    what: str
    fix: str


# The first match is used.
_CASES = (
    _Case(
        r"rsync: (?:command )?not found|command not found: rsync|Unknown command:? '?rsync",
        "rsync is not installed on the node",
        "Install rsync on it: macOS includes it; on Linux, install the package rsync.",
    ),
    _Case(
        FULL.pattern,
        "the disk is full",
        "Free disk space on the destination. With --partial, received data is kept.",
    ),
    _Case(
        r"is your shell clean|protocol version mismatch|unexpected tag",
        "a remote shell start-up file prints text, which breaks the rsync protocol",
        "Make ~/.zshenv or ~/.bashrc on that Mac print nothing in a non-interactive shell.",
    ),
    _Case(
        r"vanished", "files were removed during the copy", "Copy again when no process changes the folder."
    ),
    _Case(
        r"unknown option|unrecognized option|invalid option",
        "one of the two rsync versions does not support an option",
        "Apple's rsync is openrsync, which supports fewer options than rsync 3; install rsync 3.",
    ),
    _Case(
        r"Read-only file system|Permission denied|Operation not permitted",
        "missing permission to read or write",
        "Choose a folder that the user may access; on macOS, folders such as Documents need a permission.",
    ),
    _Case(r"No such file or directory|can't cd to", "a folder is missing", "Check the path on both nodes."),
)


def explain(stderr: str) -> tuple[str, str]:
    """The cause, with rsync's own message, and the fix ("" if unknown), from rsync's stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for case in _CASES:
        for line in lines:
            if re.search(case.pattern, line):
                return f"{case.what} ({line})", case.fix
    return (lines[0] if lines else "no error message"), ""
