"""Derives the cables between the Macs from their facts, and the topology that the cables allow. Pure.

The result has the cables, the state of each pair of Macs, other connected devices, whether the cables form a
mesh or contain a ring, and the rdma matrix of each. A cable counts when both ends list each other; if only
one end lists it, it is "half"; a Mac without port facts is "untested". Nodes and ports are indices into the
facts and their `ports`. `issues.py` lists problems, `moves.py` the recommended cable changes, `diagram.py`
draws.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple

from jaccl_kernel.hostfile.matrix import MESH_MAX_RANKS, RING_MAX_WIRES, hamiltonian_cycle
from jaccl_kernel.topology.facts import THUNDERBOLT_5_GBPS, ConnectedDevice, NodeFacts, PortFacts

PairState = Literal["full", "half", "missing", "untested"]
Pair = tuple[int, int]
Matrix = list[list[str | list[str] | None]]


class End(NamedTuple):
    """One end of a cable: a node and one of its ports, as indices."""

    node: int
    port: int


@dataclass(frozen=True, order=True)
class Cable:
    """A cable between two ports, `a` before `b`. `gbps` is the lower of the speeds that its ends report.

    `seen` is "both" when each end lists the other, else "half": the cable was just moved, is loose, or the
    Mac at the other end sleeps. `hub` is the name of a hub or dock in between, which one end lists.
    """

    a: End
    b: End
    seen: Literal["both", "half"] = "both"
    gbps: float | None = None
    hub: str | None = None

    @property
    def pair(self) -> Pair:
        """The two nodes, smaller first; the same node twice for a cable from a Mac to itself."""
        return self.a.node, self.b.node

    @property
    def is_loop(self) -> bool:
        """Whether both ends are in the same Mac."""
        return self.a.node == self.b.node

    @property
    def is_slow(self) -> bool:
        """Whether the link is slower than Thunderbolt 5, because of the cable or of a Mac."""
        return self.gbps is not None and self.gbps < THUNDERBOLT_5_GBPS

    def end_at(self, node: int) -> End:
        """The end in that node."""
        return self.a if self.a.node == node else self.b


@dataclass(frozen=True)
class ForeignDevice:
    """A device on a port that is not connected by a cable of this cluster.

    `kind` is "device" (a dock, disk or display), "mac" (a Mac that is not in the list, or one without port
    facts), "dock" (a dock; the Mac behind it does not list this port) or "stale" (the port lists a peer port
    that another cable uses, or whose identity is not unique).
    """

    end: End
    kind: Literal["device", "mac", "dock", "stale"]
    plugged: ConnectedDevice


@dataclass(frozen=True)
class Wiring:
    """The cabling of a list of nodes; `build_wiring` creates it."""

    nodes: tuple[NodeFacts, ...]
    cables: tuple[Cable, ...]
    foreign_devices: tuple[ForeignDevice, ...]
    duplicates: tuple[tuple[End, ...], ...]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A unique name for each node, even if two Macs have the same name."""
        return distinct([node.name for node in self.nodes])

    @cached_property
    def untested(self) -> tuple[int, ...]:
        """The nodes without facts about their Thunderbolt ports."""
        return tuple(i for i, node in enumerate(self.nodes) if node.ports is None)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of nodes; a mesh needs one cable for each."""
        return tuple(combinations(range(len(self.nodes)), 2))

    def port(self, end: End) -> PortFacts:
        """The facts of the port at that end."""
        return (self.nodes[end.node].ports or ())[end.port]

    def place(self, end: End) -> str:
        """The port's name for messages: `port 3 of macstudio2`."""
        number = self.port(end).number
        name = f"port {number}" if number is not None else f"port {self.port(end).bus or '(unnamed)'}"
        return f"{name} of {self.labels[end.node]}"

    def between(self, pair: Pair) -> tuple[Cable, ...]:
        """The cables of a pair, the best first: confirmed, fast, with RDMA, direct, then mlx's order."""
        return self._by_pair.get(pair, ())

    @cached_property
    def _by_pair(self) -> dict[Pair, tuple[Cable, ...]]:
        def rank(cable: Cable) -> tuple[bool, bool, bool, bool, str]:
            order = self.port(cable.a).interface or ""
            no_rdma = not self._carries_rdma(cable)
            return cable.seen != "both", cable.is_slow, no_rdma, cable.hub is not None, order

        found: dict[Pair, tuple[Cable, ...]] = {}
        for cable in sorted(self.cables, key=rank):
            found[cable.pair] = (*found.get(cable.pair, ()), cable)
        return found

    def state(self, pair: Pair) -> PairState:
        """The state of a pair; `full` means that both ends confirm the cable."""
        if cables := self.between(pair):
            return "full" if cables[0].seen == "both" else "half"
        return "untested" if set(pair) & set(self.untested) else "missing"

    def has_ports_for(self, cables: int) -> bool:
        """Whether every node with port facts has at least `cables` Thunderbolt 5 ports."""
        tested = (i for i in range(len(self.nodes)) if i not in self.untested)
        return all(len(self.usable_ports(i)) >= cables for i in tested)

    @cached_property
    def mesh_fits(self) -> bool:
        """Whether JACCL and the Macs' ports allow a mesh of this many nodes, whatever the current cables."""
        return len(self.nodes) <= MESH_MAX_RANKS and self.has_ports_for(len(self.nodes) - 1)

    @cached_property
    def topology(self) -> Literal["single", "mesh", "ring", "none", "untested"]:
        """The topology that JACCL can use now: a mesh, else a ring; `untested` if port facts are missing.

        Both need Thunderbolt 5 on every Mac; pair states and matrices do not depend on that.
        """
        if len(self.nodes) < 2:
            return "single"
        if self.mesh_fits and all(self.state(pair) == "full" for pair in self.pairs):
            return "mesh"
        if self.ring is not None and self.has_ports_for(1 if len(self.nodes) == 2 else 2):
            return "ring"
        return "untested" if self.untested else "none"

    @property
    def is_only_a_ring(self) -> bool:
        """Whether it is a ring of Macs with too few ports for a mesh, so that no cable is missing."""
        return self.topology == "ring" and not self.mesh_fits

    @cached_property
    def ring(self) -> tuple[int, ...] | None:
        """An order of all nodes in which cables join each to the next and the last to the first, or None."""
        joined = {pair for pair in self.pairs if self.state(pair) == "full"}
        return hamiltonian_cycle(len(self.nodes), joined)

    def rdma_matrix(self) -> Matrix:
        """The mesh's rdma matrix: cell [i][j] has the devices of node i that connect to node j.

        A cell is a name, or a list of names if all pairs have several cables, as mlx.distributed_config
        writes it; the k-th names of both cells of a pair are the ends of one cable. The diagonal is None, and
        so are the cells of each pair without a cable that both ends confirm.
        """
        return self._matrix(range(len(self.nodes)), self.pairs)

    def ring_matrix(self) -> Matrix | None:
        """The rdma matrix of `ring`, with rows and columns in the ring's order: devices for neighbours only.

        The hosts of a hostfile must have the same order. None if there is no ring, or if one of its ports has
        no interface.
        """
        if self.ring is None:
            return None
        pairs = ring_pairs(self.ring)
        return self._matrix(self.ring, pairs) if all(map(self._wires, pairs)) else None

    def used(self, pair: Pair) -> tuple[Cable, ...]:
        """The cables of a pair that a job uses: as many as every other pair of the topology has."""
        pairs = ring_pairs(self.ring or ()) if self.is_only_a_ring else self.pairs
        return self._wires(pair)[: self._count(pairs)]

    def _matrix(self, order: Sequence[int], pairs: Collection[Pair]) -> Matrix:
        """The matrix of these pairs, with rows and columns in that order."""
        count, place = self._count(pairs), {node: rank for rank, node in enumerate(order)}
        matrix: Matrix = [[None] * len(order) for _ in order]
        for pair in pairs:
            cables = self._wires(pair)[:count]
            for node, peer in (pair, pair[::-1]):
                names = [self.port(cable.end_at(node)).rdma_device or "" for cable in cables]
                if names:
                    matrix[place[node]][place[peer]] = names[0] if count == 1 else names
        return matrix

    def _count(self, pairs: Collection[Pair]) -> int:
        """The number of cables that all pairs have, as JACCL uses equally many everywhere; at least 1."""
        return max(1, min((len(self._wires(pair)) for pair in pairs), default=1))

    def _wires(self, pair: Pair) -> tuple[Cable, ...]:
        """The confirmed cables of a pair whose devices are known; the best alone if no other is as good."""
        found = [
            cable
            for cable in self.between(pair)
            if cable.seen == "both" and all(self.port(end).rdma_device for end in (cable.a, cable.b))
        ]
        alike = [cable for cable in found if cable.is_slow == found[0].is_slow and self._carries_rdma(cable)]
        return tuple((alike or found[:1])[:RING_MAX_WIRES])

    def _carries_rdma(self, cable: Cable) -> bool:
        return not any(self.port(end).beside_ethernet for end in (cable.a, cable.b))

    def offers_no_rdma(self, end: End, other: End) -> bool:
        """Whether the port at `end` lists its peer `other` without the RDMA service: RDMA is off there."""
        uuid = self.port(other).domain_uuid
        return any(peer.domain_uuid == uuid and peer.rdma_service is False for peer in self.port(end).peers)

    def usable_ports(self, node: int) -> tuple[int, ...]:
        """The indices of the ports of a node that RDMA may use: not too slow, and not beside Ethernet."""
        mac = self.nodes[node]
        # A slow link does not show the port's own speed; all ports of a Mac have the same, so use that.
        is_thunderbolt5 = (
            mac.thunderbolt5 if port.thunderbolt5 is None else port.thunderbolt5 for port in mac.ports or ()
        )
        fast = (i for i, is_fast in enumerate(is_thunderbolt5) if is_fast is not False)
        return tuple(i for i in fast if not self.port(End(node, i)).beside_ethernet)


def build_wiring(nodes: Sequence[NodeFacts]) -> Wiring:
    """Derive the cabling of these nodes, in this order.

    Args:
        nodes: the facts of each node; `ports` is None if not tested.
    """
    owners: dict[str, list[End]] = defaultdict(list)
    for end, port in _ports(nodes):
        if port.domain_uuid is not None:
            owners[port.domain_uuid].append(end)
    listed = {
        (end, owners[peer.domain_uuid][0])
        for end, port in _ports(nodes)
        for peer in port.peers
        if peer.domain_uuid and len(owners[peer.domain_uuid]) == 1
    }
    leads: dict[End, End] = {}
    foreign_devices: list[ForeignDevice] = []
    for end, port in _ports(nodes):
        # A Mac behind a hub counts only if it lists this port too.
        seen = [peer for peer in port.peers if peer.behind is None or _is_mutual(end, peer, owners, listed)]
        peer = seen[0] if seen else None
        found = owners.get(peer.domain_uuid or "", []) if peer else []
        is_own = port.domain_uuid is None or len(owners[port.domain_uuid]) == 1
        if peer and is_own and len(found) == 1 and found[0] != end:
            leads[end] = found[0]
        elif peer:
            foreign_devices.append(ForeignDevice(end, "stale" if found or not is_own else "mac", peer))
        elif port.plugged or port.connected:
            foreign_devices.append(
                ForeignDevice(end, "dock" if port.peers else "device", (*port.plugged, ConnectedDevice())[0])
            )
    cables, taken = [], set()
    # Cables seen from both ends come first: a one-sided claim on one of their ports is stale.
    for end, other in sorted(leads.items(), key=lambda item: (leads.get(item[1]) != item[0], item)):
        if end in taken:
            continue
        if other in taken:
            peer = (nodes[end.node].ports or ())[end.port].peer
            foreign_devices.append(ForeignDevice(end, "stale", peer or ConnectedDevice()))
            continue
        taken |= {end, other}
        a, b = sorted((end, other))
        speeds = [(nodes[e.node].ports or ())[e.port].current_gbps for e in (a, b)]
        gbps = min((speed for speed in speeds if speed is not None), default=None)
        hubs = (_hub(nodes, here, there) for here, there in ((a, b), (b, a)))
        hub = next((name for name in hubs if name), None)
        cables.append(Cable(a, b, "both" if leads.get(other) == end else "half", gbps, hub))
    # drop stale claims of ports that have a cable
    foreign_devices = sorted(
        (one for one in foreign_devices if one.end not in taken), key=lambda one: one.end
    )
    duplicates = tuple(tuple(ends) for ends in owners.values() if len(ends) > 1)
    return Wiring(tuple(nodes), tuple(sorted(cables)), tuple(foreign_devices), duplicates)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Make names unique, also if two Macs have the same name: `studio (#2)`."""
    return tuple(name if names.count(name) == 1 else f"{name} (#{i + 1})" for i, name in enumerate(names))


def ring_pairs(order: Sequence[int]) -> set[Pair]:
    """The pairs of neighbours in a ring of that order, smaller node first."""
    following = (*order[1:], *order[:1])
    return {(min(i, j), max(i, j)) for i, j in zip(order, following, strict=True)}


def _is_mutual(
    end: End, peer: ConnectedDevice, owners: Mapping[str, Sequence[End]], listed: Collection[tuple[End, End]]
) -> bool:
    """Whether the peer's port lists this port too."""
    found = owners.get(peer.domain_uuid or "", ())
    return len(found) == 1 and (found[0], end) in listed


def _hub(nodes: Sequence[NodeFacts], here: End, there: End) -> str | None:
    """The name of the hub through which one port lists another, or None."""
    uuid = (nodes[there.node].ports or ())[there.port].domain_uuid
    peers = (nodes[here.node].ports or ())[here.port].peers
    return next((peer.behind for peer in peers if peer.domain_uuid == uuid), None)


def _ports(nodes: Sequence[NodeFacts]) -> Iterator[tuple[End, PortFacts]]:
    for i, node in enumerate(nodes):
        for j, port in enumerate(node.ports or ()):
            yield End(i, j), port
