"""Plans the fewest cable moves from the current wiring to a mesh or, if that is impossible, to a ring. Pure.

Surplus cables (a second one between two Macs, one from a Mac to itself) are reused before new ones are
requested. If possible, a reused cable keeps one of its ends in place, so that the number of ends to move is
minimal. Docks are unplugged only if a Mac has no other free port.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal, NamedTuple

from jaccl_kernel.hostfile.matrix import MESH_MAX_RANKS
from jaccl_kernel.topology.wiring import Cable, End, ForeignDevice, Pair, Wiring, ring_pairs

Target = Literal["mesh", "ring"]


class Plug(NamedTuple):
    """One cable end, moved from a port to another; None means "not in a port"."""

    source: End | None
    target: End | None


@dataclass(frozen=True)
class Move:
    """One manual step: its text, and the cable ends that it moves at once.

    "reseat" and "replace" move no end: source and target of their plugs are the same port.
    """

    kind: Literal["reseat", "unplug", "move", "swap", "add", "replace"]
    text: str
    plugs: tuple[Plug, ...]


@dataclass(frozen=True)
class CablePlan:
    """The moves to a target topology, in an order in which each port is free when it is needed.

    `target` is None if there is nothing to connect, or if these Macs can form neither a mesh nor a ring.
    """

    target: Target | None
    moves: tuple[Move, ...] = ()


def plan(wiring: Wiring, target: Target | None = None) -> CablePlan:
    """CablePlan the moves to a mesh or, if the Macs' ports do not allow one, to a ring.

    Args:
        wiring: the current wiring. Nodes without port facts get no moves.
        target: restrict the plan to this topology.
    """
    size = len(wiring.nodes)
    if size < 2 or wiring.duplicates:  # duplicate identities make the cables ambiguous
        return CablePlan(None)
    if target != "ring" and wiring.mesh_fits:
        return CablePlan("mesh", _moves(wiring, set(wiring.pairs)))
    if target != "mesh" and wiring.has_ports_for(min(2, size - 1)) and (ring := _nearest_ring(wiring)):
        return CablePlan("ring", _moves(wiring, ring))
    return CablePlan(None)


def _nearest_ring(wiring: Wiring) -> set[Pair] | None:
    """The ring with the fewest missing cables; None for too many Macs, where the search takes too long."""
    if not 2 <= len(wiring.nodes) <= MESH_MAX_RANKS:
        return None
    missing = {pair for pair in wiring.pairs if wiring.state(pair) == "missing"}
    rings = (ring_pairs((0, *order)) for order in permutations(range(1, len(wiring.nodes))))
    return min(rings, key=lambda ring: len(ring & missing))


def _moves(wiring: Wiring, wanted: set[Pair]) -> tuple[Move, ...]:
    kept = [cables[0] for pair in sorted(wanted) if (cables := wiring.between(pair))]
    extra = [cable for cable in wiring.cables if cable not in kept]
    missing = [pair for pair in sorted(wanted) if wiring.state(pair) == "missing"]
    # Do not reuse slow or half-seen cables: they would make the next pair slow or unconfirmed.
    spare = [cable for cable in extra if cable.seen == "both" and not cable.is_slow]
    ports = _Ports(wiring, [cable for cable in extra if cable not in spare])
    given = _assign(spare, missing, ports)
    ports.idle += [cable for cable in spare if cable not in given]
    changes = [change for cable, pair in given.items() for change in _changes(cable, pair)]
    new = [pair for pair in missing if pair not in given.values()]
    return (
        *(_reseat(wiring, cable) for cable in kept if cable.seen == "half"),
        *ports.make_room(kept, changes, new),
        *ports.rewire(changes),
        *(ports.add(pair) for pair in new),
        *ports.leave_ethernet(),
        *(_replace(wiring, cable) for cable in kept if cable.is_slow and _could_be_fast(wiring, cable)),
    )


@dataclass(frozen=True)
class _Change:
    """One end of a cable that moves to `node`, to join it with `partner`."""

    cable: Cable
    source: End
    node: int
    partner: int


def _changes(cable: Cable, pair: Pair) -> list[_Change]:
    """The end changes that make a cable join that pair; one end stays in place if possible."""
    if staying := set(cable.pair) & set(pair):
        stays = min(staying)
        goes = pair[1] if pair[0] == stays else pair[0]
        source = cable.b if cable.a.node == stays else cable.a
        return [_Change(cable, source, goes, stays)]
    return [_Change(cable, cable.a, pair[0], pair[1]), _Change(cable, cable.b, pair[1], pair[0])]


def _assign(spare: Sequence[Cable], missing: Sequence[Pair], ports: "_Ports") -> dict[Cable, Pair]:
    """Assign spare cables to missing pairs so that as many as possible keep one end in place.

    A maximum matching of cables and pairs that share a node (augmenting paths), then any remaining cables.
    """
    by_free_ports = sorted(spare, key=lambda cable: (sum(map(ports.free_count, cable.pair)), cable))
    user: dict[Pair, Cable] = {}

    def place(cable: Cable, tried: set[Pair]) -> bool:
        for pair in missing:
            if set(cable.pair) & set(pair) and pair not in tried:
                tried.add(pair)
                if pair not in user or place(user[pair], tried):
                    user[pair] = cable
                    return True
        return False

    for cable in by_free_ports:
        place(cable, set())
    rest = [cable for cable in by_free_ports if cable not in user.values()]
    user.update(zip([pair for pair in missing if pair not in user], rest, strict=False))
    return {cable: pair for pair, cable in user.items()}


@dataclass
class _Ports:
    """The occupancy of the ports while the moves are planned one after the other."""

    wiring: Wiring
    idle: list[Cable]
    """Unused cables, which may have to be unplugged."""
    _taken: dict[End, Cable | ForeignDevice | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, node in enumerate(self.wiring.nodes):
            for j, port in enumerate(node.ports or ()):
                if port.connected:  # possibly by an unidentified device
                    self._taken[End(i, j)] = None
        self._taken |= {device.end: device for device in self.wiring.foreign_devices}
        self._taken |= {end: cable for cable in self.wiring.cables for end in (cable.a, cable.b)}

    def free(self, node: int) -> list[End]:
        """The free ports of a node, in order."""
        ends = (End(node, port) for port in self.wiring.usable_ports(node))
        return [end for end in ends if end not in self._taken]

    def free_count(self, node: int) -> int:
        """The number of free ports of a node."""
        return len(self.free(node))

    def make_room(self, kept: Sequence[Cable], changes: Sequence[_Change], new: Sequence[Pair]) -> list[Move]:
        """Unplug only those cables and devices that occupy ports which the target needs."""
        lacking = {}
        for node in range(len(self.wiring.nodes)):
            arriving = sum(change.node == node for change in changes) + sum(node in pair for pair in new)
            usable = self.wiring.usable_ports(node)
            leaving = sum(change.source.node == node and change.source.port in usable for change in changes)
            lacking[node] = arriving - leaving - self.free_count(node)
        moves = []
        for node in sorted(lacking, key=lambda node: -lacking[node]):
            for holder in self._holders(node, lacking):
                if lacking[node] <= 0:
                    break
                ends = (holder.a, holder.b) if isinstance(holder, Cable) else (holder.end,)
                for end in ends:
                    del self._taken[end]
                    lacking[end.node] -= end.port in self.wiring.usable_ports(end.node)
                moves.append(
                    Move("unplug", self._unplug_text(holder), tuple(Plug(end, None) for end in ends))
                )
        return moves

    def _holders(self, node: int, lacking: dict[int, int]) -> list[Cable | ForeignDevice]:
        """What can be unplugged at a node: cables that also free another port first, unknown Macs last."""
        usable = self.wiring.usable_ports(node)
        cables = [cable for cable in self.idle if node in cable.pair and cable.a in self._taken]
        cables.sort(key=lambda cable: -sum(lacking[end.node] > 0 for end in (cable.a, cable.b)))
        here = [s for s in self.wiring.foreign_devices if s.end.node == node and s.end.port in usable]
        return [*cables, *sorted(here, key=lambda device: device.kind == "mac")]

    def _unplug_text(self, holder: Cable | ForeignDevice) -> str:
        place = self.wiring.place
        if isinstance(holder, Cable):
            return f"Unplug the cable between {place(holder.a)} and {place(holder.b)}: its ports are needed."
        return f"Unplug {holder.plugged.label} from {place(holder.end)}: that port is needed for another Mac."

    def rewire(self, changes: Sequence[_Change]) -> list[Move]:
        """CablePlan all changes in an order in which each port is free when it is needed."""
        pending, moves = list(changes), []
        while pending:
            swapped = self._swap(pending)
            easy = [] if swapped else self._possible(pending)
            group = swapped or easy or self._cycle(pending)
            moves.append(self._move(group) if easy else self._rotate(group))
            pending = [change for change in pending if change not in group]
        return moves

    @staticmethod
    def _swap(pending: Sequence[_Change]) -> list[_Change]:
        """Two ends that only have to swap ports."""
        for one in pending:
            for other in pending:
                if one.source.node == other.node != one.node == other.source.node:
                    return [one, other]
        return []

    def _possible(self, pending: Sequence[_Change]) -> list[_Change]:
        """A change whose node has a free port; both ends of a cable together if possible."""
        ready = [change for change in pending if self.free(change.node)]
        for change in ready:
            both = [c for c in ready if c.cable == change.cable]
            if len(both) == 2:
                return both
        return ready[:1]

    def _cycle(self, pending: Sequence[_Change]) -> list[_Change]:
        """A cycle of ends that wait for each other's ports; one exists if no change is possible."""
        path = [pending[0]]
        while True:
            following = next(change for change in pending if change.source.node == path[-1].node)
            if following in path:
                return path[path.index(following) :]
            path.append(following)

    def _rotate(self, cycle: Sequence[_Change]) -> Move:
        """Move each end to the port of the next one, all at once."""
        ports = [change.source for change in cycle]
        plugs = self._plug(cycle, [*ports[1:], ports[0]])
        if len(cycle) == 2:
            text = f"Swap the cables in {' and '.join(map(self.wiring.place, ports))}."
        else:
            text = f"Unplug these cable ends, then plug them in again: {'; '.join(map(self._route, plugs))}."
        return Move("swap", text, plugs)

    def _move(self, group: Sequence[_Change]) -> Move:
        """Move one end, or both ends of one cable, to free ports."""
        plugs = self._plug(group, [self.free(change.node)[0] for change in group])
        what = "the cable" if len(group) == 1 else "both ends of a cable,"
        first, labels = group[0], self.wiring.labels
        joined = f"to join {labels[first.partner]} and {labels[first.node]}"
        return Move("move", f"Move {what} {' and '.join(map(self._route, plugs))}, {joined}.", plugs)

    def _route(self, plug: Plug) -> str:
        places = [self.wiring.place(end) for end in plug if end is not None]
        return f"from {' to '.join(places)}"

    def _plug(self, group: Sequence[_Change], targets: Sequence[End]) -> tuple[Plug, ...]:
        for change in group:
            del self._taken[change.source]
        self._taken |= {end: change.cable for change, end in zip(group, targets, strict=True)}
        return tuple(Plug(change.source, end) for change, end in zip(group, targets, strict=True))

    def add(self, pair: Pair) -> Move:
        """Add a new cable between two nodes."""
        a, b = (self.free(node)[0] for node in pair)
        self._taken[a] = self._taken[b] = None
        text = f"Plug a Thunderbolt 5 cable from {self.wiring.place(a)} to {self.wiring.place(b)}."
        return Move("add", text, (Plug(None, a), Plug(None, b)))

    def leave_ethernet(self) -> list[Move]:
        """Move cables from a Mac Studio's port beside Ethernet to a free port, where there is one."""
        moves = []
        for end, holder in sorted(self._taken.items()):
            is_cable = isinstance(holder, Cable) and holder not in self.idle
            if is_cable and self.wiring.port(end).beside_ethernet and (free := self.free(end.node)):
                plug = Plug(end, free[0])
                self._taken[free[0]] = self._taken.pop(end)
                text = f"Move the cable {self._route(plug)}: the port beside Ethernet carries no RDMA."
                moves.append(Move("move", text, (plug,)))
        return moves


def _reseat(wiring: Wiring, cable: Cable) -> Move:
    blind = next(end for end in (cable.a, cable.b) if not _lists_peer(wiring, cable, end))
    ends, who = f"{wiring.place(cable.a)} and {wiring.place(cable.b)}", wiring.labels[blind.node]
    text = f"Reseat both ends of the cable between {ends}, and wake {who}, which does not detect the cable."
    return Move("reseat", text, (Plug(cable.a, cable.a), Plug(cable.b, cable.b)))


def _lists_peer(wiring: Wiring, cable: Cable, end: End) -> bool:
    other = cable.b if end == cable.a else cable.a
    return any(peer.domain_uuid == wiring.port(other).domain_uuid for peer in wiring.port(end).peers)


def _could_be_fast(wiring: Wiring, cable: Cable) -> bool:
    return all(wiring.nodes[node].thunderbolt5 is not False for node in cable.pair)


def _replace(wiring: Wiring, cable: Cable) -> Move:
    ends = f"{wiring.place(cable.a)} and {wiring.place(cable.b)}"
    text = f"Replace the cable between {ends} with a Thunderbolt 5 cable: it runs at {cable.gbps:g} Gb/s."
    return Move("replace", text, (Plug(cable.a, cable.a), Plug(cable.b, cable.b)))
