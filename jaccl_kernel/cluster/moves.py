"""Which cable to put where: the fewest moves from the wiring that is to a mesh, or else to a ring; pure.

Cables that are not needed where they are (a second one between two Macs, one from a Mac to itself) are used
before new ones are asked for. Each goes to the missing pair that leaves one of its ends where it is, if there
is such a pair for it: so the number of ends to move is the least possible. Docks are only unplugged where a
Mac has no other port left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Literal, NamedTuple

from jaccl_kernel.cluster.matrix import MESH_MAX_RANKS
from jaccl_kernel.cluster.wiring import Cable, End, Pair, Stranger, Wiring

Target = Literal["mesh", "ring"]


class Plug(NamedTuple):
    """One cable end taken out of a port and put into another; None is "not in a port"."""

    source: End | None
    target: End | None


@dataclass(frozen=True)
class Move:
    """One thing to do with the hands, in words, and as the ends that it changes, all at once.

    "reseat" and "replace" change no end's place: their plugs lead from each port to itself.
    """

    kind: Literal["reseat", "unplug", "move", "swap", "add", "replace"]
    text: str
    plugs: tuple[Plug, ...]


@dataclass(frozen=True)
class Plan:
    """The moves to a target, in an order in which each port is free when it is needed.

    `target` is None when there is nothing to cable, or neither mesh nor ring can be made of these Macs.
    """

    target: Target | None
    moves: tuple[Move, ...] = ()


def plan(wiring: Wiring, target: Target | None = None) -> Plan:
    """The moves that make a mesh; where the Macs' ports do not allow one, a ring.

    Args:
        wiring: what is plugged in now. Nodes that did not tell get no moves.
        target: one of the two only.
    """
    size = len(wiring.nodes)
    if size < 2 or wiring.duplicates:  # which Mac is which must be settled first
        return Plan(None)
    if target != "ring" and wiring.mesh_fits:
        return Plan("mesh", _moves(wiring, set(wiring.pairs)))
    if target != "mesh" and wiring.has_ports_for(min(2, size - 1)) and (ring := _nearest_ring(wiring)):
        return Plan("ring", _moves(wiring, ring))
    return Plan(None)


def _nearest_ring(wiring: Wiring) -> set[Pair] | None:
    """The ring that lacks the fewest cables; None among so many Macs that the search would take long."""
    if not 2 <= len(wiring.nodes) <= MESH_MAX_RANKS:
        return None
    missing = {pair for pair in wiring.pairs if wiring.state(pair) == "missing"}
    rings = (_ring_pairs((0, *order)) for order in permutations(range(1, len(wiring.nodes))))
    return min(rings, key=lambda ring: len(ring & missing))


def _ring_pairs(order: Sequence[int]) -> set[Pair]:
    following = (*order[1:], order[0])
    return {(min(i, j), max(i, j)) for i, j in zip(order, following, strict=True)}


def _moves(wiring: Wiring, wanted: set[Pair]) -> tuple[Move, ...]:
    kept = [cables[0] for pair in sorted(wanted) if (cables := wiring.between(pair))]
    extra = [cable for cable in wiring.cables if cable not in kept]
    missing = [pair for pair in sorted(wanted) if wiring.state(pair) == "missing"]
    # A slow or half-seen cable is not worth moving: it would only make the next pair slow, or unsure.
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
        *(_replace(wiring, cable) for cable in kept if cable.is_slow and _could_be_fast(wiring, cable)),
    )


@dataclass(frozen=True)
class _Change:
    """One end of a cable that has to go to another node, to join it with `partner`."""

    cable: Cable
    source: End
    node: int
    partner: int


def _changes(cable: Cable, pair: Pair) -> list[_Change]:
    """How a cable comes to join that pair: one end stays if it can."""
    if staying := set(cable.pair) & set(pair):
        stays = min(staying)
        goes = pair[1] if pair[0] == stays else pair[0]
        source = cable.b if cable.a.node == stays else cable.a
        return [_Change(cable, source, goes, stays)]
    return [_Change(cable, cable.a, pair[0], pair[1]), _Change(cable, cable.b, pair[1], pair[0])]


def _assign(spare: Sequence[Cable], missing: Sequence[Pair], ports: "_Ports") -> dict[Cable, Pair]:
    """As many spare cables as there are uses, and as many of these as possible with one end staying.

    A largest matching of cables and pairs that share a node (by augmenting paths), filled up with the rest.
    """
    crowded_first = sorted(spare, key=lambda cable: (sum(map(ports.room, cable.pair)), cable))
    user: dict[Pair, Cable] = {}

    def place(cable: Cable, tried: set[Pair]) -> bool:
        for pair in missing:
            if set(cable.pair) & set(pair) and pair not in tried:
                tried.add(pair)
                if pair not in user or place(user[pair], tried):
                    user[pair] = cable
                    return True
        return False

    for cable in crowded_first:
        place(cable, set())
    over = [cable for cable in crowded_first if cable not in user.values()]
    user.update(zip([pair for pair in missing if pair not in user], over, strict=False))
    return {cable: pair for pair, cable in user.items()}


@dataclass
class _Ports:
    """The ports as they are while the moves are worked out, one after the other."""

    wiring: Wiring
    idle: list[Cable]
    """Cables that stay unused, and may have to make room."""
    _taken: dict[End, Cable | Stranger | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, node in enumerate(self.wiring.nodes):
            for j, port in enumerate(node.ports or ()):
                if port.connected:  # by something that may not even have told what it is
                    self._taken[End(i, j)] = None
        self._taken |= {stranger.end: stranger for stranger in self.wiring.strangers}
        self._taken |= {end: cable for cable in self.wiring.cables for end in (cable.a, cable.b)}

    def free(self, node: int) -> list[End]:
        """The free ports of a node, in order."""
        ends = (End(node, port) for port in self.wiring.usable_ports(node))
        return [end for end in ends if end not in self._taken]

    def room(self, node: int) -> int:
        """How many ports of a node are free."""
        return len(self.free(node))

    def make_room(self, kept: Sequence[Cable], changes: Sequence[_Change], new: Sequence[Pair]) -> list[Move]:
        """Unplug what holds ports that the target needs, and nothing else."""
        lacking = {}
        for node in range(len(self.wiring.nodes)):
            arriving = sum(change.node == node for change in changes) + sum(node in pair for pair in new)
            leaving = sum(change.source.node == node for change in changes)
            lacking[node] = arriving - leaving - self.room(node)
        moves = []
        for node in sorted(lacking, key=lambda node: -lacking[node]):
            for holder in self._holders(node, lacking):
                if lacking[node] <= 0:
                    break
                ends = (holder.a, holder.b) if isinstance(holder, Cable) else (holder.end,)
                for end in ends:
                    del self._taken[end]
                    lacking[end.node] -= 1
                moves.append(
                    Move("unplug", self._unplug_text(holder), tuple(Plug(end, None) for end in ends))
                )
        return moves

    def _holders(self, node: int, lacking: dict[int, int]) -> list[Cable | Stranger]:
        """What could be unplugged at a node: first cables that help a second node too, unknown Macs last."""
        usable = self.wiring.usable_ports(node)
        cables = [cable for cable in self.idle if node in cable.pair and cable.a in self._taken]
        cables.sort(key=lambda cable: -sum(lacking[end.node] > 0 for end in (cable.a, cable.b)))
        here = [s for s in self.wiring.strangers if s.end.node == node and s.end.port in usable]
        return [*cables, *sorted(here, key=lambda stranger: stranger.kind == "mac")]

    def _unplug_text(self, holder: Cable | Stranger) -> str:
        place = self.wiring.place
        if isinstance(holder, Cable):
            return f"Unplug the cable between {place(holder.a)} and {place(holder.b)}: its ports are needed."
        return f"Unplug {holder.plugged.label} from {place(holder.end)}: that port is needed for another Mac."

    def rewire(self, changes: Sequence[_Change]) -> list[Move]:
        """Carry out all changes, in an order in which each port is free when its turn comes."""
        pending, moves = list(changes), []
        while pending:
            swapped = self._swap(pending)
            easy = [] if swapped else self._possible(pending)
            group = swapped or easy or self._circle(pending)
            moves.append(self._move(group) if easy else self._turn(group))
            pending = [change for change in pending if change not in group]
        return moves

    @staticmethod
    def _swap(pending: Sequence[_Change]) -> list[_Change]:
        """Two ends that only have to trade places: the simplest thing to say, and no other port changes."""
        for one in pending:
            for other in pending:
                if one.source.node == other.node != one.node == other.source.node:
                    return [one, other]
        return []

    def _possible(self, pending: Sequence[_Change]) -> list[_Change]:
        """A change whose node has a free port; both ends of a cable together where that goes."""
        ready = [change for change in pending if self.free(change.node)]
        for change in ready:
            both = [c for c in ready if c.cable == change.cable]
            if len(both) == 2:
                return both
        return ready[:1]

    def _circle(self, pending: Sequence[_Change]) -> list[_Change]:
        """Ends that wait for each other's ports in a circle: there is one where no change is possible."""
        path = [pending[0]]
        while True:
            following = next(change for change in pending if change.source.node == path[-1].node)
            if following in path:
                return path[path.index(following) :]
            path.append(following)

    def _turn(self, circle: Sequence[_Change]) -> Move:
        """Each end into the port of the next one, all at once."""
        ports = [change.source for change in circle]
        plugs = self._plug(circle, [*ports[1:], ports[0]])
        if len(circle) == 2:
            text = f"Swap the cables in {' and '.join(map(self.wiring.place, ports))}."
        else:
            text = f"Unplug these cable ends, then plug them in anew: {'; '.join(map(self._way, plugs))}."
        return Move("swap", text, plugs)

    def _move(self, group: Sequence[_Change]) -> Move:
        """One end, or both ends of one cable, into free ports."""
        plugs = self._plug(group, [self.free(change.node)[0] for change in group])
        what = "the cable" if len(group) == 1 else "both ends of a cable,"
        first, labels = group[0], self.wiring.labels
        joined = f"to join {labels[first.partner]} and {labels[first.node]}"
        return Move("move", f"Move {what} {' and '.join(map(self._way, plugs))}, {joined}.", plugs)

    def _way(self, plug: Plug) -> str:
        places = [self.wiring.place(end) for end in plug if end is not None]
        return f"from {' to '.join(places)}"

    def _plug(self, group: Sequence[_Change], targets: Sequence[End]) -> tuple[Plug, ...]:
        for change in group:
            del self._taken[change.source]
        self._taken |= {end: change.cable for change, end in zip(group, targets, strict=True)}
        return tuple(Plug(change.source, end) for change, end in zip(group, targets, strict=True))

    def add(self, pair: Pair) -> Move:
        """A new cable between two nodes."""
        a, b = (self.free(node)[0] for node in pair)
        self._taken[a] = self._taken[b] = None
        text = f"Plug a Thunderbolt 5 cable from {self.wiring.place(a)} to {self.wiring.place(b)}."
        return Move("add", text, (Plug(None, a), Plug(None, b)))


def _reseat(wiring: Wiring, cable: Cable) -> Move:
    silent = next(end for end in (cable.a, cable.b) if not _tells(wiring, cable, end))
    ends, who = f"{wiring.place(cable.a)} and {wiring.place(cable.b)}", wiring.labels[silent.node]
    text = f"Push the cable between {ends} in at both ends, and wake {who}: it does not see the cable."
    return Move("reseat", text, (Plug(cable.a, cable.a), Plug(cable.b, cable.b)))


def _tells(wiring: Wiring, cable: Cable, end: End) -> bool:
    other = cable.b if end == cable.a else cable.a
    peer = wiring.port(end).peer
    return peer is not None and peer.domain_uuid == wiring.port(other).domain_uuid


def _could_be_fast(wiring: Wiring, cable: Cable) -> bool:
    return all(wiring.nodes[node].thunderbolt5 is not False for node in cable.pair)


def _replace(wiring: Wiring, cable: Cable) -> Move:
    ends = f"{wiring.place(cable.a)} and {wiring.place(cable.b)}"
    text = f"Replace the cable between {ends} by a Thunderbolt 5 cable: it runs at {cable.gbps:g} Gb/s."
    return Move("replace", text, (Plug(cable.a, cable.a), Plug(cable.b, cable.b)))
