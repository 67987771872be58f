"""Does a model fit and split over the ranks of a cluster, told before a byte of it moves? Pure rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.sharding import Split

_SMALL_MAC = (
    36 << 30
)  # bytes of memory up to which macOS lets the GPU wire two thirds, above it three quarters
_MIB = 1 << 20
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing about fit: `level` is "problem" (it will not run so) or "note"; `node` "" for all of them."""

    level: str
    node: str
    what: str
    fix: str = ""


def wired_limit(memory: int, wired_limit_mb: int | None) -> int:
    """Bytes that the GPU may use: what `iogpu.wired_limit_mb` says, else about what macOS allows itself."""
    if wired_limit_mb:
        return wired_limit_mb * _MIB
    return memory * 2 // 3 if memory <= _SMALL_MAC else memory * 3 // 4


def fit(model: ModelFacts, nodes: Sequence[NodeFacts]) -> tuple[Finding, ...]:
    """How the model's weights lie on these nodes, one rank each; empty when there is nothing to say.

    Args:
        model: what it is.
        nodes: in rank order.
    """
    ranks = len(nodes)
    tensor, pipeline = model.tensor_parallel(ranks), model.pipeline(ranks)
    findings = list(_splits(tensor, pipeline))
    split = tensor if tensor.ok else pipeline
    if split.ok:
        for node, held in zip(nodes, split.bytes_per_rank, strict=True):
            findings += _memory(node, held)
    return tuple(findings)


def _splits(tensor: Split, pipeline: Split) -> list[Finding]:
    if tensor.ok:
        return []
    why = f"does not split over {tensor.ranks} ranks by tensor parallelism: {'; '.join(tensor.reasons)}"
    if pipeline.ok:
        return [Finding("note", "", why, "Run it as a pipeline: --sharding pipeline.")]
    what = f"{why}; nor as a pipeline: {'; '.join(pipeline.reasons)}"
    return [
        Finding(
            "problem", "", what, "`jaccl model` tells over how many ranks it splits: use so many of them."
        )
    ]


def _memory(node: NodeFacts, held: int) -> list[Finding]:
    if node.memory is None:
        return [Finding("note", node.name, "its memory was not told: whether the model fits is not tested")]
    limit = wired_limit(node.memory, node.wired_limit_mb)
    if held <= limit:
        return []
    told = f"its rank would hold {held / _GB:.1f} GB of weights"
    if held <= node.memory:
        raised = min(held * 11 // 10, node.memory) // _MIB
        fix = f"If nothing else needs that memory: sudo sysctl iogpu.wired_limit_mb={raised} (until reboot)."
        return [Finding("problem", node.name, f"{told}, and its GPU may use {limit / _GB:.1f} GB", fix)]
    fix = "Use more Macs, or a smaller or more tightly quantized model."
    return [Finding("problem", node.name, f"{told}, and it has {node.memory / _GB:.1f} GB of memory", fix)]
