"""How the same Python environment comes to be on every node: the exact commands, none of which is run here.

Looks at each node (which Pythons, conda, what stands at the path) without changing it, chooses one Python
version for all, and pins this machine's versions. Running the commands is `environment_apply.py`'s business.
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

from jaccl_kernel.cluster.shell import Node, SshNode
from jaccl_kernel.errors import InputError
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.steps import environment_scripts as scripts
from jaccl_kernel.steps import own_wheel
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment_survey import PYTHONS, Survey, choose_version, survey
from jaccl_kernel.wire import HOST, Event

DEFAULT_PATH = "~/jaccl-env"
PINNED = ("mlx", "mlx-lm", "transformers")
"""What must be the same on all nodes to the letter; all else follows from what these and we ask for."""

Action = Literal["create", "replace", "keep", "cannot"]


def default_python(cluster: Cluster) -> str:
    """The interpreter that is meant when none is named: the environment's; a simulated Mac's is its own."""
    return "python3" if cluster.rehearsal else f"{DEFAULT_PATH}/bin/python"


def from_home(path: str) -> str:
    """`~/…` as a path from the home folder, where commands on a node start: no shell expands it for us."""
    return path.removeprefix("~/")


@dataclass(frozen=True)
class Recipe:
    """What goes into the environment.

    Attributes:
        wheel: this package.
        requirements: what else pip is told to install, pinned.
        pip_options: more of pip's, such as `--no-index`.
        borrow: a folder of installed packages to use instead of installing any: a rehearsal's way.
    """

    wheel: Path
    requirements: tuple[str, ...]
    pip_options: tuple[str, ...] = ()
    borrow: str | None = None

    def stamp(self, version: str) -> str:
        """What an environment made by this recipe, with that version of Python, is known by."""
        told = [own_wheel.digest(self.wheel), self.requirements, self.pip_options, self.borrow]
        return f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]} python {version}"


@dataclass(frozen=True)
class Run:
    """A command to run on a node: `label` says what it does, and `deadline_s` is in seconds.

    `begins`: from here on the node is changed, and what fails has to be put back.
    """

    label: str
    argv: tuple[str, ...]
    deadline_s: float = 60.0
    begins: bool = False


@dataclass(frozen=True)
class Copy:
    """A file of this machine to copy into a folder of a node."""

    label: str
    source: Path
    folder: str
    deadline_s: float = 120.0


@dataclass(frozen=True)
class NodePlan:
    """What is to be done at one node.

    Attributes:
        name: the node's.
        host: its ssh name; None for this machine.
        action: create, replace (an unfinished one, or one of another recipe), keep (it is this one already),
            or cannot.
        why: a sentence; `fix` says what to do about a "cannot".
        path: where the environment stands there, absolute; None where nobody could look.
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
        """The steps as text for a shell on this machine."""
        return tuple(self._text(step) for step in self.steps)

    def _text(self, step: Run | Copy) -> str:
        if isinstance(step, Copy):
            folder = f"{step.folder}/" if self.host is None else f"{self.host}:{step.folder}/"
            return shlex.join(["rsync", "-t", str(step.source), folder])
        command = shlex.join(step.argv)
        return command if self.host is None else shlex.join(["ssh", self.host, command])


@dataclass(frozen=True)
class EnvironmentPlan:
    """What would make the environment, node by node, in rank order; nothing of it has been done.

    Attributes:
        path: where it is to stand on every node, as asked for.
        version: Python's, as 3.12; None if no node has any.
        recipe: what goes into it.
        nodes: what is to be done at each.
        cluster: whom it is for.
    """

    path: str
    version: str | None
    recipe: Recipe
    nodes: tuple[NodePlan, ...]
    cluster: Cluster = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether every node can have it."""
        return all(node.action != "cannot" for node in self.nodes)

    @property
    def python(self) -> str:
        """The interpreter that it makes, as asked for: what `check` takes."""
        return f"{self.path}/bin/python"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON's own types."""
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
    """This machine's versions and this very package; what is not installed here is not pinned.

    In a rehearsal nothing is downloaded: the environments borrow this machine's packages.

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
    """Look at every node and say what would make the environment there. Changes nothing.

    Args:
        cluster: the nodes.
        path: where it shall stand on each, absolute or in the home folder (`~/…`).
        recipe: what goes into it; this machine's versions if None.
        on_event: told of the stage.

    Raises:
        InputError: a path that makes no sense.
        JacclError: this package cannot be packed.
    """
    _check_path(path)
    recipe = recipe or own_recipe(rehearsal=cluster.rehearsal)
    on_event(Event(HOST, "stage", {"name": "survey", "text": "looking for Pythons", "fraction": None}))
    surveys = await asyncio.gather(*(survey(node, from_home(path)) for node in cluster.nodes))
    version = choose_version(surveys)
    nodes = tuple(
        plan_node(node, found, version, recipe) for node, found in zip(cluster.nodes, surveys, strict=True)
    )
    return EnvironmentPlan(path, version, recipe, nodes, cluster)


def plan_node(node: Node, found: Survey, version: str | None, recipe: Recipe) -> NodePlan:
    """What is to be done at one node for that version of Python; pure."""
    host = node.host if isinstance(node, SshNode) else None
    if found.error is not None:
        return NodePlan(node.name, host, "cannot", found.error.what, found.error.fix)
    if version is None or not found.can_make(version):
        why = f"It has neither Python {version or PYTHONS[0]} (with venv) nor conda."
        if found.pythons:
            why += f" It has Python {', '.join(found.pythons)}, but the version is to be the same everywhere."
        fix = f"There: brew install python@{version or PYTHONS[0]}, or install it from python.org."
        return NodePlan(node.name, host, "cannot", why, fix, found.path)
    if found.state == "foreign":
        why = f"Something stands at {found.path} that was not made here, so it is left alone."
        fix = "Choose another path, or move it away. To use it as it is, check it with its own interpreter."
        return NodePlan(node.name, host, "cannot", why, fix, found.path)
    stamp = recipe.stamp(version)
    if found.state == "ready" and found.stamp == stamp:
        return NodePlan(node.name, host, "keep", "It is there already, and the same.", path=found.path)
    why = {
        "absent": "Nothing stands there yet.",
        "unfinished": "An unfinished one stands there: it is taken away first.",
        "ready": "The one that stands there has other versions: it is replaced, and kept until then.",
    }[found.state]
    action: Action = "create" if found.state == "absent" else "replace"
    return NodePlan(
        node.name, host, action, why, path=found.path, steps=_steps(found, version, recipe, stamp)
    )


def put_back(path: str) -> Run:
    """What undoes a making that did not come to its end: all is as it was before it."""
    return Run("put back what was", _script(scripts.PUT_BACK, path), 120.0)


def _steps(found: Survey, version: str, recipe: Recipe, stamp: str) -> tuple[Run | Copy, ...]:
    path = found.path
    python = f"{path}/bin/python"
    steps: list[Run | Copy] = [put_back(path)] if found.state == "unfinished" else []
    steps.append(Run("make room", _script(scripts.BEGIN, path), begins=True))
    if found.state != "absent":
        steps.append(Run("set the old one aside", _script(scripts.SET_ASIDE, path)))
    if base := found.pythons.get(version):
        bare = ("--without-pip",) if recipe.borrow else ()
        steps.append(Run(f"make it with {base}", (base, "-m", "venv", *bare, path), 300.0))
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
        steps.append(Run(f"make it with {found.conda}", conda, 1200.0))
    if recipe.borrow:
        steps.append(Run("borrow packages", (python, "-c", scripts.BORROW, recipe.borrow)))
    else:
        wheel = f"{path}.part/{recipe.wheel.name}"
        pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
        more = ("--progress-bar", "off", *recipe.pip_options, *recipe.requirements, wheel)
        steps.append(Copy("copy this package", recipe.wheel, f"{path}.part"))
        steps.append(Run("install packages", (*pip, *more), 1800.0))
    steps.append(Run("import what ranks need", (python, "-c", scripts.IMPORTS), 180.0))
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
        raise InputError(f"{path!r} is no place for an environment", fix=fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
