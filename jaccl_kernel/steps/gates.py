"""Verify's gates that judge facts: each passed, failed or not tested, with what was seen; pure.

A gate fails if one Mac or one cell does; it passes only if all were seen and none is wrong; otherwise it is
"not tested", with what stood in the way. Gates that touch the Macs are in `live_gates.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaccl_kernel.cluster import compare
from jaccl_kernel.cluster.check import check
from jaccl_kernel.cluster.facts import NodeFacts, version_tuple
from jaccl_kernel.cluster.flaws import flaws
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.cluster.readiness import readiness
from jaccl_kernel.cluster.wiring import Wiring
from jaccl_kernel.steps.propose import BROKEN_RING_MLX

Verdict = Literal["passed", "failed", "not tested"]

TITLES = {
    "ssh": "ssh reaches every Mac",
    "environment": "the same Python, mlx, mlx-lm and transformers everywhere",
    "rdma": "RDMA over Thunderbolt is ready on every Mac",
    "ports": "the ports in use are active",
    "gid": "an IPv4 GID at index 1 of every port in use",
    "wiring": "the rdma matrix is what is plugged in",
    "coordinator": "rank 0's address is its own, and the others reach it",
    "stale": "no rank, mlx.launch or mlx_lm runs on the Macs already",
    "group": "the ranks join one group of the right size",
    "sums": "all_sum and all_gather of rank-dependent values are right",
    "latency": "a first latency figure",
}
"""Every gate, in the order in which they are tried."""

PACKAGES = ("mlx", "mlx_lm", "transformers", "jaccl_kernel")
_MATRIX_CODES = ("rdma-", "ring-", "mesh-", "device-shared", "wires-")
_ADDRESS_CODES = ("coordinator-", "ips-")


@dataclass(frozen=True)
class Gate:
    """One gate's outcome.

    Attributes:
        name: a key of TITLES.
        verdict: "passed" is a proof; "not tested" is no opinion.
        proof: what was seen, or, of one not tested, why not.
        problems: what is wrong, place by place; of one not tested, what could not be seen.
        seconds: how long it took.
    """

    name: str
    verdict: Verdict
    proof: str
    problems: tuple[Problem, ...] = field(default=())
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """What the gate asks for."""
        return TITLES[self.name]

    @property
    def cause(self) -> str:
        """The first cause, with its place; "" where nothing is wrong."""
        first = next((p for p in self.problems if p.severity == "error"), None)
        return f"{first.where}: {first.message}" if first else ""

    @property
    def fix(self) -> str:
        """What to do about the first cause, or to have it tested."""
        worst = sorted(self.problems, key=lambda problem: problem.severity != "error")
        return worst[0].fix if worst and self.verdict != "passed" else ""

    def to_json(self) -> dict[str, Any]:
        """The outcome for programs and records."""
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


def not_tested(name: str, why: str, fix: str = "") -> Gate:
    """A gate that could not be tried."""
    problems = (Problem(compare.UNTESTED, "warning", "", why, fix),) if fix else ()
    return Gate(name, "not tested", why, problems)


def judge(name: str, problems: Iterable[Problem], proof: str) -> Gate:
    """The gate that these problems make; `proof` is told when it passes."""
    found = tuple(problems)
    errors = [problem for problem in found if problem.severity == "error"]
    unseen = [problem for problem in found if problem.code == compare.UNTESTED]
    if errors:
        count = f"{len(errors)} problem{'s' * (len(errors) > 1)}"
        return Gate(name, "failed", f"{count}: {errors[0].where}: {errors[0].message}", found)
    if unseen:
        where = f"{unseen[0].where}: " if unseen[0].where else ""
        return Gate(name, "not tested", f"{where}{unseen[0].message}", found)
    hints = "".join(f" Note: {problem.where}: {problem.message}" for problem in found)
    return Gate(name, "passed", proof + hints, found)


def ssh(wiring: Wiring) -> Gate:
    """Whether every node answered the scan."""
    problems = []
    for node, label in zip(wiring.nodes, wiring.labels, strict=True):
        if node.error is not None:
            what, _, fix = node.error.partition(" Fix: ")
            fix = fix or f"Try by hand: ssh {node.ssh} true"
            problems.append(Problem("unreachable", "error", label, what, fix))
    size = len(wiring.nodes)
    return judge("ssh", problems, f"Answers came from {_all(size)}: {', '.join(wiring.labels)}.")


def environment(wiring: Wiring, imports: Sequence[Problem], *, backend: str) -> Gate:
    """Whether all run the same versions; `imports` are the problems of trying to import this package."""
    told = [(label, node) for node, label in zip(wiring.nodes, wiring.labels, strict=True)]
    problems = [problem for label, node in told for problem in _python_problems(label, node, backend)]
    first = next(((label, node.python) for label, node in told if node.python is not None), None)
    if first is None:
        return judge("environment", [*problems, *imports], "")
    for label, node in told:
        for what in ("version", *PACKAGES):
            mine, here = getattr(first[1], what), getattr(node.python, what, None)
            if node.python is not None and mine and here and _kind(what, mine) != _kind(what, here):
                name = "Python" if what == "version" else what.replace("_", "-")
                text = f"It has {name} {here}, and {first[0]} has {mine}."
                fix = "Make the same environment on every Mac (notebook 02, or pip there)."
                problems.append(Problem("version-skew", "error", label, text, fix))
    python = first[1]
    builds = Counter(node.build for _, node in told if node.build)
    if len(builds) > 1:
        text = f"The Macs run different macOS builds: {', '.join(sorted(builds))}; RDMA wants one everywhere."
        problems.append(Problem("macos-skew", "warning", "macOS", text, "Update all to the same build."))
    versions = ", ".join(f"{name.replace('_', '-')} {getattr(python, name)}" for name in PACKAGES)
    proof = f"Python {python.version}, {versions} on {_all(len(told))}; jaccl_kernel imports there."
    return judge("environment", [*problems, *imports], proof)


def rdma(wiring: Wiring) -> Gate:
    """Whether each Mac may use RDMA over Thunderbolt."""
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


def ports(used: Sequence[compare.Use], wiring: Wiring) -> Gate:
    """Whether every device that the job would use is up."""
    if not used:
        return not_tested("ports", "No cable and no matrix say which ports would be used.")
    slow = [
        Problem(
            "slow-link", "warning", "cabling", flaw.text, "Use a Thunderbolt 5 cable, in ports of that kind."
        )
        for flaw in flaws(wiring)
        if flaw.code == "slow"
    ]
    problems = [*compare.port_problems(used, wiring), *slow]
    return judge("ports", problems, f"{_ports(used)} say PORT_ACTIVE.")


def gid(used: Sequence[compare.Use], wiring: Wiring) -> Gate:
    """Whether every device that the job would use has its IPv4 GID where JACCL sends from."""
    if not used:
        return not_tested("gid", "No cable and no matrix say which ports would be used.")
    problems = compare.gid_problems(used, wiring)
    return judge("gid", problems, f"{_ports(used)} have their IPv4 address at GID index 1.")


def wiring_gate(hostfile: Hostfile, wiring: Wiring, *, backend: str) -> Gate:
    """Whether the matrix is sound, and each of its cells leads where the cables do.

    Args:
        hostfile: its matrix may be absent: then the cabling is judged, and no pass is given.
        wiring: of the same Macs in the same order.
        backend: what it will be launched with.
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
        wrong = [_flaw(flaw.text) for flaw in flaws(wiring) if flaw.code in codes]
        if wrong and wiring.topology not in ("mesh", "ring"):
            return judge("wiring", wrong, "")
        why = f"The cabling is a {wiring.topology}, but the hostfile has no rdma matrix to hold against it."
        if wiring.topology in ("none", "untested"):
            why = "The hostfile has no rdma matrix, and not all Macs told their cables."
        return not_tested("wiring", why, "Write the hostfile: notebook 03, or `jaccl hostfile write`.")
    problems = [p for p in check(hostfile, backend=backend, environ={}) if p.code.startswith(_MATRIX_CODES)]
    if not any(problem.severity == "error" for problem in problems):
        problems += compare.cell_problems(hostfile, wiring, ring=ring)
    cells = len(compare.uses(hostfile, wiring, ring=ring))
    kind = "ring" if ring else "mesh"
    return judge("wiring", problems, f"All {cells} cells of the {kind} lead where both ends' cables do.")


def address_problems(hostfile: Hostfile, wiring: Wiring, *, backend: str) -> list[Problem]:
    """What is wrong with rank 0's address (or, over TCP, with anyone's), as far as files and facts tell."""
    found = [p for p in check(hostfile, backend=backend, environ={}) if p.code.startswith(_ADDRESS_CODES)]
    if not found and hostfile.coordinator and len(hostfile) > 1:
        problem = compare.coordinator_problem(hostfile.coordinator, wiring.nodes, wiring.labels)
        found += [problem] if problem else []
    return found


def blocking(hostfile: Hostfile, *, backend: str) -> Problem | None:
    """The first thing in the file that no gate judges, and that keeps the Macs from being asked at all."""
    judged = (*_MATRIX_CODES, *_ADDRESS_CODES)
    found = check(hostfile, backend=backend, environ={})
    return next((p for p in found if p.severity == "error" and not p.code.startswith(judged)), None)


def simulated(gate: Gate) -> Gate:
    """The gate as a rehearsal must show it: judged on simulated facts."""
    return replace(gate, proof=f"REHEARSAL, simulated: {gate.proof}")


def _kind(what: str, version: str) -> object:
    """What has to be the same: of Python the first two numbers, as in the environment's own check."""
    numbers = version_tuple(version) if what == "version" else None
    return numbers[:2] if numbers else version


def _python_problems(label: str, node: NodeFacts, backend: str) -> list[Problem]:
    python = node.python
    if python is None:
        outcome = node.outcomes.get("python")
        if node.error is None and outcome is not None and outcome.status in ("missing", "failed"):
            text = f"The interpreter did not answer: {outcome.detail or outcome.status}."
            fix = "Name another with --python, or make the environment (notebook 02)."
            return [Problem("no-python", "error", label, text, fix)]
        text = "It did not tell its Python and packages."
        return [Problem(compare.UNTESTED, "warning", label, text, "Make that Mac answer, then scan again.")]
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
        text = f"mlx {BROKEN_RING_MLX} returns garbage from jaccl-ring's all_gather."
        problems.append(
            Problem("mlx-ring", "error", label, text, "Install mlx 0.32.3 or newer on every Mac.")
        )
    return problems


def _flaw(text: str) -> Problem:
    return Problem(
        "cabling", "error", "cabling", text, "Follow the cable moves (notebook 03), then scan again."
    )


def _all(size: int) -> str:
    return f"all {size} Macs" if size > 1 else "the one Mac"


def _ports(used: Sequence[compare.Use]) -> str:
    count = len({(use.rank, use.device) for use in used})
    return f"All {count} ports in use"
