"""What mlx-lm can do with a model type, read from its source: what `shard()` cuts, whether it can pipeline.

The rules stand in each architecture's own `shard()` method, so that is what is read, as a syntax tree:
neither mlx nor mlx_lm is imported, and a new mlx-lm brings its new rules along. Checkpoints and sizes are
unknown here (see `sharding.py`).
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import ModelError

_MODULE_NAME = re.compile(r"[\w.-]+")  # "nemotron-nas" is a module of mlx-lm; a path is not
_ROWS, _COLUMNS = "all-to-sharded", "sharded-to-all"  # mlx.nn.layers.distributed's two ways of cutting
# Parameters, not modules: `gate.weight = gate.weight[start:end]` cuts one module, not every weight.
_PARAMETERS = frozenset({"weight", "bias", "scales", "biases"})


@dataclass(frozen=True)
class ShardRules:
    """What one architecture's `shard()` does over N ranks, by the names of modules and attributes.

    Attributes:
        rows: linear modules whose outputs are divided ("all-to-sharded": q_proj, up_proj …).
        columns: linear modules whose inputs are divided ("sharded-to-all": o_proj, down_proj …).
        slices: modules or parameters divided along their first axis (embed_q, sinks …).
        counts: attributes that are divided by N (n_heads …), with no check that N divides them.
        repeats_kv: key-value heads are repeated when there are fewer than ranks.
    """

    rows: frozenset[str]
    columns: frozenset[str]
    slices: frozenset[str]
    counts: frozenset[str]
    repeats_kv: bool


@dataclass(frozen=True)
class Architecture:
    """One architecture of the installed mlx-lm.

    Attributes:
        name: its module in `mlx_lm.models`.
        shard: what its `shard()` does; None when it has none, and so no tensor parallelism.
        pipeline: whether its `model.model` has a `pipeline()`, as mlx-lm's `sharded_load` asks.
    """

    name: str
    shard: ShardRules | None
    pipeline: bool


def architecture(model_type: str, architectures: tuple[str, ...] = ()) -> Architecture:
    """What the installed mlx-lm can do with a config's `model_type` (and `architectures`).

    Raises:
        ModelError: mlx-lm is not installed, or has no such architecture.
    """
    return _architecture(_mlx_lm(), model_type, architectures)


def _mlx_lm() -> Path:
    """The folder of the installed mlx_lm. Finding a top-level package does not import it."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("mlx-lm is not installed in this Python", fix="pip install mlx-lm")
    return Path(spec.submodule_search_locations[0])


@lru_cache(maxsize=64)
def _architecture(package: Path, model_type: str, architectures: tuple[str, ...]) -> Architecture:
    name = _module_name(package, model_type, architectures)
    source = _Source(package / "models")
    if not _MODULE_NAME.fullmatch(name) or source.find("Model", name) is None:
        near = get_close_matches(name, [file.stem for file in (package / "models").glob("*.py")], n=3)
        raise ModelError(
            f"the installed mlx-lm has no architecture {model_type!r}",
            fix=(f"It has {', '.join(near)}. " if near else "")
            + "A newer mlx-lm may know it: pip install -U mlx-lm",
        )
    methods = source.method_and_delegates(name, "Model", "shard")
    return Architecture(
        name=name,
        shard=_read_rules(methods) if methods else None,
        pipeline=_has_pipeline(source, name),
    )


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


@dataclass(frozen=True)
class _Class:
    """A class, and the module whose names its body uses."""

    module: str
    node: ast.ClassDef


class _Source:
    """Classes and methods of `mlx_lm.models`, followed through imports and base classes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees: dict[str, ast.Module | None] = {}

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            file = self._folder / f"{module}.py"
            self._trees[module] = _parse(file) if file.is_file() else None
        return self._trees[module]

    def find(self, name: str, module: str) -> _Class | None:
        """The class that `name` (`Model`, or `qwen3_5.Model`) means in `module`."""
        tree = self._tree(module)
        if tree is None:
            return None
        owner, _, attribute = name.rpartition(".")
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return _Class(module, node)
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                for alias in node.names:
                    here = alias.asname or alias.name
                    if node.module and here == name:
                        return self.find(alias.name, node.module)
                    if not node.module and owner and here == owner:
                        return self.find(attribute, alias.name)
        return None

    def named(self, expression: ast.expr, module: str) -> _Class | None:
        """The class that an expression names, if it names one."""
        if isinstance(expression, ast.Name | ast.Attribute):
            return self.find(ast.unparse(expression), module)
        return None

    def methods(self, owner: _Class, name: str) -> Iterator[tuple[_Class, ast.FunctionDef]]:
        """A method of a class, then those of its bases that it overrides, each with its own class."""
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                yield owner, node
        for base in owner.node.bases:
            if known := self.named(base, owner.module):
                yield from self.methods(known, name)

    def method_and_delegates(self, module: str, class_name: str, name: str) -> list[ast.FunctionDef]:
        """A method, then those of its name that it calls on other classes (`Other.shard(self, group)`)."""
        known = self.find(class_name, module)
        found = next(self.methods(known, name), None) if known else None
        if found is None:
            return []
        owner, function = found
        result = [function]
        for call in _calls(function):
            if isinstance(call.func, ast.Attribute) and call.func.attr == name:
                other = self.named(call.func.value, owner.module)
                if other:
                    result += self.method_and_delegates(other.module, other.node.name, name)
        return result

    def attribute(self, owner: _Class, name: str) -> _Class | None:
        """The class of what `self.<name>` holds: assigned in `__init__`, or returned by a property."""
        for maker, function in self.methods(owner, "__init__"):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Assign)
                    and ast.unparse(node.targets[0]) == f"self.{name}"
                    and isinstance(node.value, ast.Call)
                ):
                    return self.named(node.value.func, maker.module)
        for _, function in self.methods(owner, name):
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    return self._chain(owner, ast.unparse(node.value))
        return None

    def _chain(self, owner: _Class, path: str) -> _Class | None:
        """The class at the end of `self.language_model.model`."""
        first, *names = path.split(".")
        here: _Class | None = owner if first == "self" else None
        for name in names:
            here = self.attribute(here, name) if here else None
        return here


def _has_pipeline(source: _Source, module: str) -> bool:
    model = source.find("Model", module)
    inner = source.attribute(model, "model") if model else None
    return inner is not None and next(source.methods(inner, "pipeline"), None) is not None


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _read_rules(methods: list[ast.FunctionDef]) -> ShardRules:
    """What `shard()` says of each name that it cuts.

    It comes in few forms: `x.q_proj = shard_linear(x.q_proj, "all-to-sharded", …)` and `shard_inplace` alike;
    `x.embed_q.apply(f)` and `x.sinks = x.sinks[a:b]` for first axes; `x.n_heads //= N` for counts.
    """
    rows: set[str] = set()
    columns: set[str] = set()
    slices: set[str] = set()
    counts: set[str] = set()
    repeats = False
    for node in (node for method in methods for node in ast.walk(method)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=name), attr="apply")):
                slices.add(name)
            case ast.Call(func=ast.Name(id=called), args=[ast.Attribute(attr=name), *_]) if called.startswith(
                "shard"
            ):
                words = {value.value for value in ast.walk(node) if isinstance(value, ast.Constant)}
                (rows if _ROWS in words else columns if _COLUMNS in words else slices).add(name)
            case ast.Call(func=ast.Attribute(attr="repeat")):
                repeats = True
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=value) if _mentions(value, name):
                slices.add(name)
            case (
                ast.AugAssign(target=ast.Attribute(attr=name), op=ast.FloorDiv())
                | ast.BinOp(left=ast.Attribute(attr=name), op=ast.FloorDiv())
            ):
                counts.add(name)
    return ShardRules(
        rows=frozenset(rows),
        columns=frozenset(columns),
        slices=frozenset(slices - rows - columns - counts - _PARAMETERS),
        counts=frozenset(counts),
        repeats_kv=repeats,
    )


def _mentions(expression: ast.expr, attribute: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == attribute for node in ast.walk(expression))
