"""What was found of the Python environments, as data: the drift between nodes, and what is refused; pure.

The nodes are held against the first that answered, rank 0 as a rule, and each against the versions that this
workbench is made for.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.cluster.facts import PythonFacts, version_tuple
from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.steps.propose import BROKEN_RING_MLX

OLDEST_PYTHON = (3, 11)
OLDEST_MLX = (0, 32, 3)
MLX_LM = ((0, 32, 2), (0, 33))
"""From the first of these on, and before the second: the server's adapter is made for one minor version."""
OLDEST_TRANSFORMERS = (5,)

MAKE_IT = "Make it: `jaccl environment … --create`, or name another interpreter with --python."
MAKE_AGAIN = "Make the same environment on all nodes: `jaccl environment … --create`."

SHARED_PATH = "/Users/Shared/jaccl-env"
"""Every Mac has this folder, whatever its users are called."""

Proof = Literal["ok", "failed", "not tested"]


@dataclass(frozen=True)
class NodeEnvironment:
    """The Python of one node.

    Attributes:
        name: the node's.
        error: why nothing is known of it; None where it answered.
        python: the interpreter, absolute, and the versions of what we need; None where there is none.
        finished: whether it is whole: False while it is being made, or after its making was cut off.
        proof: whether mlx, mlx-lm, transformers and the rank programs load there, and mlx computes.
        detail: why the proof failed or was not made.
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
    """What one node has: None for nothing (or not known); `differs` from the reference."""

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
    """What `environment.check` found.

    Attributes:
        asked: the interpreter that was asked for, as given.
        nodes: what each has, in rank order.
        rows: the drift table: a row for each package, a cell for each node.
        problems: what is wrong, with what to do.
        rehearsal: the Macs are simulated and share this machine's Python.
    """

    asked: str
    nodes: tuple[NodeEnvironment, ...]
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    rehearsal: bool

    @property
    def ok(self) -> bool:
        """Whether jobs can run with it: it is there, whole, proven and the same everywhere."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def python(self) -> str | None:
        """The interpreter for a job's `--python`: absolute, the same on every node; None if there is none.

        In a rehearsal that is this machine's, for each simulated Mac's is only another name of it.
        """
        paths = {node.python.executable if node.python else None for node in self.nodes}
        if self.rehearsal and None not in paths:
            return sys.executable
        return next(iter(paths)) if len(paths) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's own types."""
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
    """The report on what the nodes told; pure.

    Args:
        asked: the interpreter that was asked for.
        nodes: what each has, in rank order.
        backend: what the jobs will run on, where it is known.
        rehearsal: whether the Macs are simulated.
    """
    rows = tuple(_rows(nodes))
    problems = [problem for node in nodes for problem in _node_problems(asked, node, backend)]
    problems += _drift_problems(nodes, rows)
    problems += _path_problems(asked, nodes, rehearsal=rehearsal)
    return EnvironmentReport(asked, tuple(nodes), rows, tuple(problems), rehearsal)


def _reference(nodes: Sequence[NodeEnvironment]) -> int:
    """Which node the others are held against: the first that has a Python."""
    return next((rank for rank, node in enumerate(nodes) if node.python is not None), 0)


def _rows(nodes: Sequence[NodeEnvironment]) -> Iterator[Row]:
    versions = [_versions(node) for node in nodes]
    for package in _versions(NodeEnvironment("")):
        values = [told[package] for told in versions]
        wanted = _compared(package, values[_reference(nodes)])
        # a node that did not answer differs in nothing: nobody knows
        cells = (
            Cell(value, node.error is None and _compared(package, value) != wanted)
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
    """What has to be the same: of Python its minor version, for a patch level changes nothing for us."""
    if package == "python" and (version := version_tuple(value)):
        return version[:2]
    return value


def _node_problems(asked: str, node: NodeEnvironment, backend: str | None) -> Iterator[Problem]:
    """What is wrong with one node's environment by itself; its first cause alone."""
    if node.error is not None:
        yield _error("not-tested", node.name, f"It was not tested: {node.error}", "")
    elif not node.finished:
        what = "The environment is unfinished: its making was cut off, or is still going on."
        yield _error("unfinished", node.name, what, MAKE_AGAIN)
    elif node.python is None:
        yield _error(
            "no-python", node.name, f"There is no working Python at {asked}. {node.detail}".rstrip(), MAKE_IT
        )
    else:
        refused = list(_refused(node.name, node.python, backend))
        yield from refused
        if node.proof != "ok" and not refused:
            what = "failed" if node.proof == "failed" else "did not come to an end"
            yield _error(
                "imports", node.name, f"The import of what ranks need {what}: {node.detail}", MAKE_AGAIN
            )


def _refused(name: str, python: PythonFacts, backend: str | None) -> Iterator[Problem]:
    """What is missing, or is a version that does not work."""
    version = version_tuple(python.version)
    if version is not None and version < OLDEST_PYTHON:
        what = f"Python {python.version} is too old: 3.11 is the oldest that works."
        yield _error("old-python", name, what, "Install a newer one, and make the environment with it.")
        return
    versions = _versions(NodeEnvironment(name, python=python))
    missing = [
        package for package in ("mlx", "mlx-lm", "transformers", "jaccl-kernel") if not versions[package]
    ]
    if missing:
        what = f"{python.executable} has no {', '.join(missing)}."
        yield _error("missing-package", name, what, MAKE_AGAIN)
    mlx, mlx_lm = version_tuple(python.mlx), version_tuple(python.mlx_lm)
    if mlx is not None and mlx < OLDEST_MLX:
        why = "it is older than 0.32.3, which we need"
        if mlx == version_tuple(BROKEN_RING_MLX) and backend == "jaccl-ring":
            why = "over jaccl-ring its all_gather returns garbage, and silently so"
        yield _error("refused-mlx", name, f"mlx {python.mlx} is refused: {why}.", MAKE_AGAIN)
    if mlx_lm is not None and not MLX_LM[0] <= mlx_lm < MLX_LM[1]:
        what = f"mlx-lm {python.mlx_lm} is refused: the server is made for 0.32, from 0.32.2 on."
        yield _error("refused-mlx-lm", name, what, MAKE_AGAIN)
    transformers = version_tuple(python.transformers)
    if transformers is not None and transformers < OLDEST_TRANSFORMERS:
        what = f"transformers {python.transformers} is refused: mlx-lm 0.32 needs 5 or newer."
        yield _error("refused-transformers", name, what, MAKE_AGAIN)


def _drift_problems(nodes: Sequence[NodeEnvironment], rows: Sequence[Row]) -> Iterator[Problem]:
    """What two nodes have in two versions; what one lacks is told as missing already."""
    first = _reference(nodes)
    for row in rows:
        wanted = row.cells[first].value
        for node, cell in zip(nodes, row.cells, strict=True):
            if cell.differs and cell.value is not None and wanted is not None:
                what = f"{row.package} is {cell.value}, but {wanted} on {nodes[first].name} (rank {first})."
                yield _error("drift", node.name, what, MAKE_AGAIN)


def _path_problems(asked: str, nodes: Sequence[NodeEnvironment], *, rehearsal: bool) -> Iterator[Problem]:
    """A job takes one path for all nodes. Simulated Macs have homes of their own, but jobs that need none."""
    found = [(node.name, node.python.executable) for node in nodes if node.python and node.python.executable]
    odd = next((one for one in found if one[1] != found[0][1]), None)
    if odd is None or rehearsal:
        return
    (first, path), (name, other) = found[0], odd
    what = f"{asked} is {path} on {first} and {other} on {name}, and a job takes one path for all nodes."
    fix = f"Make it where the path is the same on each: `jaccl environment … --create --path {SHARED_PATH}`."
    yield _error("paths-differ", name, what, fix)


def _error(code: str, where: str, message: str, fix: str) -> Problem:
    return Problem(code, "error", where, message, fix)
