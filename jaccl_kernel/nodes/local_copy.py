"""Replaces rsync for copies within this machine if rsync is not installed.

Accepts the options that this package passes to rsync, prints the same progress lines, and exits with rsync's
exit status, so that callers need not know which one runs. Runs as a child process, by its path: it uses the
standard library only and does not import this package.
"""

import argparse
import errno
import os
import re
import secrets
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

_BLOCK = 1 << 20
_PROGRESS_INTERVAL_S = 0.1
_USAGE_ERROR, _FILE_ERROR, _STOPPED, _VANISHED = 1, 11, 20, 24  # rsync's exit statuses


def main(arguments: list[str] | None = None) -> int:
    """Copy, and return the exit status; writes the reason for a failure to stderr."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        sys.stderr.write(f"copy: unknown option {unknown[0]}\n")
        return _USAGE_ERROR
    signal.signal(signal.SIGTERM, _stop)
    try:
        _Copy(options).run()
    except OSError as error:
        vanished = error.errno == errno.ENOENT and str(error.filename).startswith(options.source)
        what = "file has vanished" if vanished else (error.strerror or str(error))
        sys.stderr.write(f"copy: {what}: {error.filename or options.destination}\n")
        return _VANISHED if vanished else _FILE_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for letter, name in {"r": "recursive", "l": "links", "t": "times"}.items():
        parser.add_argument(f"-{letter}", dest=name, action="store_true", required=True)
    parser.add_argument("-L", dest="follow", action="store_true", help="copy the target of a link")
    parser.add_argument(
        "-I", dest="always", action="store_true", help="also copy files of equal size and time"
    )
    parser.add_argument("--inplace", action="store_true")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--timeout", help="ignored: there is no connection")
    for kind in ("include", "exclude"):
        parser.add_argument(f"--{kind}", dest="rules", action="append", default=[], type=_rule(kind))
    parser.add_argument("source")
    parser.add_argument("destination")
    return parser


def _rule(kind: str) -> Callable[[str], tuple[bool, re.Pattern[str]]]:
    return lambda text: (kind == "include", _pattern(text))


def _pattern(text: str) -> re.Pattern[str]:
    """Convert an rsync pattern to one for a complete path below the source; no character classes."""
    anchored, text = text.startswith("/"), text.removeprefix("/")
    if not re.search(r"[*?[]", text):  # without a wildcard, a backslash is literal
        body = re.escape(text)
    else:
        words = {"*": "[^/]*", "?": "[^/]"}
        tokens = re.findall(r"\\.|.", text, re.DOTALL)
        body = "".join(words.get(token) or re.escape(token[-1]) for token in tokens)
    return re.compile(body if anchored else f"(?:.*/)?{body}", re.DOTALL)


def _stop(*_: object) -> NoReturn:
    raise SystemExit(_STOPPED)


class _Copy:
    """One copy with these options."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._files = 0
        self._reported_at = 0.0

    def run(self) -> None:
        source, destination = Path(self._options.source), Path(self._options.destination)
        destination.mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
            self._copy_entry(source, destination / source.name)
            return
        for name in self._names(source, source):
            self._copy_entry(source / name, destination / name)

    def _names(self, top: Path, folder: Path) -> Iterator[str]:
        """The paths below the source that the rules include; a folder before its content."""
        for entry in sorted(folder.iterdir()):
            name = str(entry.relative_to(top))
            if self._is_excluded(name):
                continue
            yield name
            if entry.is_dir() and (self._options.follow or not entry.is_symlink()):
                yield from self._names(top, entry)

    def _is_excluded(self, path: str) -> bool:
        """Whether the first matching rule excludes the path."""
        return next((not keep for keep, rule in self._options.rules if rule.fullmatch(path)), False)

    def _copy_entry(self, source: Path, destination: Path) -> None:
        if source.is_symlink() and not self._options.follow:
            destination.unlink(missing_ok=True)
            destination.symlink_to(source.readlink())
            return
        found = source.stat()
        if stat.S_ISDIR(found.st_mode):
            destination.mkdir(exist_ok=True)
        elif stat.S_ISREG(found.st_mode) and not self._is_up_to_date(found, destination):
            self._copy_file(source, destination, found)

    def _is_up_to_date(self, found: os.stat_result, destination: Path) -> bool:
        """Whether the destination has a file of the same size and time, which needs no copy."""
        if self._options.always or not destination.exists():
            return False
        existing = destination.stat()
        return (existing.st_size, int(existing.st_mtime)) == (found.st_size, int(found.st_mtime))

    def _copy_file(self, source: Path, destination: Path, found: os.stat_result) -> None:
        """Copy the content, then the time, which marks the file as complete."""
        path = destination
        if not self._options.inplace:
            path = destination.with_name(f".{destination.name}.{secrets.token_hex(3)}")
        # writable by the owner, so that an interrupted copy can resume
        flags = os.O_RDWR | os.O_CREAT | (0 if self._options.inplace else os.O_EXCL)
        try:
            file = os.open(path, flags, stat.S_IMODE(found.st_mode) | stat.S_IWUSR)
            with os.fdopen(file, "r+b") as write, source.open("rb") as read:
                self._copy_content(read, write, found.st_size)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
            if path is not destination:
                path.replace(destination)
        except BaseException:
            if path is not destination:
                path.unlink(missing_ok=True)
            raise
        self._files += 1
        self._report(found.st_size, found.st_size, f" (xfr#{self._files}, to-chk=0/0)\n")

    def _copy_content(self, read: BinaryIO, write: BinaryIO, size: int) -> None:
        """Write only the blocks that differ, so that a copy resumes after the blocks of an earlier one."""
        done = 0
        while block := read.read(_BLOCK):
            if write.read(len(block)) != block:
                write.seek(done)
                write.write(block)
            done += len(block)
            if time.monotonic() - self._reported_at >= _PROGRESS_INTERVAL_S:
                self._report(done, size)
        write.truncate(done)

    def _report(self, done: int, size: int, end: str = "") -> None:
        if self._options.progress:
            self._reported_at = time.monotonic()
            sys.stdout.write(f"\r{done} {100 * done // size if size else 100}%{end}")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
