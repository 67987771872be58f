"""The progress of a sync, beyond stages and lines. These events never cross a process."""

from dataclasses import dataclass

from jaccl_kernel.core.events import Body
from jaccl_kernel.steps.fit import Finding
from jaccl_kernel.steps.sync.report import Kept, NodeSync


@dataclass(frozen=True)
class NodesFound(Body):
    """The state of the model on each node, before anything is copied."""

    nodes: tuple[NodeSync, ...]


@dataclass(frozen=True)
class FitChecked(Body):
    """Whether the model fits and splits over the nodes, before anything is copied."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class NodeFinished(Body):
    """The final state of the model on one node."""

    node: NodeSync


@dataclass(frozen=True)
class HashProgress(Body):
    """Hashed bytes of a node's folder; `stage` is "look" (before the copy) or "verify" (after it)."""

    node: str
    stage: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class CopyProgress(Body):
    """Copied bytes of one node; rate in bytes/s and remaining seconds, None while unknown."""

    node: str
    route: str
    done_bytes: int
    total_bytes: int
    rate: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class CopyKept(Body):
    """The part of an unfinished copy that remains on a node."""

    node: str
    kept: Kept
