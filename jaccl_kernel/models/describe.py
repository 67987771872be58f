"""Formats a model's facts as text for a terminal and as JSON."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.sharding import MAX_RANKS, Split


def to_json(facts: ModelFacts) -> dict[str, Any]:
    """All facts as JSON, with the size in memory and the splits over 1 to 8 ranks."""

    def split_json(split: Split) -> dict[str, Any]:
        return {
            "ranks": split.ranks,
            "ok": split.ok,
            "reasons": list(split.reasons),
            "bytes_per_rank": list(split.bytes_per_rank),
            "unknown": split.unknown,
        }

    omitted = {"path", "loaded", "config", "quantization", "shards"}
    counts = range(1, MAX_RANKS + 1)
    return {
        "path": str(facts.path),
        **{name: value for name, value in vars(facts).items() if name not in omitted},
        "loaded_bytes": facts.loaded.nbytes,
        "unknown": facts.loaded.unknown,
        "quantization": vars(facts.quantization) if facts.quantization else None,
        "shards": list(facts.shards),
        "tensor_parallel": [split_json(facts.tensor_parallel(n)) for n in counts],
        "pipeline": [split_json(facts.pipeline(n)) for n in counts],
    }


def describe(facts: ModelFacts) -> str:
    """The facts as text for a terminal."""
    packed = facts.quantization
    how = f"{packed.bits}-bit in groups of {packed.group_size} ({packed.mode})" if packed else facts.dtype
    lines = [
        f"{facts.path.name}: {facts.architecture}, {_count(facts.parameters)} parameters, {how}",
        f"  folder     {facts.path}",
        (
            f"  weights    {_size(facts.bytes)} in {len(facts.shards)} file(s), "
            f"{_size(facts.loaded.nbytes)} in memory"
        ),
        f"  layers     {facts.layers}, hidden {facts.hidden}, intermediate {facts.intermediate}",
        f"  heads      {facts.heads} query, {facts.kv_heads} key-value, size {facts.head_dim}",
    ]
    if facts.experts:
        lines.append(
            f"  experts    {facts.experts}, {facts.experts_per_token} per token, "
            f"size {facts.moe_intermediate}"
        )
    lines += [
        f"  vocabulary {facts.vocab}, {'tied' if facts.tied else 'separate'} output head",
        f"  context    {facts.context or 'unknown'}",
        f"  digest     {facts.digest}",
        "",
    ]
    if facts.problem:
        return "\n".join([*lines, f"  cannot run: {facts.problem}", f"  Fix: {facts.fix}"])
    lines += ["  tensor parallel, by ranks", *_splits(facts.tensor_parallel)]
    lines += ["  pipeline, by ranks", *_splits(facts.pipeline)]
    return "\n".join(lines)


def _splits(split_for: Callable[[int], Split]) -> list[str]:
    """One line for each number of ranks, or for consecutive numbers with the same result."""
    lines = []
    splits = [split_for(ranks) for ranks in range(1, MAX_RANKS + 1)]
    for _, run in groupby(splits, key=lambda split: split.unknown or split.reasons or split.ranks):
        same = list(run)
        ranks = f"{same[0].ranks}-{same[-1].ranks}" if len(same) > 1 else f"{same[0].ranks}"
        if same[0].ok:
            lines.append(f"    {ranks:<4} yes, {_size(max(same[0].bytes_per_rank))} each")
        elif same[0].unknown:
            lines.append(f"    {ranks:<4} not tested: {same[0].unknown}")
        else:
            first, *more = same[0].reasons
            lines += [f"    {ranks:<4} no: {first}", *(f"             {reason}" for reason in more)]
    return lines


def _count(number: int) -> str:
    for unit, suffix in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.1f} {suffix}"
    return str(number)


def _size(number: int) -> str:
    for unit, suffix in ((10**9, "GB"), (10**6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {suffix}"
    return f"{number} bytes"
