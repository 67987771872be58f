"""Does a model split over N ranks, and how many bytes does each then hold? Pure rules, no I/O.

Tensor parallel: `architecture.py` tells which modules mlx-lm cuts and how, the tensors tell their sizes,
and each rule that fails is told in words. Pipeline: whole layers per rank. What mlx-lm would get wrong in
silence is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaccl_kernel.errors import InputError
from jaccl_kernel.models.architecture import ShardRules
from jaccl_kernel.models.weights import INDEX, Tensor, scales_of

if TYPE_CHECKING:
    from jaccl_kernel.models.facts import ModelFacts

MAX_RANKS = 8  # the most that a JACCL mesh joins

_HEADS = frozenset({"n_heads", "num_heads", "num_attention_heads"})
_KV_HEADS = frozenset({"n_kv_heads", "num_kv_heads", "num_key_value_heads"})
# Other counts that some shard() divides: attribute -> (config key, words).
_OTHER_COUNTS = {
    "num_k_heads": ("linear_num_key_heads", "linear-attention key heads"),
    "num_v_heads": ("linear_num_value_heads", "linear-attention value heads"),
    "index_n_heads": ("sparse_attention_config.sparse_num_index_heads", "index heads"),
    "o_groups": ("o_groups", "output groups"),
}
# Layers with head counts of their own, which shard() divides through the same attribute as the common ones.
_OTHER_HEADS = (
    ("linear_attn_config.num_heads", "linear-attention heads"),
    ("attention_other_setting.num_attention_heads", "query heads of the other layers"),
    ("attention_other_setting.num_attention_groups", "key-value heads of the other layers"),
)
# Tensors of published checkpoints that mlx-lm merges or splits on loading: they are cut as what they become.
_BECOMES = {
    "gate_up_proj": "gate_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "kv_b_proj": "embed_q",
}
_PUBLISHED = re.compile(r"(.+_proj)(?:_blocks|_scales|_bias)?")  # gpt-oss: experts.down_proj_blocks
_BLOCK = 32  # numbers in a block of gpt-oss's packed experts
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Split:
    """Whether a model runs over so many ranks, and what each holds.

    Attributes:
        ranks: how many.
        ok: whether it runs, and rightly.
        reasons: each rule that fails, in words; empty if ok.
        bytes_per_rank: bytes of weights that each rank holds, rank 0 first; empty unless ok.
    """

    ranks: int
    ok: bool
    reasons: tuple[str, ...]
    bytes_per_rank: tuple[int, ...]


def tensor_parallel(facts: "ModelFacts", ranks: int) -> Split:
    """Can each layer be cut over `ranks` ranks? One rank always can: nothing is cut.

    Raises:
        InputError: `ranks` is less than 1.
    """
    _check(ranks)
    rules = facts.support.shard
    if ranks == 1:
        return _accepted([sum(tensor.nbytes for tensor in facts.tensors)])
    if rules is None:
        return _refused(
            ranks, f"mlx-lm's {facts.architecture} has no shard(): it knows no tensor parallelism"
        )
    if not rules.counts & _HEADS:
        return _refused(ranks, f"mlx-lm's shard() of {facts.architecture} cannot be read by this check")
    cuts = _cuts(facts, rules, ranks)
    loud = list(_size_reasons(facts, cuts, ranks))  # these raise in mlx-lm, wrong counts of heads may not
    reasons = [*_count_reasons(facts, rules, ranks, silent=not loud), *loud]
    if reasons:
        return _refused(ranks, *reasons)
    return _accepted([sum(cut.tensor.nbytes // cut.ways for cut in cuts)] * ranks)


def pipeline(facts: "ModelFacts", ranks: int) -> Split:
    """Can the layers be dealt out over `ranks` ranks? Rank 0 gets the last ones, low ranks the odd ones.

    Raises:
        InputError: `ranks` is less than 1.
    """
    _check(ranks)
    reasons = []
    if not facts.support.pipeline:
        reasons.append(f"mlx-lm's {facts.architecture} has no pipeline()")
    if not facts.indexed:
        reasons.append(f"there is no {INDEX}, which a pipeline needs even when the weights are one file")
    if ranks > facts.layers:
        reasons.append(f"{facts.layers} layers are fewer than {ranks} ranks")
    if ranks > 1 and reasons:
        return _refused(ranks, *reasons)
    of_layer = [0] * facts.layers
    common = 0  # embeddings, last norm and head: each rank holds them
    for tensor in facts.tensors:
        layer = layer_of(tensor)
        if layer is None:
            common += tensor.nbytes
        else:
            of_layer[layer] += tensor.nbytes
    base, extra = divmod(facts.layers, ranks)
    sizes, end = [], facts.layers
    for rank in range(ranks):
        start = end - base - (1 if rank < extra else 0)
        sizes.append(common + sum(of_layer[start:end]))
        end = start
    return _accepted(sizes)


def layer_of(tensor: Tensor) -> int | None:
    """The layer that a tensor belongs to, counted from 0; None for embeddings, last norm and head."""
    found = _LAYER.search(tensor.name)
    return int(found[1]) if found else None


def _check(ranks: int) -> None:
    if ranks < 1:
        raise InputError(f"{ranks} ranks make no sense", fix=f"Ask for 1 to {MAX_RANKS}.")


def _accepted(sizes: list[int]) -> Split:
    return Split(len(sizes), ok=True, reasons=(), bytes_per_rank=tuple(sizes))


def _refused(ranks: int, *reasons: str) -> Split:
    return Split(ranks, ok=False, reasons=reasons, bytes_per_rank=())


def _count_reasons(facts: "ModelFacts", rules: ShardRules, ranks: int, *, silent: bool) -> Iterator[str]:
    """Head counts: `shard()` divides them with //, which rounds down without a word."""
    if facts.heads % ranks:
        reason = f"{facts.heads} query heads do not divide by {ranks} ranks"
        if silent and _heads_fit_wrongly(facts, rules, ranks):
            reason += ", but their rows do: mlx-lm would run, and give wrong text without any error"
        yield reason
    if rules.counts & _KV_HEADS:
        yield from _kv_reasons(facts.kv_heads, ranks, repeated=rules.repeats_kv)
    others = [_OTHER_COUNTS[name] for name in sorted(rules.counts) if name in _OTHER_COUNTS]
    for key, words in [*others, *_OTHER_HEADS]:
        count = facts.setting(key)
        if isinstance(count, int) and count % ranks:
            yield f"{count} {words} do not divide by {ranks} ranks"


def _heads_fit_wrongly(facts: "ModelFacts", rules: ShardRules, ranks: int) -> bool:
    """Whether heads that are cut into pieces still fit together, so that nothing raises.

    A rank takes rows / N as heads // N heads, which makes them longer; attention goes on if keys come out as
    long. (In latent attention, which has no key-value heads, the parts of a longer head do not fit.)
    """

    def length(heads: int) -> int:
        mine, rows = heads // ranks, heads * facts.head_dim
        return rows // ranks // mine if mine and rows % (ranks * mine) == 0 else 0

    return bool(rules.counts & _KV_HEADS) and 0 < length(facts.heads) == length(facts.kv_heads)


def _kv_reasons(kv_heads: int, ranks: int, *, repeated: bool) -> Iterator[str]:
    if kv_heads >= ranks and kv_heads % ranks:
        yield f"{kv_heads} key-value heads do not divide by {ranks} ranks"
    if kv_heads < ranks and not repeated:
        yield f"{kv_heads} key-value heads are fewer than {ranks} ranks: some would get none"
    if kv_heads < ranks and repeated and ranks % kv_heads:
        yield f"{kv_heads} key-value heads cannot be repeated evenly over {ranks} ranks"


@dataclass(frozen=True)
class _Cut:
    """How `shard()` cuts one tensor.

    `ways`: into how many different parts, 1 if each rank holds it whole. `side`: "inputs", "outputs", or ""
    for what goes with another tensor (biases, scales). `size`: how many of them, unpacked; `group`: how
    many must stay together.
    """

    tensor: Tensor
    ways: int
    side: str = ""
    size: int = 0
    group: int = 1


def _cuts(facts: "ModelFacts", rules: ShardRules, ranks: int) -> list[_Cut]:
    """What becomes of each tensor, as mlx.nn.layers.distributed does it.

    Columns are a weight's last axis, rows the last but one (experts come before). Of biases, those of rows
    are cut, those of columns stay whole.
    """
    scales = scales_of(facts.tensors)
    return [_cut(facts, rules, tensor, scales.get(tensor.module), ranks) for tensor in facts.tensors]


def _cut(facts: "ModelFacts", rules: ShardRules, tensor: Tensor, scales: Tensor | None, ranks: int) -> _Cut:
    name = _known_name(rules, tensor)
    is_bias = tensor.parameter == "bias" or tensor.parameter.endswith("_bias")
    if not name or (name in rules.columns and is_bias):
        return _Cut(tensor, ways=1)
    repeated = rules.repeats_kv and name in ("k_proj", "v_proj")
    ways = min(ranks, facts.kv_heads) if repeated else ranks
    inputs = name in rules.columns
    match tensor:
        case Tensor(shape=[first, *_]) if name in rules.slices:
            return _Cut(tensor, ways, "outputs", first)
        case Tensor(parameter="weight", shape=[*_, rows, _]) if not inputs:
            return _Cut(tensor, ways, "outputs", rows)
        case Tensor(parameter="weight", shape=[*_, columns]) if scales is None:
            return _Cut(tensor, ways, "inputs", columns)
        case Tensor(parameter="weight") if scales is not None:
            group = facts.group_size(tensor.module)
            return _Cut(tensor, ways, "inputs", scales.shape[-1] * group, group)
        case Tensor(shape=[_, _, blocks, _]) if inputs and tensor.parameter.endswith("_blocks"):
            return _Cut(tensor, ways, "inputs", blocks * _BLOCK, _BLOCK)
    return _Cut(tensor, ways)


def _known_name(rules: ShardRules, tensor: Tensor) -> str:
    """The name under which the rules know a tensor, "" if they don't."""
    module, parameter = tensor.module.rpartition(".")[2], tensor.parameter
    published = found[1] if (found := _PUBLISHED.fullmatch(parameter)) else parameter
    known = rules.rows | rules.columns | rules.slices
    names = (module, parameter, published, _BECOMES.get(module, ""), _BECOMES.get(published, ""))
    return next((name for name in names if name in known), "")


def _size_reasons(facts: "ModelFacts", cuts: list[_Cut], ranks: int) -> Iterator[str]:
    """Sizes that do not divide, each told once with all the modules that have it, not once a layer."""
    where: dict[tuple[str, int, int, int], list[str]] = {}
    for cut in cuts:
        if cut.side and (cut.size % cut.ways or cut.size // cut.ways % cut.group):
            module = ".".join([part for part in cut.tensor.name.split(".")[:-1] if not part.isdigit()][-2:])
            modules = where.setdefault((cut.side, cut.size, cut.ways, cut.group), [])
            if module not in modules:
                modules.append(module)
    words = {
        facts.vocab: " (vocab_size)",
        facts.hidden: " (hidden_size)",
        facts.intermediate: " (intermediate_size)",
        facts.moe_intermediate: " (moe_intermediate_size)",
    }
    for (side, size, ways, group), modules in where.items():
        what = f"{size} {side}{words.get(size, '')} of {', '.join(modules)}"
        if size % ways:
            yield f"{what} do not divide by {ranks} ranks"
        else:
            yield f"{what} make {size // ways} a rank, no multiple of the group size {group}"
