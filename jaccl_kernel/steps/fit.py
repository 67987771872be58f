"""Whether a model fits and splits over the ranks of a cluster, before any transfer. Pure rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.sharding import Split
from jaccl_kernel.topology.facts import NodeFacts

_SMALL_MAC = 36 << 30  # up to this much memory macOS lets the GPU wire two thirds of it, above three quarters
_MIB = 1 << 20
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One result: `level` is "problem" (the model cannot run) or "note"; `node` is "" for all nodes."""

    level: str
    node: str
    what: str
    fix: str = ""


def wired_limit(memory: int, wired_limit_mb: int | None) -> int:
    """Return the bytes that the GPU may use: `iogpu.wired_limit_mb`, or else roughly macOS's default."""
    if wired_limit_mb:
        return wired_limit_mb * _MIB
    return memory * 2 // 3 if memory <= _SMALL_MAC else memory * 3 // 4


def fit(model: ModelFacts, nodes: Sequence[NodeFacts]) -> tuple[Finding, ...]:
    """Check the model's weights against these nodes, one rank each. Returns () if there is no finding.

    Args:
        model: facts of the model.
        nodes: in rank order.
    """
    if model.problem:
        return (Finding("problem", "", model.problem, model.fix),)
    ranks = len(nodes)
    tensor, pipeline = model.tensor_parallel(ranks), model.pipeline(ranks)
    findings = list(_splits(tensor, pipeline))
    split = tensor if tensor.ok else pipeline
    if split.ok:
        for node, weights in zip(nodes, split.bytes_per_rank, strict=True):
            findings += _memory(node, weights)
    return tuple(findings)


def _splits(tensor: Split, pipeline: Split) -> list[Finding]:
    if tensor.ok:
        return []
    if tensor.unknown:
        return [Finding("note", "", f"whether the model splits is not tested: {tensor.unknown}")]
    why = f"cannot split over {tensor.ranks} ranks by tensor parallelism: {'; '.join(tensor.reasons)}"
    if pipeline.ok:
        return [Finding("note", "", why, "Use pipeline parallelism: --sharding pipeline.")]
    what = f"{why}; pipeline parallelism is not possible either: {'; '.join(pipeline.reasons)}"
    fix = "Run `jaccl model` to list the supported numbers of ranks, and use one of them."
    return [Finding("problem", "", what, fix)]


def _memory(node: NodeFacts, weights: int) -> list[Finding]:
    if node.memory is None:
        return [Finding("note", node.name, "memory size unknown: whether the model fits is not tested")]
    limit = wired_limit(node.memory, node.wired_limit_mb)
    if weights <= limit:
        return []
    needed = f"its rank needs {weights / _GB:.1f} GB for weights"
    if weights <= node.memory:
        raised = min(weights * 11 // 10, node.memory) // _MIB
        fix = f"If nothing else needs that memory: sudo sysctl iogpu.wired_limit_mb={raised} (until reboot)."
        return [Finding("problem", node.name, f"{needed}, but its GPU may use {limit / _GB:.1f} GB", fix)]
    fix = "Use more Macs, or a smaller or more tightly quantized model."
    return [Finding("problem", node.name, f"{needed}, but it has {node.memory / _GB:.1f} GB of memory", fix)]
