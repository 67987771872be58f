"""Whether a model splits over N ranks, and how many bytes of weights each rank has. Pure.

`loading.py` runs mlx-lm's own `shard()` and `pipeline()`; here each thing that they cannot split becomes a
reason in the result. Splits that mlx-lm accepts but computes incorrectly are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.models.loading import REFUSALS, Shard
from jaccl_kernel.models.shapes import Unsupported
from jaccl_kernel.models.weights import INDEX

if TYPE_CHECKING:
    from jaccl_kernel.models.facts import ModelFacts

MAX_RANKS = 8  # the maximum of a JACCL mesh

_QUERY, _KV = "query heads", "key-value heads"
_LABELS = {
    **dict.fromkeys(("n_kv_heads", "num_kv_heads", "num_key_value_heads"), _KV),
    **dict.fromkeys(("n_heads", "num_heads", "num_attention_heads"), _QUERY),
    "num_k_heads": "linear-attention key heads",
    "num_v_heads": "linear-attention value heads",
    "index_n_heads": "index heads",
    "o_groups": "output groups",
}
_COUNT = re.compile(r".*heads|o_groups")  # of what shard() divides; sizes are in the weights


@dataclass(frozen=True)
class Split:
    """Whether a model runs on a number of ranks, and the weights of each rank.

    Attributes:
        ranks: number of ranks.
        ok: whether the model runs and computes correctly.
        reasons: the failed rules; empty if ok.
        bytes_per_rank: bytes of weights of each rank, rank 0 first; empty unless ok.
        unknown: why it is not tested, or ""; then `ok` is false and `reasons` is empty.
    """

    ranks: int
    ok: bool
    reasons: tuple[str, ...]
    bytes_per_rank: tuple[int, ...]
    unknown: str = ""


def tensor_parallel(facts: "ModelFacts", ranks: int) -> Split:
    """Check whether each layer splits over `ranks` ranks; one rank is ok if mlx-lm can load the model.

    Raises:
        InputError: `ranks` is less than 1.
    """
    if early := _without_splitting(facts, ranks):
        return early
    if not facts.loaded.can_shard:
        return _refused(
            ranks, f"mlx-lm's {facts.architecture} has no shard(), so it does not support tensor parallelism"
        )
    shard = facts.loaded.shard(ranks)
    if shard.unknown:
        return _not_tested(facts, ranks, shard.unknown)
    reasons = [*_count_reasons(facts, shard, ranks), *_size_reasons(facts, shard, ranks)]
    if shard.error and not reasons:
        reasons.append(f"mlx-lm's shard() of {facts.architecture} raises: {shard.error}")
    return _refused(ranks, *reasons) if reasons else _accepted([shard.nbytes] * ranks)


def pipeline(facts: "ModelFacts", ranks: int) -> Split:
    """Check whether the layers can be distributed over `ranks` ranks; rank 0 has the last layers.

    Raises:
        InputError: `ranks` is less than 1.
    """
    if early := _without_splitting(facts, ranks):
        return early
    reasons = []
    if not facts.loaded.can_pipeline:
        reasons.append(f"mlx-lm's {facts.architecture} has no pipeline()")
    if not facts.indexed:
        reasons.append(f"{INDEX} is missing, which a pipeline needs even for a single weight file")
    sizes: tuple[int, ...] = ()
    try:
        sizes = facts.loaded.pipeline(ranks) if facts.loaded.can_pipeline else ()
    except Unsupported as error:
        return _not_tested(facts, ranks, str(error))
    except REFUSALS as error:
        few = f"the model has {facts.layers} layers, fewer than {ranks} ranks"
        other = f"mlx-lm's pipeline() of {facts.architecture} raises: {error}"
        reasons.append(few if ranks > facts.layers else other)
    return _refused(ranks, *reasons) if reasons else _accepted(list(sizes))


def _without_splitting(facts: "ModelFacts", ranks: int) -> Split | None:
    """The verdict where there is nothing to split: an unloadable model, one rank, or no `shard()` to run."""
    if ranks < 1:
        raise InputError(
            f"the number of ranks must be at least 1 (got {ranks})", fix=f"Use 1 to {MAX_RANKS}."
        )
    if facts.problem:
        return _refused(ranks, facts.problem)
    if facts.loaded.unknown:
        return _not_tested(facts, ranks, facts.loaded.unknown)
    return _accepted([facts.loaded.nbytes]) if ranks == 1 else None


def _accepted(sizes: list[int]) -> Split:
    return Split(len(sizes), ok=True, reasons=(), bytes_per_rank=tuple(sizes))


def _not_tested(facts: "ModelFacts", ranks: int, unknown: str) -> Split:
    why = f"this check cannot follow mlx-lm's {facts.architecture} ({unknown})"
    return Split(ranks, ok=False, reasons=(), bytes_per_rank=(), unknown=why)


def _refused(ranks: int, *reasons: str) -> Split:
    return Split(ranks, ok=False, reasons=reasons, bytes_per_rank=())


def _count_reasons(facts: "ModelFacts", shard: Shard, ranks: int) -> Iterator[str]:
    """Head counts that are not divisible: `shard()` divides them with //, which rounds down silently."""
    counts = {
        (_LABELS.get(name, name), whole, share)
        for name, whole, share in shard.counts
        if _COUNT.fullmatch(name)
    }
    for label, whole, share in sorted(counts, reverse=True):  # query heads before key-value heads
        if label == _KV and whole < ranks:
            if not share:
                yield f"the model has {whole} {label}, fewer than {ranks} ranks"
            elif ranks % whole:
                yield f"{whole} {label} cannot be repeated evenly over {ranks} ranks"
        elif share * ranks != whole:
            reason = f"{whole} {label} are not divisible by {ranks} ranks"
            if label == _QUERY and _is_silently_wrong(facts, shard, ranks):
                reason += ", but their rows are: mlx-lm would generate wrong text without an error"
            yield reason


def _is_silently_wrong(facts: "ModelFacts", shard: Shard, ranks: int) -> bool:
    """Whether heads that are split across ranks have matching shapes, so that mlx-lm raises no error.

    A rank reshapes rows / N to heads // N heads, which makes them longer; attention works if keys have the
    same length. (In latent attention, which has no key-value heads, the shapes do not match.)
    """

    def length(heads: int) -> int:
        mine, rows = heads // ranks, heads * facts.head_dim
        return rows // ranks // mine if mine and rows % (ranks * mine) == 0 else 0

    kv_heads_split = any(_LABELS.get(name) == _KV for name, _, _ in shard.counts)
    loud = shard.error or shard.uneven
    return not loud and kv_heads_split and 0 < length(facts.heads) == length(facts.kv_heads)


def _size_reasons(facts: "ModelFacts", shard: Shard, ranks: int) -> Iterator[str]:
    """Sizes that are not divisible, each reported once with all its modules, not once per layer."""
    where: dict[tuple[str, int, int, str], list[str]] = {}
    for uneven in sorted(shard.uneven, key=lambda uneven: (uneven.side, uneven.module)):
        module = ".".join([part for part in uneven.module.split(".") if not part.isdigit()][-2:])
        whole, group = uneven.size // ranks, uneven.group
        if uneven.size % ranks:
            why = f"are not divisible by {ranks} ranks"
        elif whole % group:
            why = f"give {whole} per rank, which is not a multiple of the group size {group}"
        else:
            why = f"cannot be split over {ranks} ranks: {uneven.error}"
        modules = where.setdefault((uneven.side, uneven.size, group, why), [])
        if module not in modules:
            modules.append(module)
    labels = {
        facts.vocab: " (vocab_size)",
        facts.hidden: " (hidden_size)",
        facts.intermediate: " (intermediate_size)",
        facts.moe_intermediate: " (moe_intermediate_size)",
    }
    for (side, size, _, why), modules in where.items():
        yield f"{size} {side}{labels.get(size, '')} of {', '.join(modules)} {why}"
