"""The files in a folder as plain data (names, sizes, times, hashes), and the difference between two folders.

A tree has no hidden files (names that start with a dot, or files below such a folder). `survey.py` collects
the data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_MAX_NAMES = 3  # names to list in a message before the count of the others


def is_safe(name: str) -> bool:
    """Whether a name from another machine stays below a folder: relative, no hidden, empty or `..` part."""
    return name.isprintable() and all(part and not part.startswith(".") for part in name.split("/"))


@dataclass(frozen=True)
class FileEntry:
    """One file: size in bytes, time in whole seconds since 1970, SHA-256 in hex or None if not hashed."""

    size: int
    mtime: int
    sha256: str | None = None

    def same_size_and_time(self, other: "FileEntry") -> bool:
        """Whether size and time are equal, so that the content is probably equal."""
        return (self.size, self.mtime) == (other.size, other.mtime)

    def same_content(self, other: "FileEntry") -> bool:
        """Whether the hashes prove that both have the same content."""
        return self.sha256 is not None and (self.size, self.sha256) == (other.size, other.sha256)


@dataclass(frozen=True)
class Difference:
    """How a folder differs from a reference: missing, changed and extra files."""

    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.extra)

    def __str__(self) -> str:
        parts = (("missing:", self.missing), ("changed:", self.changed), ("extra:", self.extra))
        return "; ".join(f"{label} {list_names(names)}" for label, names in parts if names)


@dataclass(frozen=True)
class Tree:
    """All files in a folder, by their relative paths (with `/`)."""

    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """The total size of all files."""
        return sum(entry.size for entry in self.files.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names, sizes and contents, but not of times: equal for equal folders."""
        lines = (f"{entry.sha256} {entry.size} {name}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def difference(self, other: "Tree") -> Difference:
        """How `other` differs from this tree, by content."""
        return Difference(
            missing=tuple(sorted(set(self.files) - set(other.files))),
            changed=tuple(
                name
                for name, entry in sorted(self.files.items())
                if name in other.files and not entry.same_content(other.files[name])
            ),
            extra=tuple(sorted(set(other.files) - set(self.files))),
        )


def list_names(names: tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
