"""Which cable joins which ports, from what the Macs at both ends say, and what that is good for.

Facts in, plain data out: cables, the state of each pair of Macs, what else is plugged in, whether it is a
mesh or holds a ring, and the rdma matrix of each. A cable counts when both its ends list each other; one end
alone is "half", and a Mac that did not tell is "untested". Nodes and ports are indices here: into the facts,
and into their `ports`. `flaws.py` says what is wrong, `moves.py` what to re-plug, `drawing.py` draws it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import Literal, NamedTuple

from jaccl_kernel.cluster.facts import THUNDERBOLT_5_GBPS, NodeFacts, Plugged, PortFacts
from jaccl_kernel.cluster.matrix import MESH_MAX_RANKS

RING_SEARCH_LIMIT = 12
"""The most nodes among which a ring is looked for: the search doubles with each."""

PairState = Literal["full", "half", "missing", "untested"]
Pair = tuple[int, int]
Matrix = list[list[str | None]]
RingMatrix = list[list[list[str] | None]]


class End(NamedTuple):
    """One end of a cable: a node and one of its ports, as indices."""

    node: int
    port: int


@dataclass(frozen=True, order=True)
class Cable:
    """A cable between two ports, `a` before `b`. `gbps` is the slower of what its ends tell, if any does.

    `seen` is "both" when each end lists the other, else "half": it was just moved, is loose, or the Mac at
    the silent end sleeps.
    """

    a: End
    b: End
    seen: Literal["both", "half"] = "both"
    gbps: float | None = None

    @property
    def pair(self) -> Pair:
        """The two nodes, smaller first; twice the same for a cable from a Mac to itself."""
        return self.a.node, self.b.node

    @property
    def is_loop(self) -> bool:
        """Whether both ends are in the same Mac."""
        return self.a.node == self.b.node

    @property
    def is_slow(self) -> bool:
        """Whether it runs below Thunderbolt 5's speed, because of the cable or of a Mac."""
        return self.gbps is not None and self.gbps < THUNDERBOLT_5_GBPS

    def end_at(self, node: int) -> End:
        """The end that is in that node."""
        return self.a if self.a.node == node else self.b


@dataclass(frozen=True)
class Stranger:
    """Something on a port that is no cable of this cluster.

    `kind` is "device" (a dock, disk or display), "mac" (a Mac that is not in the list, or one of it that did
    not tell), "dock" (one of our Macs, or another, behind a dock) or "stale" (a port that says it leads to
    one which is taken by another cable, or whose identity is not unique).
    """

    end: End
    kind: Literal["device", "mac", "dock", "stale"]
    plugged: Plugged


@dataclass(frozen=True)
class Wiring:
    """The cabling of a list of nodes; made by `wire`."""

    nodes: tuple[NodeFacts, ...]
    cables: tuple[Cable, ...]
    strangers: tuple[Stranger, ...]
    duplicates: tuple[tuple[End, ...], ...]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A name for each node that no other has, even when two Macs are called the same."""
        return distinct([node.name for node in self.nodes])

    @cached_property
    def untested(self) -> tuple[int, ...]:
        """The nodes whose Thunderbolt ports nobody could read."""
        return tuple(i for i, node in enumerate(self.nodes) if node.ports is None)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of nodes, which a mesh joins by one cable each."""
        return tuple(combinations(range(len(self.nodes)), 2))

    def port(self, end: End) -> PortFacts:
        """The facts of the port that an end is in."""
        return (self.nodes[end.node].ports or ())[end.port]

    def place(self, end: End) -> str:
        """An end in words: `port 3 of macstudio2`."""
        number = self.port(end).number
        name = (
            f"port {number}" if number is not None else f"the port called {self.port(end).bus or 'nothing'}"
        )
        return f"{name} of {self.labels[end.node]}"

    def between(self, pair: Pair) -> tuple[Cable, ...]:
        """The cables of a pair, the best first: seen from both ends, full speed, then as mlx orders them."""
        return self._by_pair.get(pair, ())

    @cached_property
    def _by_pair(self) -> dict[Pair, tuple[Cable, ...]]:
        def rank(cable: Cable) -> tuple[bool, bool, str]:
            return cable.seen != "both", cable.is_slow, self.port(cable.a).interface or ""

        found: dict[Pair, tuple[Cable, ...]] = {}
        for cable in sorted(self.cables, key=rank):
            found[cable.pair] = (*found.get(cable.pair, ()), cable)
        return found

    def state(self, pair: Pair) -> PairState:
        """What is known of a pair: `full` is proven from both ends."""
        if cables := self.between(pair):
            return "full" if cables[0].seen == "both" else "half"
        return "untested" if set(pair) & set(self.untested) else "missing"

    def has_ports_for(self, cables: int) -> bool:
        """Whether every node that told has as many Thunderbolt 5 ports."""
        told = (i for i in range(len(self.nodes)) if i not in self.untested)
        return all(len(self.usable_ports(i)) >= cables for i in told)

    @cached_property
    def mesh_fits(self) -> bool:
        """Whether JACCL and the Macs' ports allow a mesh of so many nodes, however they are cabled now."""
        return len(self.nodes) <= MESH_MAX_RANKS and self.has_ports_for(len(self.nodes) - 1)

    @cached_property
    def topology(self) -> Literal["single", "mesh", "ring", "none", "untested"]:
        """What JACCL can run on as it is: a mesh, else a ring; `untested` while a Mac did not tell.

        Both need Thunderbolt 5 at every Mac; states and matrices do not ask for that.
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
        """Whether it is a ring, of Macs that lack the ports for a mesh: then no cable is missing."""
        return self.topology == "ring" and not self.mesh_fits

    @cached_property
    def ring(self) -> tuple[int, ...] | None:
        """An order of all nodes in which each is cabled to the next and the last to the first, or None."""
        joined = {pair for pair in self.pairs if self.state(pair) == "full"}
        return hamiltonian_cycle(len(self.nodes), joined)

    def rdma_matrix(self) -> Matrix:
        """The mesh's rdma matrix: cell [i][j] is the device of node i that leads to node j.

        Reciprocal by construction: both cells of a pair come from the same cable. The diagonal is None, and
        so is each pair without a cable that both ends see.
        """
        matrix: Matrix = [[None] * len(self.nodes) for _ in self.nodes]
        for pair in self.pairs:
            names = self._devices(pair)
            if names is not None:
                (i, j), (matrix[i][j], matrix[j][i]) = pair, names
        return matrix

    def ring_matrix(self) -> RingMatrix | None:
        """The rdma matrix of `ring`, its rows and columns in the ring's order: one name to each neighbour.

        The hosts of a hostfile must then stand in that order too. None where there is no ring, or where a
        port of it has no interface.
        """
        if self.ring is None:
            return None
        size = len(self.ring)
        matrix: RingMatrix = [[None] * size for _ in self.ring]
        for here in range(size):
            there = (here + 1) % size
            i, j = self.ring[here], self.ring[there]
            if (names := self._devices((min(i, j), max(i, j)))) is None:
                return None
            first, second = names if i < j else names[::-1]
            matrix[here][there], matrix[there][here] = [first], [second]
        return matrix

    def _devices(self, pair: Pair) -> tuple[str, str] | None:
        for cable in self.between(pair):
            a, b = self.port(cable.a).rdma_device, self.port(cable.b).rdma_device
            if cable.seen == "both" and a is not None and b is not None:
                return a, b
        return None

    def usable_ports(self, node: int) -> tuple[int, ...]:
        """The ports of a node, as indices, that RDMA may use: all but those known to be too slow."""
        mac = self.nodes[node]
        # A port with a slow link in it says nothing of itself: then the Mac's other ports speak for it.
        judged = (
            mac.thunderbolt5 if port.thunderbolt5 is None else port.thunderbolt5 for port in mac.ports or ()
        )
        return tuple(i for i, is_fast in enumerate(judged) if is_fast is not False)


def wire(nodes: Sequence[NodeFacts]) -> Wiring:
    """The cabling of these nodes, in this order.

    Args:
        nodes: the facts of each; `ports` None where a node did not tell.
    """
    owners: dict[str, list[End]] = defaultdict(list)
    for end, port in _ports(nodes):
        if port.domain_uuid is not None:
            owners[port.domain_uuid].append(end)
    leads: dict[End, End] = {}
    strangers: list[Stranger] = []
    for end, port in _ports(nodes):
        peer = port.peer
        found = owners.get(peer.domain_uuid or "", []) if peer else []
        is_own = port.domain_uuid is None or len(owners[port.domain_uuid]) == 1
        if peer and is_own and len(found) == 1 and found[0] != end:
            leads[end] = found[0]
        elif peer:
            strangers.append(Stranger(end, "stale" if found or not is_own else "mac", peer))
        elif port.plugged or port.connected:
            behind = next((p for p in port.plugged if p.domain_uuid), None)
            strangers.append(Stranger(end, "dock" if behind else "device", (*port.plugged, Plugged())[0]))
    cables, taken = [], set()
    # Cables seen from both ends first: a one-sided claim on a port of theirs is stale.
    for end, other in sorted(leads.items(), key=lambda item: (leads.get(item[1]) != item[0], item)):
        if end in taken:
            continue
        if other in taken:
            peer = (nodes[end.node].ports or ())[end.port].peer
            strangers.append(Stranger(end, "stale", peer or Plugged()))
            continue
        taken |= {end, other}
        a, b = sorted((end, other))
        speeds = [(nodes[e.node].ports or ())[e.port].current_gbps for e in (a, b)]
        gbps = min((speed for speed in speeds if speed is not None), default=None)
        cables.append(Cable(a, b, "both" if leads.get(other) == end else "half", gbps))
    # what one port claims of another that has a cable by then may be told of too: the cable counts
    strangers = sorted((one for one in strangers if one.end not in taken), key=lambda one: one.end)
    duplicates = tuple(tuple(ends) for ends in owners.values() if len(ends) > 1)
    return Wiring(tuple(nodes), tuple(sorted(cables)), tuple(strangers), duplicates)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """A name for each that no other has, even when two Macs are called the same: `studio (#2)`."""
    return tuple(name if names.count(name) == 1 else f"{name} (#{i + 1})" for i, name in enumerate(names))


def hamiltonian_cycle(size: int, joined: set[Pair]) -> tuple[int, ...] | None:
    """An order that visits every node once and comes back, along joined pairs only; from node 0.

    Args:
        size: how many nodes; from 2 to `RING_SEARCH_LIMIT`, else there is no answer.
        joined: pairs of nodes, smaller first.
    """
    near = [[j for j in range(size) if (min(i, j), max(i, j)) in joined] for i in range(size)]
    everyone = (1 << size) - 1

    @cache
    def onward(visited: int, here: int) -> tuple[int, ...] | None:
        if visited == everyone:
            return () if 0 in near[here] else None
        for there in near[here]:
            if not visited & 1 << there and (rest := onward(visited | 1 << there, there)) is not None:
                return there, *rest
        return None

    rest = onward(1, 0) if 2 <= size <= RING_SEARCH_LIMIT else None
    return None if rest is None else (0, *rest)


def _ports(nodes: Sequence[NodeFacts]) -> Iterator[tuple[End, PortFacts]]:
    for i, node in enumerate(nodes):
        for j, port in enumerate(node.ports or ()):
            yield End(i, j), port
