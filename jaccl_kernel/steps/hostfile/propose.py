"""Derives a hostfile from the facts of the Macs: topology, coordinator, matrix; pure.

A mesh if every pair is cabled; else a ring, with a note; else no hostfile. The base hostfile's envs and
unknown keys are preserved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import BACKENDS
from jaccl_kernel.hostfile.hostfile import Cell, Hostfile
from jaccl_kernel.hostfile.lint import check, effective_backend
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.topology import compare, coordinator, moves
from jaccl_kernel.topology.coordinator import Coordinator
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.issues import find_issues
from jaccl_kernel.topology.tools._text import ipv4 as is_ipv4
from jaccl_kernel.topology.wiring import Wiring, build_wiring

BROKEN_RING_MLX = "0.32.2"
"""Its jaccl-ring all_gather returns wrong values; fixed in 0.32.3 (field guide)."""

Topology = Literal["mesh", "ring", "tcp ring", "single"]


@dataclass(frozen=True)
class Proposal:
    """A hostfile for the Macs, or the problems that prevent one.

    Attributes:
        hostfile: the proposal; None if there are problems.
        topology: the topology that JACCL, or the TCP ring, uses.
        coordinator: rank 0's address, and why it was chosen.
        order: the nodes in rank order, as indices into the cluster; different from 0, 1, … only for a ring.
        problems: what prevents a hostfile.
        findings: what prevents a job with this hostfile, such as ports that are down.
        notes: further notes.
        moves: the cable moves to a mesh (or to a ring, if the Macs lack the ports for a mesh).
    """

    hostfile: Hostfile | None
    topology: Topology | None
    coordinator: Coordinator | None
    order: tuple[int, ...]
    problems: tuple[Problem, ...] = ()
    findings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()


def propose(base: Hostfile, facts: Sequence[NodeFacts], *, backend: str | None = None) -> Proposal:
    """Derive the hostfile for these Macs.

    Args:
        base: names the hosts, one for each of `facts`; its envs and unknown keys are preserved. For a
            rehearsal it is the hostfile that real Macs would have (`rehearsal.plan.as_if_real`).
        facts: the facts of the Macs.
        backend: "jaccl" for a mesh, "jaccl-ring", "ring" for TCP; None for a mesh, or else a ring.

    Raises:
        InputError: an unknown backend.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
    wiring = build_wiring(facts)
    notes = [issue.text for issue in find_issues(wiring)]
    to_do = tuple(move.text for move in moves.plan(wiring).moves)
    problems = [
        _unreachable(node, label) for node, label in zip(facts, wiring.labels, strict=True) if node.error
    ]
    topology, why = _topology(wiring, backend)
    if topology is None and len(facts) > 1:
        problems.append(why)
    elif why.message:
        notes.insert(0, why.message)
    order = wiring.ring or () if topology == "ring" else tuple(range(len(facts)))
    chosen = coordinator.choose([facts[node] for node in order]) if order else None
    if chosen is None and topology not in (None, "single") and not facts[order[0]].error:
        problems.append(_no_address(facts[order[0]], wiring.labels[order[0]]))
    if chosen and chosen.note:
        notes.append(f"Coordinator {chosen.reason}: {chosen.note}.")
    problems += _broken_ring(topology, facts)
    if topology is None or problems:
        return Proposal(None, topology, chosen, order, tuple(problems), (), tuple(notes), to_do)
    made = _hostfile(base, facts, wiring, topology, order, chosen)
    if isinstance(made, Problem):
        return Proposal(None, topology, chosen, order, (made,), (), tuple(notes), to_do)
    findings = explain(made, [facts[node] for node in order])
    return Proposal(made, topology, chosen, order, (), tuple(findings), tuple(notes), to_do)


def explain(hostfile: Hostfile, facts: Sequence[NodeFacts], *, backend: str | None = None) -> list[Problem]:
    """Return the problems of a hostfile, by itself and compared with these Macs and their cables, per cell.

    Args:
        hostfile: any hostfile, also one written by hand.
        facts: of its Macs, in rank order.
        backend: the backend of the launch; None for its own.
    """
    wiring = build_wiring(facts)
    meant = effective_backend(hostfile, backend)
    found = check(hostfile, backend=meant, environ={})
    if meant == "ring" or len(hostfile) == 1 or not any(hostfile.rdma):
        return [*found, *_address(hostfile, wiring)]
    ring = meant == "jaccl-ring"
    cells = compare.cell_problems(hostfile, wiring, ring=ring)
    wrong = {problem.where for problem in cells}  # a wrong cell makes its port irrelevant
    used = [use for use in compare.device_uses(hostfile, wiring, ring=ring) if use.where not in wrong]
    ports = [*compare.port_problems(used, wiring), *compare.gid_problems(used, wiring)]
    return [*found, *_address(hostfile, wiring), *cells, *ports]


def _address(hostfile: Hostfile, wiring: Wiring) -> list[Problem]:
    address = hostfile.coordinator
    if address is None or is_ipv4(address) is None or len(hostfile) == 1:
        return []  # `check` has reported it
    problem = compare.coordinator_problem(address, wiring.nodes, wiring.labels)
    return [problem] if problem else []


def _topology(wiring: Wiring, backend: str | None) -> tuple[Topology | None, Problem]:
    """Return the topology of the cabling with a note, or None with the problem."""
    size, found = len(wiring.nodes), wiring.topology
    missing = [pair for pair in wiring.pairs if wiring.state(pair) != "full"]
    lacks = ", ".join(" and ".join(wiring.labels[i] for i in pair) for pair in missing[:4])
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    no_mesh = f"no proven cable joins {lacks}{more}" if missing else "the Macs lack the ports for a mesh"
    if size == 1:
        return "single", _note("The cluster is one Mac: its jobs need no JACCL hostfile and no cable.")
    if backend == "ring":
        return "tcp ring", _note("The TCP ring uses no RDMA: it runs over the LAN and is much slower.")
    if backend in (None, "jaccl") and found == "mesh":
        return "mesh", _note("")
    has_ring = wiring.ring is not None and wiring.has_ports_for(min(2, size - 1))
    if backend in (None, "jaccl-ring") and has_ring:
        if backend:
            return "ring", _note("")
        return "ring", _note(
            f"This is a RING, not a mesh: {no_mesh}. A ring works (backend jaccl-ring), but small messages "
            "have lower latency in a mesh."
        )
    if wiring.untested:
        names = " and ".join(wiring.labels[i] for i in wiring.untested)
        return None, _blocked("wiring-untested", f"The cables of {names} are unknown.", "Scan again.")
    kind = "ring" if backend == "jaccl-ring" else "mesh" if backend == "jaccl" else "mesh, nor a ring"
    fix = "Follow the cable moves, then scan again."
    if not missing:
        fix = "Remove the Macs that lack Thunderbolt 5 ports, or use the slow TCP ring: --backend ring."
    if backend == "jaccl" and has_ring:
        fix += " Or use the existing ring: --backend jaccl-ring."
    return None, _blocked("no-topology", f"The cabling is no {kind}: {no_mesh}.", fix)


def _hostfile(
    base: Hostfile,
    facts: Sequence[NodeFacts],
    wiring: Wiring,
    topology: Topology,
    order: Sequence[int],
    chosen: Coordinator | None,
) -> Hostfile | Problem:
    matrix: Sequence[Sequence[Cell]] = [()] * len(order)
    if topology == "mesh":
        matrix = wiring.rdma_matrix()
    elif topology == "ring":
        matrix = wiring.ring_matrix() or []
    if len(matrix) != len(order) or (topology == "mesh" and _holes(matrix)):
        return _blocked(
            "no-interface",
            "The network interface of a cabled port is unknown, so its RDMA device has no name.",
            "Scan again: networksetup must answer on every Mac.",
        )
    hosts = []
    for rank, node in enumerate(order):
        host = base.hosts[node]
        row = tuple(tuple(cell) if isinstance(cell, list) else cell for cell in matrix[rank])
        # every host gets its address, so that --backend ring works from the same file
        own = coordinator.choose([facts[node], *facts[:node], *facts[node + 1 :]])
        if own is None and topology == "tcp ring":
            return _no_address(facts[node], wiring.labels[node])
        if rank == 0 and chosen and topology != "tcp ring":
            own = chosen
        hosts.append(replace(host, ips=(own.address,) if own else host.ips, rdma=row))
    backend = {"mesh": "jaccl", "ring": "jaccl-ring", "tcp ring": "ring", "single": base.backend}[topology]
    # a bare list names no backend, and plain mlx.launch then silently uses the TCP ring
    bare = base.bare and not backend
    return replace(base, hosts=tuple(hosts), backend=backend, bare=bare, path=None)


def _holes(matrix: Sequence[Sequence[Cell]]) -> bool:
    return any(cell is None for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j)


def _unreachable(node: NodeFacts, label: str) -> Problem:
    what, _, fix = (node.error or "").partition(" Fix: ")
    return Problem("unreachable", "error", label, what, fix or "Fix ssh to it, then scan again.")


def _no_address(node: NodeFacts, label: str) -> Problem:
    why = (
        "its addresses are unknown" if node.lan is None else "it has neither an Ethernet nor a Wi-Fi address"
    )
    fix = "Connect it to the other Macs' network, then scan again."
    return Problem("no-coordinator", "error", label, f"{label} cannot be the coordinator: {why}.", fix)


def _broken_ring(topology: Topology | None, facts: Sequence[NodeFacts]) -> list[Problem]:
    who = [node.name for node in facts if node.python and node.python.mlx == BROKEN_RING_MLX]
    if topology != "ring" or not who:
        return []
    text = f"mlx {BROKEN_RING_MLX} (on {', '.join(who)}) returns wrong values from jaccl-ring's all_gather."
    fix = "Install mlx 0.32.3 or newer on every Mac."
    return [Problem("mlx-ring", "error", "jaccl-ring", text, fix)]


def _note(text: str) -> Problem:
    return Problem("note", "warning", "cabling", text, "")


def _blocked(code: str, text: str, fix: str) -> Problem:
    return Problem(code, "error", "cabling", text, fix)
