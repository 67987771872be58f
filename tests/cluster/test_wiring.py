"""Facts -> cables, topology and matrices. Run: pytest tests/cluster/test_wiring.py"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccl_kernel.cluster import matrix
from jaccl_kernel.cluster.facts import NodeFacts, Plugged, PortFacts
from jaccl_kernel.cluster.wiring import Cable, End, Wiring, hamiltonian_cycle, wire
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts


def wired(n: int, *faults: str) -> Wiring:
    return wire(facts(with_faults(ClusterSpec.healthy(n), faults)))


def cabled(n: int, cables: Sequence[CableSpec]) -> Wiring:
    return wire(facts(replace(ClusterSpec.healthy(n), cables=tuple(cables))))


def names(matrix_: Sequence[Sequence[str | list[str] | None]]) -> list[list[str | list[str] | None]]:
    return [list(row) for row in matrix_]


@pytest.mark.parametrize("n", range(2, 8))
def test_a_healthy_cluster_is_a_mesh_that_jaccl_takes(n: int) -> None:
    wiring = wired(n)
    assert wiring.topology == "mesh"
    assert len(wiring.cables) == n * (n - 1) // 2
    assert {cable.seen for cable in wiring.cables} == {"both"}
    assert matrix.verdict(names(wiring.rdma_matrix())).kind == "mesh"


def test_the_matrix_names_the_devices_of_both_ends() -> None:
    assert wired(3).rdma_matrix() == [
        [None, "rdma_en3", "rdma_en4"],
        ["rdma_en3", None, "rdma_en6"],
        ["rdma_en3", "rdma_en4", None],
    ]


def test_a_cable_knows_its_two_ends_and_speed() -> None:
    (cable,) = wired(2).cables
    assert cable == Cable(End(0, 0), End(1, 0), "both", 80.0)
    assert cable.end_at(1) == End(1, 0)
    assert not cable.is_slow


def test_one_mac_has_nothing_to_cable() -> None:
    wiring = wired(1)
    assert (wiring.topology, wiring.cables, wiring.rdma_matrix()) == ("single", (), [[None]])
    assert wire([]).topology == "single"


def test_a_missing_cable_leaves_null_on_both_sides_and_a_ring() -> None:
    wiring = wired(4, "missing-cable:1-3")
    assert wiring.state((0, 2)) == "missing"
    assert wiring.rdma_matrix()[0][2] is None
    assert wiring.rdma_matrix()[2][0] is None
    assert wiring.topology == "ring"


def test_three_macs_in_a_row_are_neither_mesh_nor_ring() -> None:
    wiring = wired(3, "missing-cable:1-3")
    assert (wiring.topology, wiring.ring, wiring.ring_matrix()) == ("none", None, None)


def test_a_doubled_cable_is_two_cables_of_one_pair() -> None:
    wiring = wired(4, "doubled-cable:1-2")
    assert len(wiring.between((0, 1))) == 2
    assert wiring.state((0, 2)) == "missing"


def test_the_faster_of_two_cables_is_used() -> None:
    fast, slow = CableSpec((0, 1), (1, 1)), CableSpec((0, 2), (1, 2), gbps=40)
    for cables in ([fast, slow], [slow, fast]):
        wiring = cabled(2, cables)
        assert wiring.between((0, 1))[0].a == End(0, 0)
        assert wiring.rdma_matrix() == [[None, "rdma_en3"], ["rdma_en3", None]]


def test_swapped_cables_join_the_wrong_macs() -> None:
    wiring = wired(4, "swapped-cable:1-3,2-4")
    assert [wiring.state(pair) for pair in ((0, 2), (1, 3))] == ["missing", "missing"]
    assert [len(wiring.between(pair)) for pair in ((0, 3), (1, 2))] == [2, 2]


def test_cables_that_change_ports_on_one_mac_keep_the_mesh_and_change_the_matrix() -> None:
    before, after = wired(4), wired(4, "swapped-cable:2")
    assert after.topology == "mesh"
    assert after.rdma_matrix()[1][0] == before.rdma_matrix()[1][2]
    assert after.rdma_matrix()[1][2] == before.rdma_matrix()[1][0]
    assert after.rdma_matrix()[0] == before.rdma_matrix()[0]


def test_a_cable_that_one_end_does_not_see_is_no_proof() -> None:
    wiring = wired(2, "half-seen:1-2")
    assert (wiring.state((0, 1)), wiring.topology) == ("half", "none")
    assert wiring.rdma_matrix() == [[None, None], [None, None]]


def test_a_mac_that_did_not_tell_is_not_tested_rather_than_missing() -> None:
    wiring = wired(3, "asleep:3")
    assert wiring.untested == (2,)
    assert [wiring.state(pair) for pair in wiring.pairs] == ["full", "untested", "untested"]
    assert wiring.topology == "untested"
    assert {stranger.kind for stranger in wiring.strangers} == {"mac"}


def test_a_thunderbolt_4_mac_makes_slow_cables_and_no_mesh() -> None:
    wiring = wired(3, "thunderbolt4:3")
    assert [cable.is_slow for cable in wiring.cables] == [False, True, True]
    assert wiring.usable_ports(2) == ()
    assert wiring.topology == "none"


def test_a_cable_from_a_mac_to_itself_joins_no_pair() -> None:
    wiring = cabled(2, [CableSpec((0, 1), (0, 2))])
    (loop,) = wiring.cables
    assert loop.is_loop
    assert wiring.state((0, 1)) == "missing"


def test_a_port_that_lists_itself_is_no_cable() -> None:
    port = PortFacts(1, "U1", "en3", connected=True, plugged=(Plugged(domain_uuid="U1"),))
    wiring = wire([NodeFacts("a", "a", ports=(port,))])
    assert wiring.cables == ()
    assert [stranger.kind for stranger in wiring.strangers] == ["stale"]


def test_docks_and_unknown_macs_are_strangers() -> None:
    dock, other = Plugged("TS5 Plus"), Plugged("MacBook Pro", domain_uuid="U9")
    behind = (dock, replace(other, behind="TS5 Plus"))
    ports = (
        PortFacts(1, "U1", plugged=(dock,)),
        PortFacts(2, "U2", plugged=(other,)),
        PortFacts(3, "U3", plugged=behind),
        PortFacts(4, "U4", connected=True),
    )
    wiring = wire([NodeFacts("a", "a", ports=ports)])
    assert [(s.end.port, s.kind) for s in wiring.strangers] == [
        (0, "device"),
        (1, "mac"),
        (2, "dock"),
        (3, "device"),
    ]


def test_a_claim_on_a_port_that_another_cable_holds_is_stale() -> None:
    def port(uuid: str, peer: str) -> tuple[PortFacts, ...]:
        return (PortFacts(1, uuid, "en3", connected=True, plugged=(Plugged(domain_uuid=peer),)),)

    nodes = [NodeFacts(name, name, ports=port(*uuids)) for name, uuids in
             {"a": ("UA", "UB"), "b": ("UB", "UC"), "c": ("UC", "UB")}.items()]  # fmt: skip
    wiring = wire(nodes)
    assert [cable.pair for cable in wiring.cables] == [(1, 2)]
    assert [(stranger.end.node, stranger.kind) for stranger in wiring.strangers] == [(0, "stale")]


def test_one_mac_listed_twice_is_noticed() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    wiring = wire([first, second, replace(first, name="again")])
    assert wiring.cables == ()
    assert {tuple(end.node for end in ends) for ends in wiring.duplicates} == {(0, 2)}


def test_two_macs_of_one_name_are_told_apart() -> None:
    nodes = [replace(mac, name="studio") for mac in facts(ClusterSpec.healthy(2))]
    wiring = wire(nodes)
    assert wiring.labels == ("studio (#1)", "studio (#2)")
    assert wiring.place(End(1, 2)) == "port 3 of studio (#2)"


def test_ports_without_an_interface_give_no_device() -> None:
    nodes = facts(ClusterSpec.healthy(2))
    bare = replace(nodes[1], ports=tuple(replace(port, interface=None) for port in nodes[1].ports or ()))
    wiring = wire([nodes[0], bare])
    assert wiring.state((0, 1)) == "full"
    assert wiring.rdma_matrix() == [[None, None], [None, None]]


def test_eight_macs_have_no_ports_for_a_mesh_and_run_as_a_ring() -> None:
    wiring = wired(8)
    assert (wiring.topology, wiring.mesh_fits, wiring.is_only_a_ring) == ("ring", False, True)
    rows = wiring.ring_matrix()
    assert rows is not None
    assert matrix.verdict(names(rows), prefer_ring=True).kind == "ring"


def test_nine_macs_are_refused_as_a_mesh() -> None:
    assert wire([*facts(ClusterSpec.healthy(8)), NodeFacts("ninth", "ninth", ports=())]).mesh_fits is False


def test_a_ring_matrix_stands_in_the_rings_own_order() -> None:
    wiring = cabled(4, [CableSpec((0, 1), (2, 1)), CableSpec((2, 2), (1, 1)), CableSpec((1, 2), (3, 1)),
                        CableSpec((3, 2), (0, 2))])  # fmt: skip
    assert wiring.ring == (0, 2, 1, 3)
    assert wiring.ring_matrix() == [
        [None, ["rdma_en3"], None, ["rdma_en4"]],
        [["rdma_en3"], None, ["rdma_en4"], None],
        [None, ["rdma_en3"], None, ["rdma_en6"]],
        [["rdma_en6"], None, ["rdma_en3"], None],
    ]


@settings(max_examples=50)
@given(st.integers(2, 6), st.data())
def test_a_matrix_is_reciprocal_and_uses_no_device_twice(n: int, data: st.DataObject) -> None:
    ends = [(node, port) for node in range(n) for port in range(1, 7)]
    order = data.draw(st.permutations(ends))
    count = data.draw(st.integers(0, len(ends) // 2))
    cables = [CableSpec(order[2 * i], order[2 * i + 1]) for i in range(count)]
    wiring = cabled(n, cables)
    rows = wiring.rdma_matrix()
    for i, row in enumerate(rows):
        used = [name for name in row if name is not None]
        assert len(used) == len(set(used))
        assert [cell is None for cell in row] == [rows[j][i] is None for j in range(n)]
    joined = {tuple(sorted((a[0], b[0]))) for a, b in ((c.a, c.b) for c in cables) if a[0] != b[0]}
    assert {pair for pair in wiring.pairs if wiring.state(pair) == "full"} == joined


@given(st.integers(2, 6), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_a_cycle_visits_every_node_along_cables(n: int, drawn: set[tuple[int, int]]) -> None:
    joined = {(a, b) for a, b in drawn if a < b < n}
    order = hamiltonian_cycle(n, joined)
    if order is None:
        return
    assert sorted(order) == list(range(n))
    assert all((min(a, b), max(a, b)) in joined for a, b in zip(order, order[1:] + order[:1], strict=True))


def test_a_cycle_is_found_where_there_is_one_and_only_there() -> None:
    square = {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert hamiltonian_cycle(4, square) == (0, 1, 2, 3)
    assert hamiltonian_cycle(4, square - {(0, 3)}) is None
    assert hamiltonian_cycle(5, square) is None
    assert hamiltonian_cycle(1, set()) is None
