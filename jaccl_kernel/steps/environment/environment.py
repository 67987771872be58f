"""Environment: whether every node has the same working Python, where they differ, and how to create it.

`check` inspects and tests all nodes at once, and changes nothing. `plan` lists the commands that create the
environment, and `apply` runs them after confirmation. Pass the report's `python` to jobs as `--python`.
"""

import asyncio
import json
from pathlib import PurePosixPath

from jaccl_kernel.core.errors import CommandTimeout, JacclError, NodeError
from jaccl_kernel.core.events import HOST, Done, Event, Stage
from jaccl_kernel.hostfile.lint import effective_backend
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment import scripts
from jaccl_kernel.steps.environment.apply import Applied, ApplyReport, apply
from jaccl_kernel.steps.environment.plan import (
    DEFAULT_PATH,
    EnvironmentPlan,
    NodePlan,
    Recipe,
    default_python,
    from_home,
    own_recipe,
    plan,
)
from jaccl_kernel.steps.environment.report import (
    Cell,
    EnvironmentReport,
    NodeEnvironment,
    Proof,
    Row,
    judge,
)
from jaccl_kernel.topology.probe import probe_node
from jaccl_kernel.topology.tools.commands import commands

__all__ = [
    "DEFAULT_PATH", "Applied", "ApplyReport", "Cell", "EnvironmentPlan", "EnvironmentReport",
    "NodeEnvironment", "NodePlan", "Recipe", "Row", "apply", "check", "default_python", "judge", "own_recipe",
    "plan",
]  # fmt: skip

PROOF_DEADLINE_S = 120.0
"""The first import after an installation compiles every module: up to a minute on a slow disk."""


async def check(
    cluster: Cluster,
    *,
    python: str | None = None,
    on_event: OnEvent = ignore,
    deadline: float = PROOF_DEADLINE_S,
) -> EnvironmentReport:
    """Inspect that interpreter and its packages on every node, and test it. Changes nothing.

    A node that does not answer is "not tested"; it raises no error.

    Args:
        cluster: the nodes.
        python: the interpreter: absolute (over ssh macOS gives a short PATH), in the home folder (`~/…`), or
            a bare name; None for the environment that `plan` creates (in a rehearsal: this machine's own).
        on_event: receives a `stage` of each rank when its node has answered.
        deadline: seconds for the imports on each node.
    """
    asked = python or default_python(cluster)
    on_event(Event(HOST, Stage("check", f"checking {asked} on {len(cluster.nodes)} nodes")))

    async def one(rank: int, node: Node) -> NodeEnvironment:
        found = await look(node, from_home(asked), deadline)
        text = found.error or ("imports work" if found.proof == "ok" else found.detail or found.proof)
        on_event(Event(rank, Stage("check", text, 1.0)))
        on_event(Event(rank, Done(int(found.proof != "ok"))))
        return found

    nodes = await asyncio.gather(*(one(rank, node) for rank, node in enumerate(cluster.nodes)))
    backend = effective_backend(cluster.hostfile)
    return judge(asked, nodes, backend=backend, rehearsal=cluster.rehearsal)


async def look(node: Node, python: str, deadline: float = PROOF_DEADLINE_S) -> NodeEnvironment:
    """Return one node's versions, then the proof, so that a broken mlx does not hide its version."""
    versions = [command for command in commands(python) if command.id == "python"]
    facts, finished = await asyncio.gather(probe_node(node, versions), _is_finished(node, python))
    if facts.error is not None:
        return NodeEnvironment(node.name, error=facts.error)
    if facts.python is None:
        return NodeEnvironment(node.name, finished=finished, detail=facts.outcomes["python"].detail)
    # its absolute path: the probe looks for a bare name in more folders than a command's PATH has
    proof, detail, code = await _prove(node, facts.python.executable or python, deadline)
    return NodeEnvironment(node.name, None, facts.python, finished, proof, detail, code)


async def _is_finished(node: Node, python: str) -> bool:
    """Return False for an environment whose creation is running or was interrupted."""
    place = PurePosixPath(python)
    if place.parent.name != "bin":
        return True
    try:
        done = await node.run(["test", "-e", f"{place.parent.parent}.part"], deadline=30, check=False)
    except NodeError:
        return True  # not tested: the other commands report why
    return done.returncode != 0


async def _prove(node: Node, python: str, deadline: float) -> tuple[Proof, str, str | None]:
    """Return the proof, why it failed, and the digest of our sources."""
    try:
        done = await node.run([python, "-c", scripts.PROOF], deadline=deadline)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        return "ok", "", str(result["proof"])
    except CommandTimeout:
        return "not tested", f"the imports did not finish within {deadline:g} s", None
    except JacclError as error:
        output = getattr(error, "output", "").split(" / ")[-1]
        return "failed", output or error.what, None
    except (ValueError, LookupError, TypeError):
        return "failed", "the test printed no result", None
