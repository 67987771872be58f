"""JACCL's result for a matrix: 80 runs of the real code, each rule by itself, and invariants."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.hostfile.matrix import Verdict, neighbours, verdict

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "jaccl_matrix_cases.jsonl").read_text().splitlines()
]
EN = [f"rdma_en{number}" for number in range(20)]
Matrix = list[list[Any]]


def mesh(size: int) -> Matrix:
    """A plain mesh: every rank reaches its peers, in order, by rdma_en2, rdma_en3, …"""
    return [[None if j == i else EN[2 + j - (j > i)] for j in range(size)] for i in range(size)]


def mesh_cables(rdma: Matrix) -> list[list[str]]:
    """The cables that fit a mesh of single names."""
    return [[f"{i}.{rdma[i][j]}", f"{j}.{rdma[j][i]}"] for i, j in combinations(range(len(rdma)), 2)]


def ring(size: int, wires: int = 1) -> Matrix:
    """A ring with `wires` cables between neighbours and nothing else."""
    rdma: Matrix = [[None] * size for _ in range(size)]
    for rank in range(size):
        left, right = neighbours(rank, size)
        rdma[rank][left] = EN[2 : 2 + wires]
        if right != left:
            rdma[rank][right] = EN[10 : 10 + wires]
    return rdma


def test_all_recorded_cases_are_present() -> None:
    assert len(CASES) == 80


@pytest.mark.parametrize("case", CASES, ids=[f"row{n}-{c['verdict']}" for n, c in enumerate(CASES)])
def test_the_verdict_equals_the_result_of_the_real_jaccl(case: dict[str, Any]) -> None:
    devices = [case["devices"]] * len(case["rdma"])
    outcome = verdict(case["rdma"], prefer_ring=case["prefer_ring"], devices=devices, cables=case["cables"])
    assert outcome.kind == case["verdict"]
    # the RTR cases have one message per failed rank; the verdict has one of them
    assert not case["messages"] or any(message in outcome.message for message in case["messages"])


# The parser


@pytest.mark.parametrize("rdma", [None, 7, True, "mesh", {}, {"0": []}])
def test_a_matrix_that_is_not_a_list_is_refused(rdma: object) -> None:
    outcome = verdict(rdma)
    assert outcome.kind == "error"
    assert "should start with an array" in outcome.message


@pytest.mark.parametrize("row", [None, "rdma_en2", 7, {}])
def test_a_row_that_is_not_a_list_is_named(row: object) -> None:
    outcome = verdict([[None, "rdma_en2"], row])
    assert (outcome.kind, outcome.rank) == ("error", 1)
    assert "array of arrays" in outcome.message


def test_a_row_of_a_wrong_length_is_named() -> None:
    outcome = verdict([[None, "rdma_en2"], ["rdma_en2"]])
    assert (outcome.kind, outcome.rank) == ("error", 1)
    assert "rank 1 contains only 1 entries" in outcome.message
    assert verdict([[None, "a", "b"], ["a", None]]).rank == 0


@pytest.mark.parametrize("cell", [7, 0, 1.5, True, False, {}, {"device": "rdma_en2"}])
def test_a_cell_of_a_wrong_type_is_refused_even_on_the_diagonal(cell: object) -> None:
    outcome = verdict([[cell, "rdma_en2"], ["rdma_en2", None]])
    assert (outcome.kind, outcome.rank, outcome.column) == ("error", 0, 0)
    assert "[jaccl] Device names should be null, a string or array of strings." in outcome.message


@pytest.mark.parametrize("entry", [7, True, None, [], ["rdma_en2"], {}])
def test_a_list_with_an_entry_that_is_not_a_name_is_refused(entry: object) -> None:
    outcome = verdict([[None, "rdma_en2"], [["rdma_en2", entry], None]])
    assert (outcome.kind, outcome.rank, outcome.column) == ("error", 1, 0)
    assert "type must be string" in outcome.message


def test_the_first_error_in_reading_order_is_reported() -> None:
    """Row 0 has a bad cell, row 1 is short: the parser goes row by row."""
    assert "Device names" in verdict([[7, "rdma_en2"], ["rdma_en2"]]).message
    assert "rank 0 contains only 1" in verdict([[7], ["rdma_en2", None]]).message


# Which topology


@pytest.mark.parametrize(("rdma", "kind"), [([], "singleton"), ([[None]], "singleton"), ([[7]], "error")])
def test_fewer_than_two_ranks_are_no_group(rdma: object, kind: str) -> None:
    assert verdict(rdma).kind == kind


@pytest.mark.parametrize("size", range(2, 9))
def test_a_mesh_is_a_mesh_and_on_request_a_ring(size: int) -> None:
    assert verdict(mesh(size)).kind == "mesh"
    assert verdict(mesh(size), prefer_ring=True).kind == "ring"


def test_a_ring_is_used_if_the_mesh_is_incomplete() -> None:
    rdma = mesh(4)
    rdma[0][2] = None
    assert verdict(rdma).kind == "ring"


def test_a_mesh_is_used_if_the_ring_is_unequal() -> None:
    rdma = mesh(4)
    rdma[0][1] = ["rdma_en2", "rdma_en7"]
    assert verdict(rdma, prefer_ring=True).kind == "mesh"


def test_neither_mesh_nor_ring_has_both_reasons() -> None:
    rdma = mesh(4)
    rdma[2][1] = None
    outcome = verdict(rdma)
    assert (outcome.kind, outcome.rank, outcome.column) == ("singleton", 2, 1)
    assert "rank 2 has no device for rank 1" in outcome.message
    assert "rank 2 has 0 devices for its neighbour rank 1" in outcome.message


@pytest.mark.parametrize("cell", ["", "rdma_en2", ["rdma_en2"], [""]])
def test_a_name_on_the_diagonal_is_no_mesh(cell: object) -> None:
    rdma = mesh(4)
    rdma[1][1] = cell
    rdma[0][1] = None
    assert verdict(rdma).kind == "singleton"


def test_an_empty_list_on_the_diagonal_counts_as_null() -> None:
    rdma = mesh(3)
    rdma[1][1] = []
    assert verdict(rdma).kind == "mesh"


def test_a_ring_ignores_all_cells_except_those_of_neighbours() -> None:
    rdma = ring(5)
    rdma[0][2] = ""
    rdma[3][3] = ["nonsense", ""]
    assert verdict(rdma, devices=EN).kind == "ring"


# What one rank dies of


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_without_wires_crashes(size: int) -> None:
    assert verdict([[None] * size] * size).kind == "crash"
    assert verdict([[[]] * size] * size, prefer_ring=True).kind == "crash"


@pytest.mark.parametrize("prefer_ring", [False, True])
def test_an_empty_name_crashes(prefer_ring: bool) -> None:
    rdma = mesh(3)
    rdma[1][2] = ""
    outcome = verdict(rdma, prefer_ring=prefer_ring)
    assert (outcome.kind, outcome.rank, outcome.column) == ("crash", 1, 2)


def test_a_device_that_does_not_exist_on_the_host_is_named() -> None:
    rdma = mesh(3)
    outcome = verdict(rdma, devices=[EN, ["rdma_en2"], EN])
    assert (outcome.kind, outcome.rank, outcome.column) == ("error", 1, 2)
    assert "[jaccl] Could not find device rdma_en3 (1 available)" in outcome.message


def test_a_missing_device_is_found_before_an_empty_name_on_the_same_rank() -> None:
    rdma = mesh(3)
    rdma[0] = [None, "", "rdma_en42"]
    assert verdict(rdma, devices=EN[:8]).kind == "error"


def test_a_crash_on_one_rank_takes_precedence_over_an_error_on_another() -> None:
    rdma = mesh(3)
    rdma[0][1] = "rdma_en42"
    rdma[2][0] = ""
    outcome = verdict(rdma, devices=EN[:8])
    assert (outcome.kind, outcome.rank) == ("crash", 2)


@pytest.mark.parametrize("peer", [1, 2])
def test_one_device_for_two_peers_of_a_mesh_crashes(peer: int) -> None:
    """64 memory regions a peer, whether the peers are neighbours or not; a device has about 100."""
    rdma = mesh(5)
    rdma[0][peer] = rdma[0][3]
    outcome = verdict(rdma)
    assert (outcome.kind, outcome.rank) == ("crash", 0)
    assert "128 memory regions" in outcome.message


def test_a_ring_fits_three_wires_on_one_device_but_not_four() -> None:
    rdma = ring(4, wires=2)
    rdma[0][1] = ["rdma_en2", "rdma_en4"]
    rdma[0][3] = ["rdma_en2", "rdma_en2"]
    assert verdict(rdma).kind == "ring"
    rdma[0][1] = ["rdma_en2", "rdma_en2"]
    assert verdict(rdma).kind == "crash"


def test_a_ring_of_two_counts_each_wire_in_both_directions() -> None:
    assert verdict([[None, "rdma_en2"], ["rdma_en2", None]], prefer_ring=True).kind == "ring"
    twice = ["rdma_en2", "rdma_en2"]
    assert verdict([[None, twice], [twice, None]], prefer_ring=True).kind == "crash"


def test_a_mesh_of_nine_is_refused_and_a_ring_of_nine_is_not() -> None:
    outcome = verdict(mesh(9))
    assert outcome.kind == "error"
    assert "up to 8 peers but 9 were provided" in outcome.message
    assert verdict(mesh(9), prefer_ring=True).kind == "ring"


def test_a_ring_supports_four_wires_and_not_five() -> None:
    assert verdict(ring(4, wires=4)).kind == "ring"
    outcome = verdict(ring(4, wires=5))
    assert outcome.kind == "error"
    assert "Up to 4 per direction supported but 5 were provided" in outcome.message


# Several names in a mesh's cell


def test_a_mesh_uses_only_first_names_or_as_many_as_the_shortest_cell() -> None:
    rdma: Matrix = [[None, ["rdma_en2", "rdma_en42"]], [["rdma_en2", "rdma_en3"], None]]
    assert verdict(rdma, devices=EN[:8]).kind == "mesh"
    assert verdict(rdma, devices=EN[:8], mesh_wires="all").kind == "error"
    rdma[1][0] = "rdma_en2"
    assert verdict(rdma, devices=EN[:8], mesh_wires="all").kind == "mesh"


def test_many_wires_on_one_device_run_out_of_queue_pairs_first() -> None:
    six = ["rdma_en2"] * 6
    rdma = [[None, six, six], [six, None, six], [six, six, None]]
    outcome = verdict(rdma, mesh_wires="all")
    assert outcome.kind == "error"
    assert "Creating the queue pair failed" in outcome.message
    assert verdict(rdma, mesh_wires="first").kind == "crash"


# Cables


def test_a_swapped_cable_is_named_by_its_cell() -> None:
    rdma = mesh(3)
    cables = mesh_cables(rdma)
    assert verdict(rdma, cables=cables).kind == "mesh"
    cables[0], cables[1] = ["0.rdma_en3", "1.rdma_en2"], ["0.rdma_en2", "2.rdma_en2"]
    outcome = verdict(rdma, cables=cables)
    assert (outcome.kind, outcome.rank, outcome.column) == ("error", 0, 1)
    assert "RTR failed with errno 60" in outcome.message


def test_a_port_without_a_cable_is_distinguished_from_a_wrong_one() -> None:
    rdma = mesh(3)
    outcome = verdict(rdma, cables=mesh_cables(rdma)[1:])
    assert outcome.kind == "error"
    assert "RTR failed with errno 107" in outcome.message


def test_a_cable_has_no_direction() -> None:
    rdma = mesh(4)
    assert verdict(rdma, cables=[cable[::-1] for cable in mesh_cables(rdma)]).kind == "mesh"


def test_wires_of_a_ring_pair_by_index() -> None:
    cables = [["0.rdma_en2", "1.rdma_en2"], ["0.rdma_en3", "1.rdma_en3"]]
    straight: Matrix = [[None, ["rdma_en2", "rdma_en3"]], [["rdma_en2", "rdma_en3"], None]]
    crossed: Matrix = [[None, ["rdma_en2", "rdma_en3"]], [["rdma_en3", "rdma_en2"], None]]
    assert verdict(straight, prefer_ring=True, cables=cables).kind == "ring"
    assert verdict(crossed, prefer_ring=True, cables=cables).kind == "error"


def test_no_cables_differ_from_unknown_cables() -> None:
    assert verdict(mesh(2), cables=[]).kind == "error"
    assert verdict(mesh(2), cables=None).kind == "mesh"


# Arguments


def test_one_list_of_devices_applies_to_every_host() -> None:
    rdma = mesh(3)
    rdma[0][1] = "rdma_en42"
    assert verdict(rdma, devices=EN) == verdict(rdma, devices=[EN] * 3)


@pytest.mark.parametrize(
    "devices",
    [[EN], [EN] * 3, [EN, "rdma_en2"], [EN, None], [EN, ["rdma_en2", 3]], "rdma_en2", {"rdma_en2": 1}, 7],
)
def test_devices_must_be_one_list_per_rank(devices: Any) -> None:
    with pytest.raises(ValueError, match="devices"):
        verdict(mesh(2), devices=devices)


@pytest.mark.parametrize(
    "cable",
    [
        *("0.rdma_en2", ["0.rdma_en2"], ["0.rdma_en2", 1], ["a", "b", "c"], None, 7),
        *(["0.rdma_en2", "rdma_en3"], ["0.rdma_en2", "1."]),
    ],
)
def test_a_cable_must_be_a_pair_of_ends(cable: Any) -> None:
    with pytest.raises(ValueError, match="pair"):
        verdict(mesh(2), cables=[cable])


# What must always hold

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(EN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)
CELLS = st.none() | st.sampled_from(["", *EN[2:5]]) | st.lists(st.sampled_from(["", *EN[2:5]]), max_size=3)
SQUARES = st.integers(0, 4).flatmap(
    lambda size: st.lists(st.lists(CELLS, min_size=size, max_size=size), min_size=size, max_size=size)
)


@st.composite
def cabled_meshes(draw: st.DrawFn) -> tuple[Matrix, list[list[str]]]:
    """A mesh of 2 to 8 ranks in which every host has its peers on arbitrary ports."""
    size = draw(st.integers(2, 8))
    rdma: Matrix = []
    for rank in range(size):
        ports = iter(draw(st.permutations(EN[2 : 2 + size])))
        rdma.append([None if peer == rank else next(ports) for peer in range(size)])
    return rdma, mesh_cables(rdma)


@given(
    JSON_VALUES | SQUARES | st.lists(st.lists(JSON_VALUES, max_size=3), max_size=3),
    st.booleans(),
    st.sampled_from(["first", "all"]),
)
def test_any_json_gets_a_verdict(
    rdma: object, prefer_ring: bool, mesh_wires: Literal["first", "all"]
) -> None:
    outcome = verdict(rdma, prefer_ring=prefer_ring, mesh_wires=mesh_wires, cables=[])
    assert isinstance(outcome, Verdict)
    assert outcome.message
    assert not outcome.joins  # there are no cables


@given(cabled_meshes(), st.sampled_from(["first", "all"]))
def test_reciprocal_cables_make_a_mesh(
    built: tuple[Matrix, list[list[str]]], mesh_wires: Literal["first", "all"]
) -> None:
    rdma, cables = built
    assert verdict(rdma, devices=EN, cables=cables, mesh_wires=mesh_wires).kind == "mesh"
    assert verdict(rdma, devices=EN, cables=cables, prefer_ring=True).kind == "ring"


@given(cabled_meshes(), st.data())
def test_a_mesh_stays_one_in_any_order_of_its_ranks(
    built: tuple[Matrix, list[list[str]]], data: st.DataObject
) -> None:
    rdma, _ = built
    order = data.draw(st.permutations(range(len(rdma))))
    moved = [[rdma[i][j] for j in order] for i in order]
    assert verdict(moved, cables=mesh_cables(moved)).kind == "mesh"


@given(cabled_meshes(), st.data())
def test_any_missing_cable_is_detected_at_one_of_its_ends(
    built: tuple[Matrix, list[list[str]]], data: st.DataObject
) -> None:
    rdma, cables = built
    lost = data.draw(st.sampled_from(cables))
    outcome = verdict(rdma, cables=[cable for cable in cables if cable != lost])
    assert outcome.kind == "error"
    assert f"{outcome.rank}.{rdma[outcome.rank or 0][outcome.column or 0]}" in lost


@given(SQUARES, st.booleans())
def test_tuples_and_single_names_are_equal_to_lists(rdma: Matrix, prefer_ring: bool) -> None:
    spelled = tuple(
        tuple((cell,) if isinstance(cell, str) else tuple(cell or ()) for cell in row) for row in rdma
    )
    assert verdict(spelled, prefer_ring=prefer_ring) == verdict(rdma, prefer_ring=prefer_ring)
