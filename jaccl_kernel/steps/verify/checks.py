"""Verify's checks on facts: each ok, failed or not tested, with its evidence; pure.

A check fails if it fails on one Mac or one cell; it is ok only if all were tested and none failed; otherwise
it is "not tested", with the reason. Checks that run commands on the Macs are in `live_checks.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.steps.hostfile.propose import BROKEN_RING_MLX
from jaccl_kernel.topology import compare
from jaccl_kernel.topology.facts import NodeFacts, version_tuple
from jaccl_kernel.topology.issues import find_issues
from jaccl_kernel.topology.readiness import readiness
from jaccl_kernel.topology.wiring import Wiring

Verdict = Literal["ok", "failed", "not tested"]

TITLES = {
    "ssh": "ssh reaches every Mac",
    "environment": "same Python, mlx, mlx-lm and transformers on every Mac",
    "rdma": "RDMA over Thunderbolt is ready on every Mac",
    "ports": "ports in use are active",
    "gid": "every port in use has an IPv4 GID at index 1",
    "wiring": "hostfile matches the cables",
    "coordinator": "coordinator address belongs to rank 0 and is reachable",
    "stale": "no rank, mlx.launch or mlx_lm is already running on the Macs",
    "group": "ranks join one group of the right size",
    "sums": "all_sum and all_gather of rank-dependent values are correct",
    "latency": "all_sum latency",
}
"""Every check, in the order in which they run."""

PACKAGES = ("mlx", "mlx_lm", "transformers", "jaccl_kernel")
_MATRIX_CODES = ("rdma-", "ring-", "mesh-", "device-shared", "wires-")
_ADDRESS_CODES = ("coordinator-", "ips-")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: a key of TITLES.
        verdict: "ok" is a proof; "not tested" is neither ok nor failed.
        proof: the evidence, or why it was not tested.
        problems: what failed, by location; for "not tested", what could not be tested.
        seconds: its duration.
    """

    name: str
    verdict: Verdict
    proof: str
    problems: tuple[Problem, ...] = field(default=())
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """What the check tests."""
        return TITLES[self.name]

    @property
    def cause(self) -> str:
        """The root cause with its location; "" if nothing failed."""
        first = next((p for p in self.problems if p.severity == "error"), None)
        return f"{first.where}: {first.message}" if first else ""

    @property
    def fix(self) -> str:
        """The fix for the root cause, or how to get the check tested."""
        worst = sorted(self.problems, key=lambda problem: problem.severity != "error")
        return worst[0].fix if worst and self.verdict != "ok" else ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON types, for programs and records."""
        return {
            "name": self.name,
            "title": self.title,
            "verdict": self.verdict,
            "proof": self.proof,
            "cause": self.cause,
            "fix": self.fix,
            "problems": [problem.to_json() for problem in self.problems],
            "seconds": round(self.seconds, 3),
        }


def not_tested(name: str, why: str, fix: str = "") -> Check:
    """Return a check that could not run."""
    problems = (Problem(compare.UNTESTED, "warning", "", why, fix),) if fix else ()
    return Check(name, "not tested", why, problems)


def judge(name: str, problems: Iterable[Problem], proof: str) -> Check:
    """Return the check for these problems; `proof` is its evidence if it is ok."""
    found = tuple(problems)
    errors = [problem for problem in found if problem.severity == "error"]
    unseen = [problem for problem in found if problem.code == compare.UNTESTED]
    if errors:
        count = f"{len(errors)} problem{'s' * (len(errors) > 1)}"
        return Check(name, "failed", f"{count}: {errors[0].where}: {errors[0].message}", found)
    if unseen:
        where = f"{unseen[0].where}: " if unseen[0].where else ""
        return Check(name, "not tested", f"{where}{unseen[0].message}", found)
    hints = "".join(f" Note: {problem.where}: {problem.message}" for problem in found)
    return Check(name, "ok", proof + hints, found)


def ssh(wiring: Wiring) -> Check:
    """Check that every node answered the scan."""
    problems = []
    for node, label in zip(wiring.nodes, wiring.labels, strict=True):
        if node.error is not None:
            what, _, fix = node.error.partition(" Fix: ")
            fix = fix or f"Run: ssh {node.ssh} true"
            problems.append(Problem("unreachable", "error", label, what, fix))
    size = len(wiring.nodes)
    return judge("ssh", problems, f"{_all(size).capitalize()} answered: {', '.join(wiring.labels)}.")


def environment(wiring: Wiring, imports: Sequence[Problem], *, backend: str) -> Check:
    """Check that all nodes have the same versions; `imports` are the problems of importing this package."""
    named = [(label, node) for node, label in zip(wiring.nodes, wiring.labels, strict=True)]
    problems = [problem for label, node in named for problem in _python_problems(label, node, backend)]
    first = next(((label, node.python) for label, node in named if node.python is not None), None)
    if first is None:
        return judge("environment", [*problems, *imports], "")
    for label, node in named:
        for what in ("version", *PACKAGES):
            mine, here = getattr(first[1], what), getattr(node.python, what, None)
            if node.python is not None and mine and here and _kind(what, mine) != _kind(what, here):
                name = "Python" if what == "version" else what.replace("_", "-")
                text = f"{name} is {here}, but {mine} on {first[0]}."
                fix = "Create the same environment on every Mac (notebook 02, or pip on that Mac)."
                problems.append(Problem("version-skew", "error", label, text, fix))
    python = first[1]
    builds = Counter(node.build for _, node in named if node.build)
    if len(builds) > 1:
        text = f"The Macs run different macOS builds: {', '.join(sorted(builds))}; RDMA needs the same build."
        problems.append(Problem("macos-skew", "warning", "macOS", text, "Update all to the same build."))
    versions = ", ".join(f"{name.replace('_', '-')} {getattr(python, name)}" for name in PACKAGES)
    proof = f"Python {python.version}, {versions} on {_all(len(named))}; jaccl_kernel imports."
    return judge("environment", [*problems, *imports], proof)


def rdma(wiring: Wiring) -> Check:
    """Check that RDMA over Thunderbolt is ready on each Mac."""
    problems = []
    for node, label in zip(wiring.nodes, wiring.labels, strict=True):
        found = readiness(node)
        text, fix = " ".join(found.reasons), " ".join(found.steps)
        if found.kind == "unknown":
            problems.append(Problem(compare.UNTESTED, "warning", label, text, fix))
        elif found.kind != "ready":
            problems.append(Problem(f"rdma-{found.kind}", "error", label, text, fix))
    count = sum(len(node.devices or ()) for node in wiring.nodes)
    return judge("rdma", problems, f"RDMA is on, and {_all(len(wiring.nodes))} list {count} devices.")


def ports(used: Sequence[compare.DeviceUse], wiring: Wiring) -> Check:
    """Check that every device that the job uses is up."""
    if not used:
        return not_tested(
            "ports", "The ports in use are unknown: no cable was found, and the hostfile has no rdma matrix."
        )
    slow = [
        Problem(
            "slow-link", "warning", "cabling", issue.text, "Use a Thunderbolt 5 cable in Thunderbolt 5 ports."
        )
        for issue in find_issues(wiring)
        if issue.code == "slow"
    ]
    problems = [*compare.port_problems(used, wiring), *slow]
    return judge("ports", problems, f"{_ports(used)} report PORT_ACTIVE.")


def gid(used: Sequence[compare.DeviceUse], wiring: Wiring) -> Check:
    """Check that every device that the job uses has its IPv4 GID at the index that JACCL uses."""
    if not used:
        return not_tested(
            "gid", "The ports in use are unknown: no cable was found, and the hostfile has no rdma matrix."
        )
    problems = compare.gid_problems(used, wiring)
    return judge("gid", problems, f"{_ports(used)} have their IPv4 address at GID index 1.")


def wiring_check(hostfile: Hostfile, wiring: Wiring, *, backend: str) -> Check:
    """Check that the rdma matrix is valid, and that each cell matches the cables.

    Args:
        hostfile: without a matrix, only the cabling is judged, and the check is never ok.
        wiring: of the same Macs in the same order.
        backend: the backend of the launch.
    """
    ring = backend == "jaccl-ring"
    if not any(hostfile.rdma):
        codes = (
            "missing",
            "half",
            "doubled",
            "loop",
            *(("mesh-limit",) if wiring.topology == "none" else ()),
        )
        wrong = [_cable_problem(issue.text) for issue in find_issues(wiring) if issue.code in codes]
        if wrong and wiring.topology not in ("mesh", "ring"):
            return judge("wiring", wrong, "")
        why = f"The cabling is a {wiring.topology}, but the hostfile has no rdma matrix to compare with it."
        if wiring.topology in ("none", "untested"):
            why = "The hostfile has no rdma matrix, and the cables of some Macs are unknown."
        return not_tested("wiring", why, "Write the hostfile: notebook 03, or `jaccl hostfile write`.")
    problems = [p for p in check(hostfile, backend=backend, environ={}) if p.code.startswith(_MATRIX_CODES)]
    if not any(problem.severity == "error" for problem in problems):
        problems += compare.cell_problems(hostfile, wiring, ring=ring)
    cells = len(compare.device_uses(hostfile, wiring, ring=ring))
    kind = "ring" if ring else "mesh"
    return judge("wiring", problems, f"All {cells} cells of the {kind} match the cables at both ends.")


def address_problems(hostfile: Hostfile, wiring: Wiring, *, backend: str) -> list[Problem]:
    """Return the problems of rank 0's address (over TCP: of every address) by hostfile and facts."""
    found = [p for p in check(hostfile, backend=backend, environ={}) if p.code.startswith(_ADDRESS_CODES)]
    if not found and hostfile.coordinator and len(hostfile) > 1:
        problem = compare.coordinator_problem(hostfile.coordinator, wiring.nodes, wiring.labels)
        found += [problem] if problem else []
    return found


def blocking(hostfile: Hostfile, *, backend: str) -> Problem | None:
    """Return the first error in the hostfile that no check covers and that prevents a scan."""
    judged = (*_MATRIX_CODES, *_ADDRESS_CODES)
    found = check(hostfile, backend=backend, environ={})
    return next((p for p in found if p.severity == "error" and not p.code.startswith(judged)), None)


def simulated(check: Check) -> Check:
    """Return the check marked as based on simulated facts."""
    return replace(check, proof=f"REHEARSAL, simulated: {check.proof}")


def _kind(what: str, version: str) -> object:
    """Return the part to compare: of Python major and minor version, as in `environment.check`."""
    numbers = version_tuple(version) if what == "version" else None
    return numbers[:2] if numbers else version


def _python_problems(label: str, node: NodeFacts, backend: str) -> list[Problem]:
    python = node.python
    if python is None:
        outcome = node.outcomes.get("python")
        if node.error is None and outcome is not None and outcome.status in ("missing", "failed"):
            text = f"The interpreter did not answer: {outcome.detail or outcome.status}."
            fix = "Name another with --python, or create the environment (notebook 02)."
            return [Problem("no-python", "error", label, text, fix)]
        text = "Its Python and packages are unknown."
        return [Problem(compare.UNTESTED, "warning", label, text, "Fix the connection, then scan again.")]
    fix = "Install it in its environment (notebook 02, or pip), or name another interpreter with --python."
    problems = [
        Problem(
            "no-package",
            "error",
            label,
            f"{name.replace('_', '-')} is not installed in {python.executable}.",
            fix,
        )
        for name in PACKAGES
        if getattr(python, name) is None
    ]
    if backend == "jaccl-ring" and python.mlx == BROKEN_RING_MLX:
        text = f"mlx {BROKEN_RING_MLX} returns wrong values from jaccl-ring's all_gather."
        problems.append(
            Problem("mlx-ring", "error", label, text, "Install mlx 0.32.3 or newer on every Mac.")
        )
    return problems


def _cable_problem(text: str) -> Problem:
    return Problem(
        "cabling", "error", "cabling", text, "Follow the cable moves (notebook 03), then scan again."
    )


def _all(size: int) -> str:
    return f"all {size} Macs" if size > 1 else "the one Mac"


def _ports(used: Sequence[compare.DeviceUse]) -> str:
    count = len({(use.rank, use.device) for use in used})
    return f"All {count} ports in use"
