"""Facts -> cables, topology and matrices."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccl_kernel.hostfile import matrix
from jaccl_kernel.hostfile.matrix import hamiltonian_cycle
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import ConnectedDevice, NodeFacts, PortFacts
from jaccl_kernel.topology.wiring import Cable, End, Wiring, build_wiring


def wired(n: int, *faults: str) -> Wiring:
    return build_wiring(facts(with_faults(ClusterSpec.healthy(n), faults)))


def cabled(n: int, cables: Sequence[CableSpec]) -> Wiring:
    return build_wiring(facts(replace(ClusterSpec.healthy(n), cables=tuple(cables))))


def names(matrix_: Sequence[Sequence[str | list[str] | None]]) -> list[list[str | list[str] | None]]:
    return [list(row) for row in matrix_]


@pytest.mark.parametrize("n", range(2, 7))
def test_a_healthy_cluster_is_a_mesh_that_jaccl_accepts(n: int) -> None:
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


def test_one_mac_needs_no_cables() -> None:
    wiring = wired(1)
    assert (wiring.topology, wiring.cables, wiring.rdma_matrix()) == ("single", (), [[None]])
    assert build_wiring([]).topology == "single"


def test_a_missing_cable_gives_null_on_both_sides_and_a_ring() -> None:
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


def test_a_mac_without_port_facts_is_untested_not_missing() -> None:
    wiring = wired(3, "asleep:3")
    assert wiring.untested == (2,)
    assert [wiring.state(pair) for pair in wiring.pairs] == ["full", "untested", "untested"]
    assert wiring.topology == "untested"
    assert {device.kind for device in wiring.foreign_devices} == {"mac"}


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
    port = PortFacts(1, "U1", "en3", connected=True, plugged=(ConnectedDevice(domain_uuid="U1"),))
    wiring = build_wiring([NodeFacts("a", "a", ports=(port,))])
    assert wiring.cables == ()
    assert [device.kind for device in wiring.foreign_devices] == ["stale"]


def test_docks_and_unknown_macs_are_foreign_devices() -> None:
    dock, other = ConnectedDevice("TS5 Plus"), ConnectedDevice("MacBook Pro", domain_uuid="U9")
    behind = (dock, replace(other, behind="TS5 Plus"))
    ports = (
        PortFacts(1, "U1", plugged=(dock,)),
        PortFacts(2, "U2", plugged=(other,)),
        PortFacts(3, "U3", plugged=behind),
        PortFacts(4, "U4", connected=True),
    )
    wiring = build_wiring([NodeFacts("a", "a", ports=ports)])
    assert [(s.end.port, s.kind) for s in wiring.foreign_devices] == [
        (0, "device"),
        (1, "mac"),
        (2, "dock"),
        (3, "device"),
    ]


def test_a_claim_on_a_port_of_another_cable_is_stale() -> None:
    def port(uuid: str, peer: str) -> tuple[PortFacts, ...]:
        return (PortFacts(1, uuid, "en3", connected=True, plugged=(ConnectedDevice(domain_uuid=peer),)),)

    nodes = [NodeFacts(name, name, ports=port(*uuids)) for name, uuids in
             {"a": ("UA", "UB"), "b": ("UB", "UC"), "c": ("UC", "UB")}.items()]  # fmt: skip
    wiring = build_wiring(nodes)
    assert [cable.pair for cable in wiring.cables] == [(1, 2)]
    assert [(device.end.node, device.kind) for device in wiring.foreign_devices] == [(0, "stale")]


def test_one_mac_listed_twice_is_detected() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    wiring = build_wiring([first, second, replace(first, name="again")])
    assert wiring.cables == ()
    assert {tuple(end.node for end in ends) for ends in wiring.duplicates} == {(0, 2)}


def test_two_macs_with_the_same_name_get_unique_labels() -> None:
    nodes = [replace(mac, name="studio") for mac in facts(ClusterSpec.healthy(2))]
    wiring = build_wiring(nodes)
    assert wiring.labels == ("studio (#1)", "studio (#2)")
    assert wiring.place(End(1, 2)) == "port 3 of studio (#2)"


def test_ports_without_an_interface_give_no_device() -> None:
    nodes = facts(ClusterSpec.healthy(2))
    bare = replace(nodes[1], ports=tuple(replace(port, interface=None) for port in nodes[1].ports or ()))
    wiring = build_wiring([nodes[0], bare])
    assert wiring.state((0, 1)) == "full"
    assert wiring.rdma_matrix() == [[None, None], [None, None]]


def test_eight_macs_have_no_ports_for_a_mesh_and_run_as_a_ring() -> None:
    wiring = wired(8)
    assert (wiring.topology, wiring.mesh_fits, wiring.is_only_a_ring) == ("ring", False, True)
    rows = wiring.ring_matrix()
    assert rows is not None
    assert matrix.verdict(names(rows), prefer_ring=True).kind == "ring"


def test_nine_macs_are_refused_as_a_mesh() -> None:
    assert (
        build_wiring([*facts(ClusterSpec.healthy(8)), NodeFacts("ninth", "ninth", ports=())]).mesh_fits
        is False
    )


def test_a_ring_matrix_has_the_order_of_the_ring() -> None:
    wiring = cabled(4, [CableSpec((0, 1), (2, 1)), CableSpec((2, 2), (1, 1)), CableSpec((1, 2), (3, 1)),
                        CableSpec((3, 2), (0, 2))])  # fmt: skip
    assert wiring.ring == (0, 2, 1, 3)
    assert wiring.ring_matrix() == [
        [None, "rdma_en3", None, "rdma_en4"],
        ["rdma_en3", None, "rdma_en4", None],
        [None, "rdma_en3", None, "rdma_en6"],
        ["rdma_en6", None, "rdma_en3", None],
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
        used = [name for cell in row if cell for name in ([cell] if isinstance(cell, str) else cell)]
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


def test_a_cycle_is_found_if_and_only_if_one_exists() -> None:
    square = {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert hamiltonian_cycle(4, square) == (0, 1, 2, 3)
    assert hamiltonian_cycle(4, square - {(0, 3)}) is None
    assert hamiltonian_cycle(5, square) is None
    assert hamiltonian_cycle(1, set()) is None


def test_all_cables_of_every_pair_are_used_in_the_same_order_at_both_ends() -> None:
    wiring = cabled(2, [CableSpec((0, 2), (1, 1)), CableSpec((0, 1), (1, 2))])
    assert wiring.rdma_matrix() == [[None, ["rdma_en3", "rdma_en4"]], [["rdma_en6", "rdma_en3"], None]]
    ends = [("0.rdma_en3", "1.rdma_en6"), ("0.rdma_en4", "1.rdma_en3")]
    rows = names(wiring.rdma_matrix())
    assert matrix.verdict(rows, cables=ends, mesh_wires="all").message.endswith("2 wires to each peer.")
    assert matrix.verdict(rows, cables=ends, prefer_ring=True).kind == "ring"


def test_a_pair_with_one_cable_limits_the_others_to_one() -> None:
    spec = ClusterSpec.healthy(3).with_cable(0, 1)
    wiring = build_wiring(facts(spec))
    assert wiring.rdma_matrix() == wired(3).rdma_matrix()
    assert [len(wiring.used(pair)) for pair in wiring.pairs] == [1, 1, 1]


def test_a_ring_uses_as_many_cables_as_its_weakest_link() -> None:
    ring = [CableSpec((i, port), ((i + 1) % 4, port + 2)) for i in range(4) for port in (1, 2)]
    rows = cabled(4, ring).ring_matrix()
    assert rows is not None
    assert {len(cell or ()) for i, row in enumerate(rows) for cell in (row[i - 1], row[(i + 1) % 4])} == {2}
    assert matrix.verdict(names(rows), prefer_ring=True).kind == "ring"


def test_the_port_beside_ethernet_is_used_only_where_no_other_cable_is() -> None:
    beside = CableSpec((0, 5), (1, 1))
    alone = cabled(2, [beside])
    assert (alone.topology, alone.rdma_matrix()) == ("mesh", [[None, "rdma_en2"], ["rdma_en3", None]])
    both = cabled(2, [beside, CableSpec((0, 1), (1, 2))])
    assert both.rdma_matrix() == [[None, "rdma_en3"], ["rdma_en6", None]]


def test_a_mac_studio_has_five_ports_for_rdma_and_a_macbook_keeps_its_en2() -> None:
    studio, other = facts(ClusterSpec.healthy(2))
    macbook = replace(other, ports=tuple(replace(p, product="MacBook Pro") for p in other.ports or ()))
    wiring = build_wiring([studio, macbook])
    assert [len(wiring.usable_ports(node)) for node in (0, 1)] == [5, 6]
    assert build_wiring(facts(ClusterSpec.healthy(6))).topology == "mesh"
    assert build_wiring(facts(ClusterSpec.healthy(7))).mesh_fits is False


def test_a_link_through_a_hub_is_used_and_named() -> None:
    wiring = wired(3, "hub:1-2")
    assert wiring.topology == "mesh"
    [cable] = wiring.between((0, 1))
    assert (cable.seen, cable.hub) == ("both", "Thunderbolt 5 hub")
    assert wiring.rdma_matrix() == wired(3).rdma_matrix()


def test_a_direct_cable_is_preferred_to_one_through_a_hub() -> None:
    spec = with_faults(ClusterSpec.healthy(3), ["hub:1-2"]).with_cable(0, 1)
    wiring = build_wiring(facts(spec))
    assert wiring.between((0, 1))[0].hub is None


def test_one_of_two_macs_behind_a_hub_is_found() -> None:
    hub = ConnectedDevice("Hub")
    other = ConnectedDevice("Mac", domain_uuid="U9", behind="Hub")
    behind = (hub, other, replace(other, domain_uuid="U2"))
    first = PortFacts(1, "U1", "en3", plugged=behind)
    second = PortFacts(1, "U2", "en3", plugged=(ConnectedDevice("a", domain_uuid="U1"),))
    macs = [NodeFacts("a", "a", ports=(first,)), NodeFacts("b", "b", ports=(second,))]
    [cable] = build_wiring(macs).cables
    assert (cable.seen, cable.hub) == ("both", "Hub")
