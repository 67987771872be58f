"""Lists the problems of a wiring, each as one sentence that names the Macs and ports. Pure.

`moves.py` plans the cable changes that fix them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaccl_kernel.hostfile.matrix import MESH_MAX_RANKS
from jaccl_kernel.topology.wiring import Cable, ForeignDevice, Pair, Wiring

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
    "foreign-device",
    "no-interface",
    "no-device",
    "beside-ethernet",
    "hub",
    "peer-rdma-off",
]

BESIDE_ETHERNET = (
    "On a Mac Studio, the Thunderbolt port beside Ethernet (en2) carries no RDMA, according to exo's README "
    "(Apple's TN3205 does not mention it, and it is not proven here)."
)


@dataclass(frozen=True)
class Issue:
    """One problem of the cabling: a code, a sentence, and the indices of the Macs."""

    code: Code
    text: str
    nodes: tuple[int, ...]


def find_issues(wiring: Wiring) -> tuple[Issue, ...]:
    """All problems of the cabling, the most severe first."""
    return tuple(_issues(wiring))


def _issues(wiring: Wiring) -> Iterator[Issue]:
    size = len(wiring.nodes)
    if size > MESH_MAX_RANKS:
        text = f"A mesh supports at most {MESH_MAX_RANKS} Macs (got {size}): remove some, or use a ring."
        if wiring.topology == "none":
            text += (
                " The cables form no ring, which needs one from each Mac to the next and back to the first."
            )
        yield Issue("mesh-limit", text, tuple(range(size)))
    yield from _node_issues(wiring)
    for ends in wiring.duplicates:
        who = sorted({end.node for end in ends})
        same = "Check whether a Mac is in the list twice." if len(who) > 1 else "Restart that Mac."
        text = f"{' and '.join(map(wiring.place, ends))} report the same Thunderbolt identity. {same}"
        yield Issue("duplicate", text, tuple(who))
    for pair in wiring.pairs:
        yield from _pair_issues(wiring, pair)
    for cable in wiring.cables:
        yield from _cable_issues(wiring, cable)
    for device in wiring.foreign_devices:
        yield Issue("foreign-device", describe(wiring, device), (device.end.node,))


def _node_issues(wiring: Wiring) -> Iterator[Issue]:
    labels, needed = wiring.labels, len(wiring.nodes) - 1
    for i in wiring.untested:
        yield Issue("untested", f"The Thunderbolt ports of {labels[i]} are not tested.", (i,))
    tested = [i for i in range(len(wiring.nodes)) if i not in wiring.untested]
    counts = {i: len(wiring.usable_ports(i)) for i in tested}
    for count in sorted(set(counts.values())):
        if count < needed < MESH_MAX_RANKS:
            who = tuple(i for i in tested if counts[i] == count)
            names = _listed([labels[i] for i in who])
            ports = f"{count or 'no'} Thunderbolt 5 port{'s' * (count != 1)}"
            if any(port.beside_ethernet for i in who for port in wiring.nodes[i].ports or ()):
                ports += " for RDMA (the one beside Ethernet does not count)"
            has = f"{names} {'has' if len(who) == 1 else 'have'} {ports}"
            fix = (
                f"Use a ring, or at most {count + 1} Macs." if count > 1 else f"Remove {names} from the list."
            )
            yield Issue(
                "few-ports", f"{has}, but a mesh of {needed + 1} Macs needs {needed} on each. {fix}", who
            )
    cabled = {node for cable in wiring.cables for node in cable.pair}
    for i in tested:
        if i in cabled and wiring.nodes[i].devices == ():
            yield Issue("no-device", f"{labels[i]} lists no RDMA device: RDMA is off or not supported.", (i,))


def _pair_issues(wiring: Wiring, pair: Pair) -> Iterator[Issue]:
    names = _listed([wiring.labels[i] for i in pair])
    cables = wiring.between(pair)
    mesh = not wiring.is_only_a_ring and len(wiring.nodes) <= MESH_MAX_RANKS
    if wiring.state(pair) == "missing" and mesh:
        yield Issue("missing", f"No cable connects {names}.", pair)
    if len(cables) > 1:
        where = "; ".join(f"{wiring.place(c.a)} to {wiring.place(c.b)}" for c in cables)
        used = len(wiring.used(pair))
        which = (
            "Jobs use all of them (mlx from 0.32.4 on)."
            if used == len(cables)
            else f"Jobs use {used or 'none'} of them, as many as every other pair has."
        )
        yield Issue("doubled", f"{len(cables)} cables connect {names}: {where}. {which}", pair)


def _cable_issues(wiring: Wiring, cable: Cable) -> Iterator[Issue]:
    who = tuple(sorted(set(cable.pair)))
    a, b = wiring.place(cable.a), wiring.place(cable.b)
    if cable.is_loop:
        yield Issue("loop", f"A cable connects {a} to {b}.", who)
        return
    if cable.seen == "half":
        yield Issue("half", f"Only one end detects the cable between {a} and {b}.", who)
    if cable.is_slow:
        yield Issue("slow", f"The cable between {a} and {b} runs at {cable.gbps:g} Gb/s, not 80.", who)
    if cable.hub:
        text = f"{cable.hub} is between {a} and {b}: RDMA can work through a Thunderbolt 5 hub, but is slower"
        yield Issue("hub", f"{text} than a direct cable and hardly tested (exo#1982).", who)
    for end, other in ((cable.a, cable.b), (cable.b, cable.a)):
        if wiring.port(end).beside_ethernet:
            place = wiring.place(end)
            yield Issue("beside-ethernet", f"A cable is in {place}. {BESIDE_ETHERNET}", (end.node,))
        peer, mac = wiring.nodes[other.node], wiring.labels[other.node]
        if peer.devices != () and peer.thunderbolt5 is not False and wiring.offers_no_rdma(end, other):
            text = f"RDMA is off on {mac}: it does not announce its RDMA service to {wiring.place(end)}."
            yield Issue("peer-rdma-off", text, (other.node,))
        device, node = wiring.port(end).rdma_device, wiring.nodes[end.node]
        if device is None:
            text = f"The network interface of {wiring.place(end)} is unknown, and so is its RDMA device."
            yield Issue("no-interface", text, (end.node,))
        elif node.devices and node.device(device) is None:
            text = f"{wiring.place(end)} should have the RDMA device {device}, but the Mac does not list it."
            yield Issue("no-device", text, (end.node,))


def _listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def describe(wiring: Wiring, device: ForeignDevice) -> str:
    """One sentence about a device that is not connected by a cable of this cluster."""
    place, label = wiring.place(device.end), device.plugged.label
    if device.kind == "device":
        return f"{label} is connected to {place}."
    if device.kind == "dock":
        return f"{label} is between {place} and a Mac that does not list this port: use a direct cable."
    if device.kind == "stale":
        return f"{place} lists {label} as its peer, but the peer does not list this port."
    if wiring.untested:
        maybe = " or ".join(wiring.labels[i] for i in wiring.untested)
        return (
            f"{place} is connected to an unknown Mac ({label}), possibly {maybe}, whose ports are not tested."
        )
    off = ", whose RDMA is off" if device.plugged.rdma_service is False else ""
    return f"{place} is connected to a Mac that is not in the list ({label}){off}."
