"""The exact commands that create the same Python environment on every node; `apply.py` runs them.

Inspects each node (Pythons, conda, what exists at the path) without changing it, chooses one Python version
for all, and pins this machine's versions.
"""

import asyncio
import hashlib
import json
import shlex
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import HOST, Event, Stage
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment import scripts
from jaccl_kernel.steps.environment import wheel as own_wheel
from jaccl_kernel.steps.environment.survey import PYTHONS, Survey, choose_version, survey

DEFAULT_PATH = "~/jaccl-env"
PINNED = ("mlx", "mlx-lm", "transformers")
"""Packages with identical versions on all nodes; their dependencies determine the rest."""

Action = Literal["create", "replace", "keep", "skip"]


def default_python(cluster: Cluster) -> str:
    """Return the default interpreter: the environment's, or a simulated Mac's own."""
    return "python3" if cluster.rehearsal else f"{DEFAULT_PATH}/bin/python"


def from_home(path: str) -> str:
    """Return `~/…` as a path relative to the home folder, where commands start: no shell expands it."""
    return path.removeprefix("~/")


@dataclass(frozen=True)
class Recipe:
    """The contents of the environment.

    Attributes:
        wheel: this package.
        requirements: further pinned packages for pip.
        pip_options: further options of pip, such as `--no-index`.
        borrow: a folder of installed packages to use without installing any, for a rehearsal.
    """

    wheel: Path
    requirements: tuple[str, ...]
    pip_options: tuple[str, ...] = ()
    borrow: str | None = None

    def stamp(self, version: str) -> str:
        """Return the identity of an environment with this recipe and that version of Python."""
        parts = [own_wheel.digest(self.wheel), self.requirements, self.pip_options, self.borrow]
        return f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]} python {version}"


@dataclass(frozen=True)
class Run:
    """A command to run on a node: `label` describes it, and `deadline_s` is in seconds.

    `begins`: this step first changes the node, so that a later failure needs a restore.
    """

    label: str
    argv: tuple[str, ...]
    deadline_s: float = 60.0
    begins: bool = False


@dataclass(frozen=True)
class Copy:
    """A file of this machine to copy to a folder on a node."""

    label: str
    source: Path
    folder: str
    deadline_s: float = 120.0


@dataclass(frozen=True)
class NodePlan:
    """The plan for one node.

    Attributes:
        name: the node's name.
        host: its ssh name; None for this machine.
        action: create, replace (an unfinished one, or one of another recipe), keep (it is up to date), or
            skip (the node does not support it).
        why: a sentence; `fix` is the fix for a "skip".
        path: the environment's absolute path on the node; None if the node was not inspected.
        steps: the commands, in order.
    """

    name: str
    host: str | None
    action: Action
    why: str
    fix: str = ""
    path: str | None = None
    steps: tuple[Run | Copy, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        """The steps as shell commands for this machine."""
        return tuple(self._text(step) for step in self.steps)

    def _text(self, step: Run | Copy) -> str:
        if isinstance(step, Copy):
            if self.host is None:
                return shlex.join(["cp", "-p", str(step.source), f"{step.folder}/"])
            return shlex.join(["rsync", "-t", str(step.source), f"{self.host}:{step.folder}/"])
        command = shlex.join(step.argv)
        return command if self.host is None else shlex.join(["ssh", self.host, command])


@dataclass(frozen=True)
class EnvironmentPlan:
    """The plan for the environment, node by node, in rank order; nothing has been run.

    Attributes:
        path: its path on every node, as requested.
        version: the Python version, such as 3.12; None if no node has one.
        recipe: its contents.
        nodes: the plan for each node.
        cluster: the nodes.
    """

    path: str
    version: str | None
    recipe: Recipe
    nodes: tuple[NodePlan, ...]
    cluster: Cluster = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the plan covers every node."""
        return all(node.action != "skip" for node in self.nodes)

    @property
    def python(self) -> str:
        """The path of the new interpreter, as requested, for `check`."""
        return f"{self.path}/bin/python"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return {
            "ok": self.ok,
            "rehearsal": self.cluster.rehearsal,
            "path": self.path,
            "version": self.version,
            "requirements": [*self.recipe.requirements, self.recipe.wheel.name],
            "nodes": [
                {
                    "name": node.name,
                    "action": node.action,
                    "why": node.why,
                    "fix": node.fix,
                    "path": node.path,
                    "commands": list(node.commands),
                }
                for node in self.nodes
            ],
        }


def own_recipe(*, rehearsal: bool = False, pip_options: Sequence[str] = ()) -> Recipe:
    """Return this machine's versions and this package; a package that is not installed here is not pinned.

    A rehearsal downloads nothing: its environments use this machine's packages.

    Raises:
        JacclError: the package cannot be packed.
    """
    wheel = own_wheel.pack(cache_dir() / "wheels")
    if rehearsal:
        return Recipe(wheel, (), (), borrow=sysconfig.get_path("purelib"))
    installed = {name: _version(name) for name in PINNED}
    pins = tuple(f"{name}=={version}" for name, version in installed.items() if version)
    return Recipe(wheel, pins, tuple(pip_options))


async def plan(
    cluster: Cluster,
    *,
    path: str = DEFAULT_PATH,
    recipe: Recipe | None = None,
    on_event: OnEvent = ignore,
) -> EnvironmentPlan:
    """Inspect every node and plan how to create the environment there. Changes nothing.

    Args:
        cluster: the nodes.
        path: its path on each node, absolute or in the home folder (`~/…`).
        recipe: its contents; None for this machine's versions.
        on_event: receives the stage.

    Raises:
        InputError: the path is invalid.
        JacclError: this package cannot be packed.
    """
    _check_path(path)
    recipe = recipe or own_recipe(rehearsal=cluster.rehearsal)
    on_event(Event(HOST, Stage("survey", "looking for Pythons")))
    surveys = await asyncio.gather(*(survey(node, from_home(path)) for node in cluster.nodes))
    version = choose_version(surveys)
    nodes = tuple(
        plan_node(node, found, version, recipe) for node, found in zip(cluster.nodes, surveys, strict=True)
    )
    return EnvironmentPlan(path, version, recipe, nodes, cluster)


def plan_node(node: Node, found: Survey, version: str | None, recipe: Recipe) -> NodePlan:
    """Return the plan for one node and that version of Python; pure."""
    host = node.host if isinstance(node, SshNode) else None
    if found.error is not None:
        return NodePlan(node.name, host, "skip", found.error.what, found.error.fix)
    if version is None or not found.can_make(version):
        why = f"It has neither Python {version or PYTHONS[0]} (with venv) nor conda."
        if found.pythons:
            why += f" It has Python {', '.join(found.pythons)}, but every node needs the same version."
        fix = f"On that Mac: brew install python@{version or PYTHONS[0]}, or install it from python.org."
        return NodePlan(node.name, host, "skip", why, fix, found.path)
    if found.state == "foreign":
        why = f"{found.path} exists and was not created by this workbench, so it is not replaced."
        fix = "Choose another path, or move it. To use it as it is, check it with its own interpreter."
        return NodePlan(node.name, host, "skip", why, fix, found.path)
    stamp = recipe.stamp(version)
    if found.state == "ready" and found.stamp == stamp:
        return NodePlan(node.name, host, "keep", "It exists and is up to date.", path=found.path)
    why = {
        "absent": "It does not exist yet.",
        "unfinished": "An unfinished environment exists: it is removed first.",
        "ready": "The existing one has other versions: it is replaced when the new one is complete.",
    }[found.state]
    action: Action = "create" if found.state == "absent" else "replace"
    return NodePlan(
        node.name, host, action, why, path=found.path, steps=_steps(found, version, recipe, stamp)
    )


def put_back(path: str) -> Run:
    """Return the command that restores the state before an interrupted creation."""
    return Run("restore the previous environment", _script(scripts.PUT_BACK, path), 120.0)


def _steps(found: Survey, version: str, recipe: Recipe, stamp: str) -> tuple[Run | Copy, ...]:
    path = found.path
    python = f"{path}/bin/python"
    steps: list[Run | Copy] = [put_back(path)] if found.state == "unfinished" else []
    steps.append(Run("create the folder", _script(scripts.BEGIN, path), begins=True))
    if found.state != "absent":
        steps.append(Run("move the previous environment", _script(scripts.SET_ASIDE, path)))
    if base := found.pythons.get(version):
        bare = ("--without-pip",) if recipe.borrow else ()
        steps.append(Run(f"create it with {base}", (base, "-m", "venv", *bare, path), 300.0))
    else:
        conda = (
            found.conda or "",
            "create",
            "--yes",
            "--quiet",
            "--prefix",
            path,
            f"python={version}",
            "pip",
        )
        steps.append(Run(f"create it with {found.conda}", conda, 1200.0))
    if recipe.borrow:
        steps.append(Run("use this machine's packages", (python, "-c", scripts.BORROW, recipe.borrow)))
    else:
        wheel = f"{path}.part/{recipe.wheel.name}"
        pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
        more = ("--progress-bar", "off", *recipe.pip_options, *recipe.requirements, wheel)
        steps.append(Copy("copy this package", recipe.wheel, f"{path}.part"))
        steps.append(Run("install packages", (*pip, *more), 1800.0))
    steps.append(Run("import the ranks' packages", (python, "-c", scripts.IMPORTS), 180.0))
    steps.append(Run("finish", _script(scripts.FINISH, path, stamp)))
    return tuple(steps)


def _script(text: str, *arguments: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", text, "sh", *arguments)


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    below = len(parts) - (2 if path.startswith("/") else 1)
    sound = path.startswith(("~/", "/")) and str(PurePosixPath(path)) == path and ".." not in parts
    if not sound or below < 1 or not path.isprintable():
        fix = f"Give a folder of its own, such as {DEFAULT_PATH} or /Users/Shared/jaccl-env."
        raise InputError(f"invalid path for an environment: {path!r}", fix=fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
