"""The fewest moves to a mesh or ring, on simulated Macs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, combinations_with_replacement

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import ConnectedDevice, NodeFacts
from jaccl_kernel.topology.moves import CablePlan, Move, plan
from jaccl_kernel.topology.wiring import End, Wiring, build_wiring

Edges = tuple[tuple[int, int], ...]


def broken(n: int, *faults: str) -> ClusterSpec:
    return with_faults(ClusterSpec.healthy(n), faults)


def with_ports(n: int, ports: int) -> ClusterSpec:
    """n Macs with so many ports each, and no cables."""
    spec = replace(ClusterSpec.healthy(min(n, 8)), cables=())
    for node in range(n):
        spec = spec.with_mac(node, interfaces={number: f"en{number + 2}" for number in range(1, ports + 1)})
    return spec


def of(spec: ClusterSpec) -> Wiring:
    return build_wiring(facts(spec))


def texts(found: CablePlan) -> list[str]:
    return [move.text for move in found.moves]


def carried_out(spec: ClusterSpec, moves: Sequence[Move]) -> ClusterSpec:
    """The cluster after these moves, one by one; a move to an occupied port fails."""
    for move in moves:
        spec = _after(spec, move)
    return spec


def _after(spec: ClusterSpec, move: Move) -> ClusterSpec:
    def place(end: End) -> tuple[int, int]:
        return end.node, end.port + 1

    ways = {place(s): place(t) for s, t in move.plugs if s is not None and t is not None}
    gone = {place(s) for s, t in move.plugs if s is not None and t is None}
    new = [place(t) for s, t in move.plugs if s is None and t is not None]
    cables = [
        replace(cable, a=ways.get(cable.a, cable.a), b=ways.get(cable.b, cable.b),
                unseen_by=None if move.kind == "reseat" and cable.a in ways else cable.unseen_by,
                gbps=80 if move.kind == "replace" and cable.a in ways else cable.gbps)
        for cable in spec.cables
        if cable.a not in gone and cable.b not in gone
    ]  # fmt: skip
    for node, port in gone:
        devices = {number: name for number, name in spec.macs[node].devices.items() if number != port}
        spec = spec.with_mac(node, devices=devices)
    if new:
        cables.append(CableSpec(new[0], new[1]))
    held = [end for cable in cables for end in (cable.a, cable.b)]
    held += [(node, port) for node, mac in enumerate(spec.macs) for port in mac.devices]
    assert len(held) == len(set(held)), f"a port would hold two plugs after: {move.text}"
    return replace(spec, cables=tuple(cables))


@pytest.mark.parametrize("n", range(1, 7))
def test_a_healthy_cluster_needs_no_move(n: int) -> None:
    found = plan(of(ClusterSpec.healthy(n)))
    assert found == CablePlan("mesh" if n > 1 else None)


def test_a_missing_cable_is_plugged_into_free_ports() -> None:
    found = plan(of(broken(4, "missing-cable:1-3")))
    assert texts(found) == ["Plug a Thunderbolt 5 cable from port 2 of macstudio1 to port 1 of macstudio3."]


def test_a_doubled_cable_is_reused_instead_of_a_new_cable() -> None:
    found = plan(of(broken(4, "doubled-cable:1-2")))
    assert texts(found) == [
        "Move the cable from port 4 of macstudio2 to port 1 of macstudio3, to join macstudio1 and macstudio3."
    ]


def test_swapped_cables_are_swapped_back() -> None:
    found = plan(of(broken(4, "swapped-cable:1-3,2-4")))
    assert [move.kind for move in found.moves] == ["swap"]
    assert texts(found) == ["Swap the cables in port 3 of macstudio2 and port 3 of macstudio1."]


def test_a_cable_to_itself_is_reused() -> None:
    spec = replace(ClusterSpec.healthy(2), cables=(CableSpec((0, 1), (0, 2)),))
    assert texts(plan(of(spec))) == [
        "Move the cable from port 2 of macstudio1 to port 1 of macstudio2, to join macstudio1 and macstudio2."
    ]


def test_a_spare_cable_elsewhere_moves_both_ends() -> None:
    spec = broken(4, "missing-cable:3-4").with_cable(0, 1)
    (move,) = plan(of(spec)).moves
    assert move.text.startswith("Move both ends of a cable, from port 4 of macstudio1 to ")
    assert of(carried_out(spec, [move])).topology == "mesh"


def test_a_half_seen_cable_is_reseated_before_a_new_one_is_requested() -> None:
    found = plan(of(broken(3, "half-seen:1-2")))
    assert [move.kind for move in found.moves] == ["reseat"]
    assert "wake macstudio2" in found.moves[0].text


def test_a_slow_cable_between_fast_macs_is_replaced() -> None:
    spec = ClusterSpec.healthy(3)
    slow = replace(spec, cables=(replace(spec.cables[0], gbps=40), *spec.cables[1:]))
    found = plan(of(slow))
    assert [move.kind for move in found.moves] == ["replace"]
    assert "runs at 40 Gb/s" in found.moves[0].text


def test_no_cable_is_replaced_for_a_thunderbolt_4_mac() -> None:
    assert plan(of(broken(3, "thunderbolt4:3"))) == CablePlan(None)


def test_a_dock_is_not_unplugged_while_ports_are_free() -> None:
    found = plan(of(broken(4, "missing-cable:1-3", "dock:1")))
    assert [move.kind for move in found.moves] == ["add"]


def test_a_dock_is_unplugged_if_its_port_is_needed() -> None:
    spec = with_ports(4, 3).with_mac(0, devices={1: "TS5 Plus"})
    found = plan(of(spec))
    assert found.moves[0].kind == "unplug"
    assert found.moves[0].text.startswith("Unplug TS5 Plus from port 1 of macstudio1")
    assert of(carried_out(spec, found.moves)).topology == "mesh"


def test_a_third_cable_that_blocks_the_ports_is_unplugged() -> None:
    spec = with_ports(3, 2)
    spec = replace(spec, cables=(CableSpec((0, 1), (1, 1)), CableSpec((0, 2), (1, 2), gbps=40)))
    found = plan(of(spec))
    assert [move.kind for move in found.moves] == ["unplug", "add", "add"]
    assert of(carried_out(spec, found.moves)).topology == "mesh"


def test_five_macbooks_get_moves_to_a_ring() -> None:
    spec = with_ports(5, 3)
    found = plan(of(spec))
    assert found.target == "ring"
    assert len(found.moves) == 5
    after = of(carried_out(spec, found.moves))
    assert (after.topology, len(after.cables)) == ("ring", 5)


def test_an_existing_ring_needs_no_move() -> None:
    assert plan(of(ClusterSpec.healthy(8))) == CablePlan("ring")


def test_a_ring_can_be_requested() -> None:
    spec = broken(4, "missing-cable:1-2", "missing-cable:3-4", "missing-cable:1-3")
    found = plan(of(spec), "ring")
    assert found.target == "ring"
    assert [move.kind for move in found.moves] == ["add"]
    assert of(carried_out(spec, found.moves)).ring is not None


def test_untested_macs_get_no_moves_and_lose_no_cable() -> None:
    assert plan(of(broken(4, "asleep:4"))) == CablePlan("mesh")
    assert plan(of(broken(4, "asleep:4", "missing-cable:1-2"))).moves[0].kind == "add"


def test_one_mac_listed_twice_gets_no_moves() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    assert plan(build_wiring([first, second, replace(first, name="again")])) == CablePlan(None)


@st.composite
def any_cabling(draw: st.DrawFn, n: int, ports: int) -> ClusterSpec:
    ends = [(node, port) for node in range(n) for port in range(1, ports + 1)]
    order = draw(st.permutations(ends))
    count = draw(st.integers(0, len(ends) // 2))
    cables = tuple(CableSpec(order[2 * i], order[2 * i + 1]) for i in range(count))
    return replace(with_ports(n, ports), cables=cables)


@settings(max_examples=25)
@given(st.data(), st.integers(2, 5), st.integers(0, 2))
def test_the_moves_always_make_a_mesh(data: st.DataObject, n: int, over: int) -> None:
    spec = data.draw(any_cabling(n, n - 1 + over))
    found = plan(of(spec))
    assert found.target == "mesh"
    assert of(carried_out(spec, found.moves)).topology == "mesh"


@st.composite
def any_trouble(draw: st.DrawFn, n: int, ports: int) -> ClusterSpec:
    """Cables that are slow or seen from one end, docks, and sleeping Macs."""
    spec = draw(any_cabling(n, ports))
    sleepers = draw(st.sets(st.integers(0, n - 1), max_size=1))
    cables = []
    for cable in spec.cables:
        # a cable that neither end sees cannot be detected
        visible = cable.a[0] != cable.b[0] and not sleepers & set(cable.nodes)
        unseen_by = draw(st.sampled_from([None, None, cable.a[0]])) if visible else None
        cables.append(replace(cable, gbps=draw(st.sampled_from([40, 80])), unseen_by=unseen_by))
    spec = replace(spec, cables=tuple(cables))
    for node in range(n):
        free = set(range(1, ports + 1)) - set(spec.cables_of(node))
        docks = draw(st.sets(st.sampled_from(sorted(free)))) if free else set()
        asleep = "asleep" if node in sleepers else "yes"
        spec = spec.with_mac(node, devices=dict.fromkeys(docks, "TS5 Plus"), reachable=asleep)
    return spec


@settings(max_examples=50)
@given(st.data(), st.integers(2, 5), st.integers(0, 2))
def test_the_moves_fix_every_detectable_fault(data: st.DataObject, n: int, over: int) -> None:
    spec = data.draw(any_trouble(n, n - 1 + over))
    before = of(spec)
    after = of(carried_out(spec, plan(before).moves))
    told = {pair for pair in after.pairs if not set(pair) & set(after.untested)}
    if plan(before).target == "mesh":
        assert {pair for pair in told if after.state(pair) == "full"} == told
        assert not any(after.between(pair)[0].is_slow for pair in told)


Claims = dict[tuple[int, int], tuple[int, int]]


def claiming(n: int, ports: int, claims: Claims) -> list[NodeFacts]:
    """Macs whose ports list these peer ports, both as (node, index): true or stale."""
    nodes = facts(with_ports(n, ports))
    uuids = {(i, j): f"uuid-{i}-{j}" for i in range(n) for j in range(ports)}
    for i, node in enumerate(nodes):
        told = []
        for j, port in enumerate(node.ports or ()):
            far = claims.get((i, j))
            plugged = (ConnectedDevice(domain_uuid=uuids[far]),) if far else ()
            told.append(
                replace(port, domain_uuid=uuids[i, j], plugged=plugged, connected=bool(far), current_gbps=80)
            )
        nodes[i] = replace(node, ports=tuple(told))
    return nodes


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 2)), st.tuples(st.integers(0, 3), st.integers(0, 2))
    )
)
@example({(0, 0): (2, 0), (1, 0): (2, 0), (1, 1): (0, 0), (1, 2): (1, 0)})
def test_stale_claims_never_give_a_port_two_cables_and_the_moves_still_make_a_mesh(claims: Claims) -> None:
    wiring = build_wiring(claiming(4, 3, claims))
    held = [end for cable in wiring.cables for end in (cable.a, cable.b)]
    held += [device.end for device in wiring.foreign_devices]
    assert len(held) == len(set(held))
    found = plan(wiring)
    assert found.target == "mesh"
    assert joined(wiring, found.moves) == set(wiring.pairs)


def joined(wiring: Wiring, moves: Sequence[Move]) -> set[tuple[int, int]]:
    """The pairs that have a cable after these moves; a move to an occupied port fails."""
    holder: dict[End, object] = {device.end: device for device in wiring.foreign_devices}
    holder |= {end: cable for cable in wiring.cables for end in (cable.a, cable.b)}
    for move in moves:
        new = object()
        lifted = [(holder.pop(source) if source else new, target) for source, target in move.plugs]
        for held, target in lifted:
            if target is not None:
                assert target not in holder, f"a port would hold two plugs after: {move.text}"
                holder[target] = held
    nodes: dict[int, list[int]] = {}
    for end, held in sorted(holder.items()):
        nodes.setdefault(id(held), []).append(end.node)
    return {(a, b) for a, b in (ends for ends in nodes.values() if len(ends) == 2) if a != b}


@settings(max_examples=25)
@given(st.data(), st.integers(5, 6))
def test_the_moves_always_make_a_ring_if_no_mesh_fits(data: st.DataObject, n: int) -> None:
    spec = data.draw(any_cabling(n, 3))
    found = plan(of(spec))
    assert found.target == "ring"
    assert of(carried_out(spec, found.moves)).topology == "ring"


@settings(max_examples=25)
@given(st.data(), st.integers(3, 4), st.integers(0, 1))
def test_no_plan_needs_fewer_new_cables_or_fewer_moved_ends(data: st.DataObject, n: int, over: int) -> None:
    spec = data.draw(any_cabling(n, n - 1 + over))
    moves = plan(of(spec)).moves
    cables = tuple(sorted(cable.nodes for cable in spec.cables))
    needed = n * (n - 1) // 2
    assert sum(move.kind == "add" for move in moves) == max(0, needed - len(cables))
    moved = sum(len(move.plugs) for move in moves if move.kind in ("move", "swap"))
    assert moved == fewest(n, len(cables))[cables]


@cache
def fewest(n: int, count: int) -> dict[Edges, int]:
    """Minimum number of ends to move for each layout of `count` cables, by a search back from all goals."""
    kinds = list(combinations_with_replacement(range(n), 2))
    pairs = set(combinations(range(n), 2))
    every = list(combinations_with_replacement(kinds, count))
    distance = {edges: 0 for edges in every if len(pairs & set(edges)) == min(count, len(pairs))}
    layer = list(distance)
    while layer:
        following = []
        for edges in layer:
            for moved in _one_move(edges, n):
                if moved not in distance:
                    distance[moved] = distance[edges] + 1
                    following.append(moved)
        layer = following
    return distance


def _one_move(edges: Edges, n: int) -> Iterator[Edges]:
    for i, edge in enumerate(edges):
        for stays in set(edge):
            for node in range(n):
                yield tuple(sorted((*edges[:i], (min(stays, node), max(stays, node)), *edges[i + 1 :])))


def test_the_search_knows_the_distance_of_simple_cases() -> None:
    assert fewest(3, 3)[(0, 1), (0, 2), (1, 2)] == 0
    assert fewest(3, 3)[(0, 1), (0, 1), (1, 2)] == 1
    assert fewest(4, 6)[(0, 1), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)] == 2


def test_a_cable_beside_ethernet_moves_to_a_free_port() -> None:
    spec = broken(3, "beside-ethernet:2")
    [move] = plan(of(spec)).moves
    assert move.text == (
        "Move the cable from port 6 of macstudio2 to port 1 of macstudio2: "
        "the port beside Ethernet carries no RDMA."
    )
    assert plan(of(carried_out(spec, [move]))).moves == ()


def test_no_new_cable_goes_beside_ethernet() -> None:
    spec = replace(ClusterSpec.healthy(6), cables=())
    ends = [end for move in plan(of(spec)).moves for plug in move.plugs for end in [plug.target] if end]
    assert len(ends) == 30
    assert not any(of(spec).port(end).beside_ethernet for end in ends)
