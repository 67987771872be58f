"""What the package declares against what it imports: two layers of dependencies, bounds, one version."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaccl_kernel
from jaccl_kernel.core import layers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaccl_kernel"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

NEEDS_WORKBENCH = ("notebook/", "report/figures.py", "report/sweep_figures.py")
"""The modules that only a machine with the workbench layer imports; a node imports any other."""

NOT_IMPORTED = {
    "httptools": "uvicorn chooses it when it is there",
    "transformers": "mlx-lm's, pinned to the same version on every node",
    "jupyterlab": "a program: `jaccl lab` runs it",
}
PRIVATE = {
    "mlx": "tests/launch/test_launcher_contract.py",
    "mlx-lm": "tests/inference/test_batch_contract.py",
    "ipyparallel": "tests/launch/test_ipyparallel_contract.py",
}
"""Distributions whose internals we use, and the contract test that a new version has to pass."""


def declared(layer: str) -> dict[str, list[Requirement]]:
    """A layer's requirements by distribution: several where they differ by platform."""
    texts = PROJECT["dependencies"] if layer == "base" else PROJECT["optional-dependencies"][layer]
    found: dict[str, list[Requirement]] = {}
    for one in map(Requirement, texts):
        found.setdefault(canonicalize_name(one.name), []).append(one)
    return found


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def needs_workbench(module: str) -> bool:
    return module.startswith(NEEDS_WORKBENCH)


def imported(module: str, *, at_once: bool = False) -> Iterator[str]:
    """The dotted names that a module imports: all of them, or those `at_once`, when it is imported itself."""
    todo: list[ast.AST] = [ast.parse((PACKAGE / module).read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        todo += ast.iter_child_nodes(node)


@cache
def distributions() -> dict[str, set[str]]:
    """Who provides each top-level module here."""
    found = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


@cache
def others(module: str) -> set[str]:
    """The top-level modules of other distributions that a module imports, at whatever moment."""
    tops = {name.split(".")[0] for name in imported(module)}
    return tops - sys.stdlib_module_names - {"jaccl_kernel"}


@pytest.mark.parametrize("module", modules())
def test_every_import_is_declared_in_the_layer_that_the_module_is_of(module: str) -> None:
    known = set(declared("base"))
    if needs_workbench(module):
        known |= set(declared("workbench"))
    undeclared = {top for top in others(module) if not distributions().get(top, set()) & known}
    assert undeclared == set()


@pytest.mark.parametrize("module", [name for name in modules() if not needs_workbench(name)])
def test_a_nodes_modules_import_nothing_of_the_workbench(module: str) -> None:
    names = {name.replace(".", "/") for name in imported(module, at_once=True)}
    own = {name.removeprefix("jaccl_kernel/") for name in names if name.startswith("jaccl_kernel/")}
    rooms = tuple(one.removesuffix(".py").rstrip("/") for one in NEEDS_WORKBENCH)
    assert {name for name in own for room in rooms if name == room or name.startswith(f"{room}/")} == set()


@pytest.mark.parametrize("layer", ["base", "workbench"])
def test_every_declared_dependency_is_used(layer: str) -> None:
    used = set().union(*(distributions().get(top, set()) for one in modules() for top in others(one)))
    assert set(declared(layer)) - used - set(NOT_IMPORTED) == set()


def test_the_lab_looks_for_the_whole_workbench_layer() -> None:
    found = set().union(*(distributions()[module] for module in layers.MODULES))
    assert found == set(declared("workbench"))


@pytest.mark.parametrize(("name", "contract"), PRIVATE.items())
def test_a_distribution_whose_internals_we_use_is_bounded_above_and_held_by_a_contract(
    name: str, contract: str
) -> None:
    for one in declared("base")[name]:
        assert any(bound.operator == "<" for bound in one.specifier), one
        assert one.specifier.contains(metadata.version(name))
    assert (ROOT / contract).exists()


def test_the_tests_have_both_layers() -> None:
    assert "jaccl-kernel[workbench]" in PROJECT["optional-dependencies"]["dev"]


def test_the_version_has_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert metadata.version("jaccl-kernel") == jaccl_kernel.__version__
    literal = re.compile(rf"""["']{re.escape(jaccl_kernel.__version__)}["']""")
    told = [name for name in modules() if literal.search((PACKAGE / name).read_text(encoding="utf-8"))]
    assert told == ["__init__.py"]
