"""What is wrong or odd with a wiring, each as one sentence with the Macs and ports named; pure.

What to do about the cables is in `moves.py`; here is only what is so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaccl_kernel.cluster.matrix import MESH_MAX_RANKS
from jaccl_kernel.cluster.wiring import Cable, Pair, Stranger, Wiring

Code = Literal[
    "mesh-limit",
    "few-ports",
    "untested",
    "duplicate",
    "missing",
    "half",
    "doubled",
    "loop",
    "slow",
    "stranger",
    "no-interface",
    "no-device",
]


@dataclass(frozen=True)
class Flaw:
    """One thing to know about the cabling: a code for programs, a sentence for people, and the Macs."""

    code: Code
    text: str
    nodes: tuple[int, ...]


def flaws(wiring: Wiring) -> tuple[Flaw, ...]:
    """Everything that is wrong or odd with the cabling, what weighs most first."""
    return tuple(_flaws(wiring))


def _flaws(wiring: Wiring) -> Iterator[Flaw]:
    size = len(wiring.nodes)
    if size > MESH_MAX_RANKS:
        text = f"A mesh takes at most {MESH_MAX_RANKS} Macs, not {size}: leave some out, or use a ring."
        if wiring.topology == "none":
            text += " Their cables make no ring: that takes one from each to the next, and back to the first."
        yield Flaw("mesh-limit", text, tuple(range(size)))
    yield from _node_flaws(wiring)
    for ends in wiring.duplicates:
        who = sorted({end.node for end in ends})
        same = "Is one Mac in the list twice?" if len(who) > 1 else "Restart that Mac."
        text = f"The same Thunderbolt identity at {' and '.join(map(wiring.place, ends))}. {same}"
        yield Flaw("duplicate", text, tuple(who))
    for pair in wiring.pairs:
        yield from _pair_flaws(wiring, pair)
    for cable in wiring.cables:
        yield from _cable_flaws(wiring, cable)
    for stranger in wiring.strangers:
        yield Flaw("stranger", describe(wiring, stranger), (stranger.end.node,))


def _node_flaws(wiring: Wiring) -> Iterator[Flaw]:
    labels, needed = wiring.labels, len(wiring.nodes) - 1
    for i in wiring.untested:
        yield Flaw("untested", f"{labels[i]} did not tell its Thunderbolt ports: they are not tested.", (i,))
    told = [i for i in range(len(wiring.nodes)) if i not in wiring.untested]
    counts = {i: len(wiring.usable_ports(i)) for i in told}
    for count in sorted(set(counts.values())):
        if count < needed < MESH_MAX_RANKS:
            who = tuple(i for i in told if counts[i] == count)
            names = _listed([labels[i] for i in who])
            ports = f"{count or 'no'} Thunderbolt 5 port{'s' * (count != 1)}"
            has = f"{names} {'has' if len(who) == 1 else 'have'} {ports}"
            way = f"Use a ring, or at most {count + 1} Macs." if count > 1 else f"Leave {names} out."
            yield Flaw("few-ports", f"{has}, and a mesh of {needed + 1} needs {needed} on each. {way}", who)
    cabled = {node for cable in wiring.cables for node in cable.pair}
    for i in told:
        if i in cabled and wiring.nodes[i].devices == ():
            yield Flaw(
                "no-device", f"{labels[i]} lists no RDMA device: RDMA is off there, or it cannot do it.", (i,)
            )


def _pair_flaws(wiring: Wiring, pair: Pair) -> Iterator[Flaw]:
    names = _listed([wiring.labels[i] for i in pair])
    cables = wiring.between(pair)
    mesh = not wiring.is_only_a_ring and len(wiring.nodes) <= MESH_MAX_RANKS
    if wiring.state(pair) == "missing" and mesh:
        yield Flaw("missing", f"No cable between {names}.", pair)
    if len(cables) > 1:
        where = "; ".join(f"{wiring.place(c.a)} to {wiring.place(c.b)}" for c in cables)
        yield Flaw("doubled", f"{len(cables)} cables between {names}: {where}. A mesh uses one.", pair)


def _cable_flaws(wiring: Wiring, cable: Cable) -> Iterator[Flaw]:
    who = tuple(sorted(set(cable.pair)))
    a, b = wiring.place(cable.a), wiring.place(cable.b)
    if cable.is_loop:
        yield Flaw("loop", f"A cable leads from {a} back to {b}.", who)
        return
    if cable.seen == "half":
        yield Flaw("half", f"Only one end sees the cable between {a} and {b}.", who)
    if cable.is_slow:
        yield Flaw("slow", f"The cable between {a} and {b} runs at {cable.gbps:g} Gb/s, not 80.", who)
    for end in (cable.a, cable.b):
        device, node = wiring.port(end).rdma_device, wiring.nodes[end.node]
        if device is None:
            text = f"No network interface is known for {wiring.place(end)}, so its RDMA device has no name."
            yield Flaw("no-interface", text, (end.node,))
        elif node.devices and node.device(device) is None:
            text = f"{wiring.place(end)} should have the RDMA device {device}, which is not there."
            yield Flaw("no-device", text, (end.node,))


def _listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def describe(wiring: Wiring, stranger: Stranger) -> str:
    """What stands on a port that is no cable of this cluster, as a sentence."""
    place, label = wiring.place(stranger.end), stranger.plugged.label
    if stranger.kind == "device":
        return f"{label} is plugged into {place}."
    if stranger.kind == "dock":
        return f"{label} stands between {place} and a Mac: RDMA needs a direct cable."
    if stranger.kind == "stale":
        return f"{place} says that it leads to a {label}, which does not answer to it."
    if wiring.untested:
        maybe = " or ".join(wiring.labels[i] for i in wiring.untested)
        return f"{place} leads to a Mac that is not known yet ({label}): perhaps {maybe}, which did not tell."
    return f"{place} leads to a Mac that is not in the list ({label})."
