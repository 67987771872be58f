"""What mlx-lm itself does with a model over N ranks, as JSON: the child of test_sharding.py, with mlx.

For each config on stdin it builds a random model, saves it, loads it, and for each rank count lets `shard()`
and `pipeline()` work for each rank in turn, with a group that only has a size and a rank. Sums over ranks are
left out: shapes and bytes are what is asked.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.bitlinear_layers import BitLinear
from mlx_lm.utils import _get_classes, load_model

NO_CPU = {"bitnet", "muse_spark"}  # they need a Metal kernel to generate


class Group:
    """A place in a group, with nobody else there."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def build(config: dict[str, Any]) -> Any:
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if packed := config.get("quantization"):
        group = packed["group_size"]
        nn.quantize(model, group, packed["bits"], class_predicate=lambda _, module: can_pack(module, group))
    return model


def can_pack(module: Any, group: int) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % group == 0


def weight_bytes(model: Any) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()) if isinstance(value, mx.array))


def over(config: dict[str, Any], ranks: int) -> list[int] | None:
    """Bytes of the first and the last rank after shard(), or None if it, or a forward pass then, raises."""
    sizes = []
    for rank in (0, ranks - 1):
        model = build(config)
        try:
            model.shard(Group(rank, ranks))
            if config["model_type"] not in NO_CPU:
                mx.eval(model(mx.array([[1, 2, 3]])))
        except (ValueError, AssertionError, ZeroDivisionError, IndexError, RuntimeError) as error:
            print(ranks, type(error).__name__, error, file=sys.stderr)
            return None
        sizes.append(weight_bytes(model))
    return sizes


def piped(config: dict[str, Any], ranks: int) -> list[int] | None:
    model = build(config)
    if not hasattr(getattr(model, "model", None), "pipeline"):
        return None
    sizes = []
    for rank in range(ranks):
        model = build(config)
        try:
            model.model.pipeline(Group(rank, ranks))
        except ValueError:
            return None
        sizes.append(weight_bytes(model))
    return sizes


def values(config: dict[str, Any]) -> int:
    """The number of weights of a model, before they are packed."""
    plain = build({**config, "quantization": None})
    ternary = [module.weight.size for module in plain.modules() if isinstance(module, BitLinear)]
    arrays = [value for _, value in tree_flatten(plain.parameters()) if isinstance(value, mx.array)]
    total: int = sum(array.size for array in arrays) + 3 * sum(ternary)  # packed from the start, by four
    return total


def answer(folder: Path, config: dict[str, Any], ranks: list[int]) -> dict[str, Any]:
    folder.mkdir()
    weights = dict(tree_flatten(build(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    has_shard = hasattr(build(config), "shard")
    return {
        "loaded": weight_bytes(load_model(folder, lazy=True)[0]),
        "values": values(config),
        "tensor": {n: over(config, n) if has_shard else None for n in ranks},
        "pipeline": {n: piped(config, n) for n in ranks},
    }


def main() -> None:
    mx.distributed.all_sum = lambda x, group: x
    mx.distributed.all_gather = lambda x, group: mx.concatenate([x] * group.size())
    answers = {}
    for name, (folder, config, ranks) in json.load(sys.stdin).items():
        try:
            answers[name] = answer(Path(folder), config, ranks)
        except (ImportError, SystemExit) as error:  # some want packages that are not ours
            print(name, error, file=sys.stderr)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
