"""Environment: is the same working Python on every node, where do they differ, and how to make it so.

`check` looks and proves, all nodes at once, and changes nothing. `plan` says which commands would make the
environment, and `apply` runs them after a yes. A job's `--python` is the report's `python`.
"""

import asyncio
import json
from pathlib import PurePosixPath

from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.commands import commands
from jaccl_kernel.cluster.probe import ask
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import CommandTimeout, JacclError, NodeError
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.steps import environment_scripts as scripts
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment_apply import Applied, ApplyReport, apply
from jaccl_kernel.steps.environment_plan import (
    DEFAULT_PATH,
    EnvironmentPlan,
    NodePlan,
    Recipe,
    default_python,
    from_home,
    own_recipe,
    plan,
)
from jaccl_kernel.steps.environment_report import Cell, EnvironmentReport, NodeEnvironment, Proof, Row, judge
from jaccl_kernel.wire import HOST, Event

__all__ = [
    "DEFAULT_PATH", "Applied", "ApplyReport", "Cell", "EnvironmentPlan", "EnvironmentReport",
    "NodeEnvironment", "NodePlan", "Recipe", "Row", "apply", "check", "default_python", "judge", "own_recipe",
    "plan",
]  # fmt: skip

PROOF_DEADLINE_S = 120.0
"""The first import after an installation compiles every module, on a slow disk for a minute."""


async def check(
    cluster: Cluster,
    *,
    python: str | None = None,
    on_event: OnEvent = ignore,
    deadline: float = PROOF_DEADLINE_S,
) -> EnvironmentReport:
    """See what that interpreter is and has on every node, and prove that it works. Changes nothing.

    Never raises for a node: one that does not answer is told as "not tested".

    Args:
        cluster: the nodes.
        python: the interpreter: absolute (over ssh macOS gives a short PATH), in the home folder (`~/…`), or
            a bare name; None for the environment that `plan` makes (a rehearsal: this machine's own).
        on_event: a `stage` of each rank when its node has answered.
        deadline: seconds for the imports on each node.
    """
    asked = python or default_python(cluster)
    told = {"name": "check", "text": f"asking {asked} on {len(cluster.nodes)} nodes", "fraction": None}
    on_event(Event(HOST, "stage", told))

    async def one(rank: int, node: Node) -> NodeEnvironment:
        found = await look(node, from_home(asked), deadline)
        text = found.error or ("imports work" if found.proof == "ok" else found.detail or found.proof)
        on_event(Event(rank, "stage", {"name": "check", "text": text, "fraction": 1.0}))
        on_event(Event(rank, "done", {"returncode": int(found.proof != "ok")}))
        return found

    nodes = await asyncio.gather(*(one(rank, node) for rank, node in enumerate(cluster.nodes)))
    backend = effective_backend(cluster.hostfile)
    return judge(asked, nodes, backend=backend, rehearsal=cluster.rehearsal)


async def look(node: Node, python: str, deadline: float = PROOF_DEADLINE_S) -> NodeEnvironment:
    """What one node has: its versions first, for a broken mlx must not hide its version, then the proof."""
    versions = [command for command in commands(python) if command.id == "python"]
    facts, finished = await asyncio.gather(ask(node, versions), _is_finished(node, python))
    if facts.error is not None:
        return NodeEnvironment(node.name, error=facts.error)
    if facts.python is None:
        return NodeEnvironment(node.name, finished=finished, detail=facts.outcomes["python"].detail)
    # by its absolute path: a bare name was looked for in more folders than a command's own PATH has
    proof, detail, code = await _prove(node, facts.python.executable or python, deadline)
    return NodeEnvironment(node.name, None, facts.python, finished, proof, detail, code)


async def _is_finished(node: Node, python: str) -> bool:
    """False for an environment that is being made, or whose making was cut off."""
    place = PurePosixPath(python)
    if place.parent.name != "bin":
        return True
    try:
        done = await node.run(["test", "-e", f"{place.parent.parent}.part"], deadline=30, check=False)
    except NodeError:
        return True  # not tested: the other questions say why
    return done.returncode != 0


async def _prove(node: Node, python: str, deadline: float) -> tuple[Proof, str, str | None]:
    """The proof, why it is not ok, and the digest of our sources."""
    try:
        done = await node.run([python, "-c", scripts.PROOF], deadline=deadline)
        told = json.loads(done.stdout.strip().splitlines()[-1])
        return "ok", "", str(told["proof"])
    except CommandTimeout:
        return "not tested", f"the imports did not end within {deadline:g} s", None
    except JacclError as error:
        words = getattr(error, "output", "").split(" / ")[-1]
        return "failed", words or error.what, None
    except (ValueError, LookupError, TypeError):
        return "failed", "it ended without its proof", None
