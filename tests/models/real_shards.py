"""What mlx-lm itself does with a model over N ranks, as JSON: the child of test_sharding.py, with mlx.

For each config on stdin it builds a random model, saves it, and for each rank count lets `shard()` and
`pipeline()` work for each rank in turn, with a group that only has a size and a rank. Sums over ranks are
left out: shapes and bytes are what is asked.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

RANKS = (2, 3, 4, 8)


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
        nn.quantize(model, packed["group_size"], packed["bits"])
    return model


def weight_bytes(model: Any) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()) if isinstance(value, mx.array))


def over(config: dict[str, Any], ranks: int) -> list[int] | None:
    """Bytes of the first and the last rank after shard(), or None if it, or a forward pass then, raises."""
    sizes = []
    for rank in (0, ranks - 1):
        model = build(config)
        try:
            model.shard(Group(rank, ranks))
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


def main() -> None:
    mx.distributed.all_sum = lambda x, group: x
    mx.distributed.all_gather = lambda x, group: mx.concatenate([x] * group.size())
    answers = {}
    for name, (folder, config) in json.load(sys.stdin).items():
        folder = Path(folder)
        folder.mkdir()
        weights = dict(tree_flatten(build(config).parameters()))
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(config))
        has_shard = hasattr(build(config), "shard")
        answers[name] = {
            "tensor": {n: over(config, n) if has_shard else None for n in RANKS},
            "pipeline": {n: piped(config, n) for n in RANKS},
        }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
