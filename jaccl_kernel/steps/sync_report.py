"""What a sync returns: how it stands on each node, as data and as rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaccl_kernel.steps.fit import Finding
from jaccl_kernel.steps.locate import State

SCHEMA = 1

COLUMNS = ("node", "model", "folder", "how", "GB", "MB/s", "detail")


@dataclass(frozen=True)
class NodeSync:
    """One node's part.

    Attributes:
        node: its name.
        path: the model's folder there; None if the node could not be asked.
        before: how its folder stood to the copy that counts.
        state: how it stands now: `identical` and `copied` are proven by hash.
        detail: what differed before.
        needed_bytes, free_bytes: what its disk still had to take, and had room for.
        resumable_bytes: what an earlier, unfinished copy had left there.
        source, route: where the model came from, and by which way.
        sent_bytes, seconds: what was not there before, and how long everything took.
        error, fix: why it failed, or could not be asked.
        kept: the hidden folder and the bytes in it that the next sync goes on from, if it failed half-way.
        notes: what else is worth knowing: ways that were tried in vain and why.
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
    kept: dict[str, object] | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the model is there, whole, and the same as everywhere."""
        return self.state in ("identical", "copied")

    def to_json(self) -> dict[str, Any]:
        """Its fields, as JSON takes them."""
        return asdict(self) | {"notes": list(self.notes)}


@dataclass(frozen=True)
class SyncReport:
    """What `steps.sync` returns: the record, its parts, and the file that it was saved as, if it was."""

    record: dict[str, Any]
    nodes: tuple[NodeSync, ...]
    fit: tuple[Finding, ...]
    path: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every node has the model, whole and identical."""
        return all(node.ok for node in self.nodes)


def kept_words(kept: Mapping[str, Any]) -> str:
    """What a copy that failed or was stopped leaves, as a sentence."""
    return f"{kept['bytes'] / 1e9:.2f} GB are kept in {kept['folder']}: the next sync goes on from there."


def rows(nodes: Sequence[NodeSync]) -> list[list[str]]:
    """One row of text per node, under COLUMNS."""
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
