"""The result of a sync: the state on each node, as data and as rows of a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaccl_kernel.steps.fit import Finding
from jaccl_kernel.steps.sync.locate import State

SCHEMA = 1

COLUMNS = ("node", "model", "folder", "how", "GB", "MB/s", "detail")


@dataclass(frozen=True)
class Kept:
    """The hidden folder of an unfinished copy, and the bytes in it."""

    folder: str
    bytes: int


@dataclass(frozen=True)
class NodeSync:
    """The result on one node.

    Attributes:
        node: its name.
        path: the model's folder there; None if the node did not answer.
        before: the folder's state before the sync, compared with the reference.
        state: the state after the sync: `identical` and `copied` are verified by hash.
        detail: the differences before the sync.
        needed_bytes, free_bytes: the disk space needed and free.
        resumable_bytes: partial data of an earlier copy.
        source, route: the source node and the route.
        sent_bytes, seconds: the bytes that were missing, and the total time.
        error, fix: why it failed or did not answer.
        kept: the hidden folder of an interrupted copy and the bytes in it, for the next sync to resume.
        notes: further notes, such as routes that failed.
    """

    node: str
    path: str | None
    before: State
    state: State | Literal["copied", "failed"]
    detail: str = ""
    needed_bytes: int = 0
    free_bytes: int | None = None
    resumable_bytes: int = 0
    source: str | None = None
    route: str | None = None
    sent_bytes: int = 0
    seconds: float | None = None
    error: str = ""
    fix: str = ""
    kept: Kept | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the model is complete and identical to the reference."""
        return self.state in ("identical", "copied")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self) | {"notes": list(self.notes)}


@dataclass(frozen=True)
class SyncReport:
    """The result of `sync`: the record, its parts, and its path if it was saved."""

    record: dict[str, Any]
    nodes: tuple[NodeSync, ...]
    fit: tuple[Finding, ...]
    path: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every node has a complete, identical copy."""
        return all(node.ok for node in self.nodes)


def kept_words(kept: Kept) -> str:
    """Return the sentence about the partial data of an interrupted copy."""
    return f"{kept.bytes / 1e9:.2f} GB are kept in {kept.folder}: the next sync resumes from there."


def rows(nodes: Sequence[NodeSync]) -> list[list[str]]:
    """Return one row of text per node, under COLUMNS."""
    return [
        [
            node.node,
            node.state,
            node.path or "-",
            f"from {node.source} {node.route}" if node.source else "-",
            f"{node.sent_bytes / 1e9:.2f}" if node.source else "-",
            f"{node.sent_bytes / 1e6 / node.seconds:.0f}" if node.source and node.seconds else "-",
            node.error or (node.detail if node.state != "copied" else "") or "-",
        ]
        for node in nodes
    ]
