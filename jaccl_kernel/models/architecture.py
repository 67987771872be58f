"""Finds the architecture of the installed mlx-lm for a model, without importing mlx or mlx_lm."""

import ast
import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.sources import mlx_lm

_MODULE_NAME = re.compile(r"[\w.-]+")  # "nemotron-nas" is a module of mlx-lm; a path is not


def architecture(model_type: str, architectures: tuple[str, ...] = ()) -> str:
    """The module in `mlx_lm.models` for a config's `model_type` (and `architectures`).

    Raises:
        ModelError: mlx-lm is not installed, or has no such architecture.
    """
    return _architecture(mlx_lm(), model_type, architectures)


@lru_cache(maxsize=64)
def _architecture(package: Path, model_type: str, architectures: tuple[str, ...]) -> str:
    name = _module_name(package, model_type, architectures)
    file = package / "models" / f"{name}.py"
    if not _MODULE_NAME.fullmatch(name) or not file.is_file() or not _has_model(file):
        near = get_close_matches(name, [file.stem for file in (package / "models").glob("*.py")], n=3)
        raise ModelError(
            f"the installed mlx-lm does not support the architecture {model_type!r}",
            fix=(f"Similar names: {', '.join(near)}. " if near else "")
            + "A newer mlx-lm may support it: pip install -U mlx-lm, on every node",
        )
    return name


def _has_model(file: Path) -> bool:
    """Whether a module defines or imports `Model`."""
    body = _parse(file).body
    names = [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    return "Model" in (*names, *classes)


def _module_name(package: Path, model_type: str, architectures: tuple[str, ...]) -> str:
    """mlx-lm's module for a model type, as `mlx_lm.utils._get_classes` maps it."""
    tables: dict[str, Any] = {}
    for node in _parse(package / "utils.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING"):
                tables[name] = ast.literal_eval(node.value)
    for each in architectures:
        if found := tables.get("MODEL_ARCHITECTURE_REMAPPING", {}).get((model_type, each)):
            return str(found)
    return str(tables.get("MODEL_REMAPPING", {}).get(model_type, model_type))


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), filename=str(file))
