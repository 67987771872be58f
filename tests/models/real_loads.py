"""What mlx_lm.utils.load_model does with folders, as JSON: a child of the tests, with mlx.

Stdin has {"shapes": {name: config}} for the names and shapes of the models of these configs, or
{"load": [folder, ...]} for the bytes of each model after loading, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    model_class, arguments = _get_classes(config)
    parameters = tree_flatten(model_class(arguments.from_dict(config)).parameters())
    return {name: list(value.shape) for name, value in parameters if isinstance(value, mx.array)}


def load(folder: str) -> int | str:
    try:
        model, _ = load_model(Path(folder), lazy=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    arrays = [value for _, value in tree_flatten(model.parameters()) if isinstance(value, mx.array)]
    return sum(int(array.nbytes) for array in arrays)


def main() -> None:
    question = json.load(sys.stdin)
    answers: dict[str, Any] = {name: shapes(config) for name, config in question.get("shapes", {}).items()}
    answers |= {folder: load(folder) for folder in question.get("load", ())}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
