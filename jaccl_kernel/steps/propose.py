"""From the facts of the Macs to the hostfile that fits them: topology, coordinator, matrix; pure.

A mesh where every pair is cabled; a ring where that is all there is, which is said and never silent; nothing
where neither is. What the base hostfile says besides (envs, keys that we do not know) is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaccl_kernel.cluster import compare, coordinator, moves
from jaccl_kernel.cluster._text import ipv4 as is_ipv4
from jaccl_kernel.cluster.check import check, effective_backend
from jaccl_kernel.cluster.coordinator import Coordinator
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.flaws import flaws
from jaccl_kernel.cluster.hostfile import Cell, Hostfile
from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.cluster.wiring import Wiring, wire
from jaccl_kernel.errors import InputError
from jaccl_kernel.jobs.spec import BACKENDS

BROKEN_RING_MLX = "0.32.2"
"""Its jaccl-ring all_gather returns garbage; mended in 0.32.3 (field guide)."""

Topology = Literal["mesh", "ring", "tcp ring", "single"]


@dataclass(frozen=True)
class Proposal:
    """A hostfile that fits the Macs, or what keeps it from being made.

    Attributes:
        hostfile: the proposal; None if a problem stands in the way.
        topology: what JACCL, or the TCP ring, will make of it.
        coordinator: rank 0's address, and why that one.
        order: the nodes in rank order, as indices into the cluster; other than 0, 1, … only for a ring.
        problems: what stands in the way of a hostfile.
        findings: what will keep a job from running on it, such as ports that are down.
        notes: what else to know.
        moves: the cable moves to a mesh (or to a ring, where the Macs' ports allow no mesh).
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
    """The hostfile for these Macs.

    Args:
        base: names the hosts, one for each of `facts`; its envs and unknown keys are kept. Of a rehearsal it
            is what real Macs would have (`rehearsal.plan.as_if_real`).
        facts: what the Macs say.
        backend: "jaccl" for a mesh, "jaccl-ring", "ring" for TCP; None takes a mesh, else a ring.

    Raises:
        InputError: an unknown backend.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
    wiring = wire(facts)
    notes = [flaw.text for flaw in flaws(wiring)]
    to_do = tuple(move.text for move in moves.plan(wiring).moves)
    problems = [_silent(node, label) for node, label in zip(facts, wiring.labels, strict=True) if node.error]
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
    """What is wrong with a hostfile, alone and against these Macs and their cables, cell by cell.

    Args:
        hostfile: any that was read; hand-made ones too.
        facts: of its Macs, in rank order.
        backend: what it would be launched with; None for its own.
    """
    wiring = wire(facts)
    meant = effective_backend(hostfile, backend)
    found = check(hostfile, backend=meant, environ={})
    if meant == "ring" or len(hostfile) == 1 or not any(hostfile.rdma):
        return [*found, *_address(hostfile, wiring)]
    ring = meant == "jaccl-ring"
    cells = compare.cell_problems(hostfile, wiring, ring=ring)
    wrong = {problem.where for problem in cells}  # what else is wrong with another port is beside the point
    used = [use for use in compare.uses(hostfile, wiring, ring=ring) if use.where not in wrong]
    ports = [*compare.port_problems(used, wiring), *compare.gid_problems(used, wiring)]
    return [*found, *_address(hostfile, wiring), *cells, *ports]


def _address(hostfile: Hostfile, wiring: Wiring) -> list[Problem]:
    address = hostfile.coordinator
    if address is None or is_ipv4(address) is None or len(hostfile) == 1:
        return []  # `check` has named it already
    problem = compare.coordinator_problem(address, wiring.nodes, wiring.labels)
    return [problem] if problem else []


def _topology(wiring: Wiring, backend: str | None) -> tuple[Topology | None, Problem]:
    """What to make of the cabling, with a note in words; or None, and what stands in the way."""
    size, found = len(wiring.nodes), wiring.topology
    missing = [pair for pair in wiring.pairs if wiring.state(pair) != "full"]
    lacks = ", ".join(" and ".join(wiring.labels[i] for i in pair) for pair in missing[:4])
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    no_mesh = f"no proven cable joins {lacks}{more}" if missing else "the Macs lack the ports for a mesh"
    if size == 1:
        return "single", _note("There is one Mac: a job on it needs no hostfile of JACCL's, and no cable.")
    if backend == "ring":
        return "tcp ring", _note("The TCP ring uses no RDMA: it runs over the LAN, and is far slower.")
    if backend in (None, "jaccl") and found == "mesh":
        return "mesh", _note("")
    has_ring = wiring.ring is not None and wiring.has_ports_for(min(2, size - 1))
    if backend in (None, "jaccl-ring") and has_ring:
        if backend:
            return "ring", _note("")
        return "ring", _note(
            f"This is a RING, not a mesh: {no_mesh}. A ring works (backend jaccl-ring); in a mesh small "
            "messages are quicker."
        )
    if wiring.untested:
        names = " and ".join(wiring.labels[i] for i in wiring.untested)
        return None, _blocked(
            "wiring-untested", f"{names} did not tell where its cables lead.", "Scan again."
        )
    kind = "ring" if backend == "jaccl-ring" else "mesh" if backend == "jaccl" else "mesh, nor a ring"
    fix = "Follow the cable moves, then scan again."
    if not missing:
        fix = "Leave out the Macs that lack Thunderbolt 5 ports, or use the slow TCP ring: --backend ring."
    if backend == "jaccl" and has_ring:
        fix += " Or take the ring that there is: --backend jaccl-ring."
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
            "A cabled port has no network interface that is known, so its RDMA device has no name.",
            "Scan again: networksetup must answer on every Mac.",
        )
    hosts = []
    for rank, node in enumerate(order):
        host = base.hosts[node]
        row = tuple(tuple(cell) if isinstance(cell, list) else cell for cell in matrix[rank])
        if topology == "tcp ring":
            own = coordinator.choose([facts[node], *facts[:node], *facts[node + 1 :]])
            if own is None:
                return _no_address(facts[node], wiring.labels[node])
            hosts.append(replace(host, ips=(own.address,)))
        else:
            ips = (chosen.address,) if rank == 0 and chosen else host.ips
            hosts.append(replace(host, ips=ips, rdma=row))
    backend = {"mesh": "jaccl", "ring": "jaccl-ring", "tcp ring": "ring", "single": base.backend}[topology]
    # bare lists name no backend, and plain mlx.launch would then take the TCP ring without a word
    bare = base.bare and not backend
    return replace(base, hosts=tuple(hosts), backend=backend, bare=bare, path=None)


def _holes(matrix: Sequence[Sequence[Cell]]) -> bool:
    return any(cell is None for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j)


def _silent(node: NodeFacts, label: str) -> Problem:
    what, _, fix = (node.error or "").partition(" Fix: ")
    return Problem("unreachable", "error", label, what, fix or "Make ssh to it work, then scan again.")


def _no_address(node: NodeFacts, label: str) -> Problem:
    told = "did not tell its addresses" if node.lan is None else "has neither an Ethernet nor a Wi-Fi address"
    fix = "Connect it to the network that the other Macs are in, then scan again."
    return Problem("no-coordinator", "error", label, f"{label} {told}, and the ranks meet at one.", fix)


def _broken_ring(topology: Topology | None, facts: Sequence[NodeFacts]) -> list[Problem]:
    who = [node.name for node in facts if node.python and node.python.mlx == BROKEN_RING_MLX]
    if topology != "ring" or not who:
        return []
    text = f"mlx {BROKEN_RING_MLX} (on {', '.join(who)}) returns garbage from jaccl-ring's all_gather."
    fix = "Install mlx 0.32.3 or newer on every Mac."
    return [Problem("mlx-ring", "error", "jaccl-ring", text, fix)]


def _note(text: str) -> Problem:
    return Problem("note", "warning", "cabling", text, "")


def _blocked(code: str, text: str, fix: str) -> Problem:
    return Problem(code, "error", "cabling", text, fix)
