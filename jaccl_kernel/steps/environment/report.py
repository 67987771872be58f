"""The report on the Python environments: the drift between nodes, and unsupported versions; pure.

Each node is compared with the first that answered, usually rank 0, and with the versions that this workbench
supports.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.steps.hostfile.propose import BROKEN_RING_MLX
from jaccl_kernel.topology.facts import PythonFacts, version_tuple

OLDEST_PYTHON = (3, 11)
MLX = ((0, 32, 3), (0, 33))
MLX_LM = ((0, 32, 2), (0, 33))
"""At least the first of these, and below the second: launcher and server support one minor version."""
OLDEST_TRANSFORMERS = (5,)

CREATE = "Create it: `jaccl environment … --create`, or name another interpreter with --python."
CREATE_AGAIN = "Create the same environment on all nodes: `jaccl environment … --create`."

SHARED_PATH = "/Users/Shared/jaccl-env"
"""Every Mac has /Users/Shared, whatever its user names."""

Proof = Literal["ok", "failed", "not tested"]


@dataclass(frozen=True)
class NodeEnvironment:
    """The Python of one node.

    Attributes:
        name: the node's name.
        error: why the node could not be inspected; None if it answered.
        python: the interpreter's absolute path and the package versions; None if there is no interpreter.
        finished: False while its creation is running, or after it was interrupted.
        proof: whether mlx, mlx-lm, transformers and the rank programs import there, and mlx computes.
        detail: why the proof failed or was not tested.
        code: a digest of this package's sources there: two copies can differ under one version number.
    """

    name: str
    error: str | None = None
    python: PythonFacts | None = None
    finished: bool = True
    proof: Proof = "not tested"
    detail: str = ""
    code: str | None = None


@dataclass(frozen=True)
class Cell:
    """One node's version: None if absent or unknown; `differs` from the reference."""

    value: str | None
    differs: bool


@dataclass(frozen=True)
class Row:
    """One package on all nodes, in rank order."""

    package: str
    cells: tuple[Cell, ...]

    @property
    def drifts(self) -> bool:
        """Whether any node differs."""
        return any(cell.differs for cell in self.cells)


@dataclass(frozen=True)
class EnvironmentReport:
    """The result of `environment.check`.

    Attributes:
        asked: the requested interpreter, as given.
        nodes: each node's environment, in rank order.
        rows: the drift table: a row for each package, a cell for each node.
        problems: each with its fix.
        rehearsal: whether the Macs are simulated and share this machine's Python.
    """

    asked: str
    nodes: tuple[NodeEnvironment, ...]
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    rehearsal: bool

    @property
    def ok(self) -> bool:
        """Whether jobs can run with it: it exists, is finished, works, and is the same everywhere."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def python(self) -> str | None:
        """The interpreter for a job's `--python`: absolute, the same on every node; None if they differ.

        In a rehearsal it is this machine's interpreter, of which each simulated Mac's is a link.
        """
        paths = {node.python.executable if node.python else None for node in self.nodes}
        if self.rehearsal and None not in paths:
            return sys.executable
        return next(iter(paths)) if len(paths) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "ok": self.ok,
            "rehearsal": self.rehearsal,
            "asked": self.asked,
            "python": self.python,
            "nodes": [asdict(node) for node in self.nodes],
            "drift": [
                {"package": row.package, "cells": [asdict(cell) for cell in row.cells]} for row in self.rows
            ],
            "problems": [problem.to_json() for problem in self.problems],
        }


def judge(
    asked: str, nodes: Sequence[NodeEnvironment], *, backend: str | None = None, rehearsal: bool = False
) -> EnvironmentReport:
    """Return the report on these environments; pure.

    Args:
        asked: the requested interpreter.
        nodes: each node's environment, in rank order.
        backend: the jobs' backend, if known.
        rehearsal: whether the Macs are simulated.
    """
    rows = tuple(_rows(nodes))
    problems = [problem for node in nodes for problem in _node_problems(asked, node, backend)]
    problems += _drift_problems(nodes, rows)
    problems += _path_problems(asked, nodes, rehearsal=rehearsal)
    return EnvironmentReport(asked, tuple(nodes), rows, tuple(problems), rehearsal)


def _reference(nodes: Sequence[NodeEnvironment]) -> int:
    """Return the node to compare the others with: the first that has a Python."""
    return next((rank for rank, node in enumerate(nodes) if node.python is not None), 0)


def _rows(nodes: Sequence[NodeEnvironment]) -> Iterator[Row]:
    versions = [_versions(node) for node in nodes]
    for package in _versions(NodeEnvironment("")):
        values = [version[package] for version in versions]
        reference = _compared(package, values[_reference(nodes)])
        # a node that did not answer is unknown, and does not differ
        cells = (
            Cell(value, node.error is None and _compared(package, value) != reference)
            for node, value in zip(nodes, values, strict=True)
        )
        yield Row(package, tuple(cells))


def _versions(node: NodeEnvironment) -> dict[str, str | None]:
    found = node.python or PythonFacts()
    return {
        "python": found.version,
        "mlx": found.mlx,
        "mlx-lm": found.mlx_lm,
        "transformers": found.transformers,
        "jaccl-kernel": found.jaccl_kernel,
        "jaccl-kernel's code": node.code,
    }


def _compared(package: str, value: str | None) -> object:
    """Return the part to compare: of Python only major and minor version."""
    if package == "python" and (version := version_tuple(value)):
        return version[:2]
    return value


def _node_problems(asked: str, node: NodeEnvironment, backend: str | None) -> Iterator[Problem]:
    """Yield the root cause of one node's failure."""
    if node.error is not None:
        yield _error("not-tested", node.name, f"Not tested: {node.error}", "")
    elif not node.finished:
        what = "The environment is unfinished: its creation was interrupted, or is still running."
        yield _error("unfinished", node.name, what, CREATE_AGAIN)
    elif node.python is None:
        yield _error("no-python", node.name, f"No working Python at {asked}. {node.detail}".rstrip(), CREATE)
    else:
        refused = list(_refused(node.name, node.python, backend))
        yield from refused
        if node.proof != "ok" and not refused:
            what = "failed" if node.proof == "failed" else "did not finish"
            yield _error(
                "imports", node.name, f"Importing the ranks' packages {what}: {node.detail}", CREATE_AGAIN
            )


def _refused(name: str, python: PythonFacts, backend: str | None) -> Iterator[Problem]:
    """Yield missing packages and unsupported versions."""
    version = version_tuple(python.version)
    if version is not None and version < OLDEST_PYTHON:
        what = f"Python {python.version} is not supported: 3.11 is the oldest supported version."
        yield _error("old-python", name, what, "Install a newer one, and create the environment with it.")
        return
    versions = _versions(NodeEnvironment(name, python=python))
    missing = [
        package for package in ("mlx", "mlx-lm", "transformers", "jaccl-kernel") if not versions[package]
    ]
    if missing:
        what = f"{', '.join(missing)} is not installed in {python.executable}."
        yield _error("missing-package", name, what, CREATE_AGAIN)
    mlx, mlx_lm = version_tuple(python.mlx), version_tuple(python.mlx_lm)
    if mlx is not None and not MLX[0] <= mlx < MLX[1]:
        why = "the launcher supports 0.32, from 0.32.3 on"
        if mlx == version_tuple(BROKEN_RING_MLX) and backend == "jaccl-ring":
            why = "over jaccl-ring its all_gather silently returns wrong values"
        yield _error("refused-mlx", name, f"mlx {python.mlx} is not supported: {why}.", CREATE_AGAIN)
    if mlx_lm is not None and not MLX_LM[0] <= mlx_lm < MLX_LM[1]:
        what = f"mlx-lm {python.mlx_lm} is not supported: the server supports 0.32, from 0.32.2 on."
        yield _error("refused-mlx-lm", name, what, CREATE_AGAIN)
    transformers = version_tuple(python.transformers)
    if transformers is not None and transformers < OLDEST_TRANSFORMERS:
        what = f"transformers {python.transformers} is not supported: mlx-lm 0.32 needs 5 or newer."
        yield _error("refused-transformers", name, what, CREATE_AGAIN)


def _drift_problems(nodes: Sequence[NodeEnvironment], rows: Sequence[Row]) -> Iterator[Problem]:
    """Yield packages whose versions differ; missing packages have a problem of their own."""
    first = _reference(nodes)
    for row in rows:
        expected = row.cells[first].value
        for node, cell in zip(nodes, row.cells, strict=True):
            if cell.differs and cell.value is not None and expected is not None:
                what = f"{row.package} is {cell.value}, but {expected} on {nodes[first].name} (rank {first})."
                yield _error("drift", node.name, what, CREATE_AGAIN)


def _path_problems(asked: str, nodes: Sequence[NodeEnvironment], *, rehearsal: bool) -> Iterator[Problem]:
    """A job takes one path for all nodes. A rehearsal's job runs this machine's interpreter instead."""
    found = [(node.name, node.python.executable) for node in nodes if node.python and node.python.executable]
    odd = next((one for one in found if one[1] != found[0][1]), None)
    if odd is None or rehearsal:
        return
    (first, path), (name, other) = found[0], odd
    what = f"{asked} is {path} on {first} and {other} on {name}, and a job takes one path for all nodes."
    fix = f"Create it at the same path on each: `jaccl environment … --create --path {SHARED_PATH}`."
    yield _error("paths-differ", name, what, fix)


def _error(code: str, where: str, message: str, fix: str) -> Problem:
    return Problem(code, "error", where, message, fix)
