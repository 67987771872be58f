"""The files below a folder as plain data: names, sizes, times, hashes; and how two folders differ.

Hidden files (a name that begins with a dot, or below such a folder) are no part of a tree. Where the data
comes from is `survey.py`'s business.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_SOME = 3  # names that a sentence tells before it counts


@dataclass(frozen=True)
class FileEntry:
    """One file: bytes, seconds since 1970 (cut off), SHA-256 in hex or None where nobody hashed it."""

    size: int
    mtime: int
    sha256: str | None = None

    def same_stamp(self, other: "FileEntry") -> bool:
        """Whether size and time agree: likely the same, not proven."""
        return (self.size, self.mtime) == (other.size, other.mtime)

    def same_content(self, other: "FileEntry") -> bool:
        """Whether both are proven to hold the same bytes."""
        return self.sha256 is not None and (self.size, self.sha256) == (other.size, other.sha256)


@dataclass(frozen=True)
class Difference:
    """How a folder differs from the wanted one: names that it lacks, has otherwise, and has besides."""

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.extra)

    def __str__(self) -> str:
        parts = (("lacks", self.missing), ("has another", self.changed), ("has besides", self.extra))
        return "; ".join(f"{verb} {some(names)}" for verb, names in parts if names)


@dataclass(frozen=True)
class Tree:
    """All files below a folder, by their paths from it (with `/`)."""

    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """What all files hold together."""
        return sum(entry.size for entry in self.files.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over names, sizes and contents: equal for equal folders. Times do not count."""
        lines = (f"{entry.sha256} {entry.size} {name}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def difference(self, other: "Tree") -> Difference:
        """How `other` differs from this one, by content."""
        return Difference(
            missing=tuple(sorted(set(self.files) - set(other.files))),
            changed=tuple(
                name
                for name, entry in sorted(self.files.items())
                if name in other.files and not entry.same_content(other.files[name])
            ),
            extra=tuple(sorted(set(other.files) - set(self.files))),
        )


def some(names: tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SOME
    return ", ".join(names[:_SOME]) + (f" and {more} more" if more > 0 else "")
