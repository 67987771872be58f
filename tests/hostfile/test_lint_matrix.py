"""The rules of `check` for a matrix, cell by cell: they cover every error of mlx.launch and JACCL."""

import argparse
import json
from types import SimpleNamespace
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx._distributed_utils import common as mlx_common
from mlx._distributed_utils import launch as mlx_launch

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check, has_errors
from jaccl_kernel.hostfile.matrix import verdict
from tests.topology.samples import changed, cluster, found, with_cells

# Shape


def test_a_file_without_any_matrix_cannot_run_jaccl() -> None:
    hostfile = Hostfile.loads('[{"ssh": "a", "ips": ["10.0.0.1"]}, {"ssh": "b"}]')
    assert found(hostfile, "jaccl") == [("rdma-missing", "error", "rdma")]


def test_only_short_or_missing_rows_are_reported() -> None:
    hostfile = changed(cluster(), 1, rdma=("rdma_en2", None, "rdma_en3"))
    assert found(changed(hostfile, 3, rdma=())) == [
        ("rdma-row-length", "error", "host 1 (m1.local), rdma"),
        ("rdma-row-length", "error", "host 3 (m3.local), rdma"),
    ]


@pytest.mark.parametrize("cell", [7, True, {}, ("rdma_en2", 7), (("rdma_en2",),), (None,)])
@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_a_cell_of_a_wrong_type_is_an_error_in_any_position(cell: object, backend: str) -> None:
    """JACCL's parser reads the whole file, also what a ring does not use."""
    hostfile = with_cells(cluster(), (0, 2, cell))
    assert found(hostfile, backend) == [("rdma-cell-type", "error", "host 0 (m0.local), rdma[2]")]


@pytest.mark.parametrize("cell", ["", "rdma_en9", (), ("rdma_en9",)])
@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_a_diagonal_that_is_not_null_is_an_error(cell: object, backend: str) -> None:
    problems = found(with_cells(cluster(3), (1, 1, cell)), backend)
    assert problems == [("rdma-diagonal", "error", "host 1 (m1.local), rdma[1]")]


# Cells


@pytest.mark.parametrize("cell", [None, ()])
def test_a_cell_without_a_device_is_reported_if_only_the_peer_has_one(cell: object) -> None:
    hostfile = with_cells(cluster(), (3, 1, cell))
    assert found(hostfile) == [("rdma-cell-empty", "error", "host 3 (m3.local), rdma[1]")]
    problem = check(hostfile, environ={})[0]
    words = "host 1 (m1.local) has no device, although its cell for the reverse direction is rdma_en5"
    assert words in problem.message
    assert "jaccl-ring" in problem.fix


def test_a_ring_is_not_recommended_if_it_is_incomplete_too() -> None:
    (problem,) = check(with_cells(cluster(), (1, 2, None)), environ={})
    assert "jaccl-ring" not in problem.fix


def test_an_empty_name_is_an_error() -> None:
    hostfile = with_cells(cluster(), (0, 1, ("rdma_en2", "")))
    assert ("rdma-name-empty", "error", "host 0 (m0.local), rdma[1]") in found(hostfile)


def test_a_device_for_two_peers_is_reported_at_the_second_cell() -> None:
    hostfile = with_cells(cluster(), (2, 3, "rdma_en4"))
    assert found(hostfile) == [("device-shared", "error", "host 2 (m2.local), rdma[3]")]
    assert "already connects to host 1 (m1.local)" in check(hostfile, environ={})[0].message
    ring = check(hostfile, backend="jaccl-ring", environ={})
    assert ("device-shared", "error") in [(problem.code, problem.severity) for problem in ring]


def test_a_device_named_twice_in_one_cell_is_an_error() -> None:
    twice = ("rdma_en7", "rdma_en7")
    hostfile = with_cells(cluster(2), (0, 1, twice), (1, 0, ("rdma_en2", "rdma_en3")))
    for backend in ("jaccl", "jaccl-ring"):
        assert ("rdma-name-twice", "error", "host 0 (m0.local), rdma[1]") in found(hostfile, backend)


def test_a_mesh_of_nine_is_an_error() -> None:
    names = [f"m{rank}" for rank in range(9)]
    hosts = [
        {
            "ssh": name,
            "ips": ["10.0.0.1"] if rank == 0 else [],
            "rdma": [None if peer == rank else f"rdma_en{peer}" for peer in range(9)],
        }
        for rank, name in enumerate(names)
    ]
    hostfile = Hostfile.loads(json.dumps({"backend": "jaccl", "hosts": hosts}))
    assert found(hostfile) == [("mesh-size", "error", "hosts")]
    assert not has_errors(check(hostfile, backend="jaccl-ring", environ={}))


def test_a_placeholder_for_a_device_is_an_error_once_per_host() -> None:
    hostfile = with_cells(cluster(), (0, 1, "rdma_enX"), (1, 0, "mlx5_0"))
    assert found(hostfile) == [
        ("rdma-name", "error", "host 0 (m0.local), rdma[1]"),
        ("rdma-name", "error", "host 1 (m1.local), rdma[0]"),
    ]


def test_equal_lists_in_a_mesh_are_fine_and_unequal_ends_a_warning() -> None:
    pair = with_cells(cluster(2), (0, 1, ("rdma_en2", "rdma_en3")), (1, 0, ("rdma_en2", "rdma_en3")))
    assert found(pair) == []
    assert found(with_cells(pair, (1, 0, "rdma_en2"))) == [
        ("mesh-extra-names", "warning", "host 0 (m0.local), rdma[1]"),
        ("wires-unequal", "warning", "host 0 (m0.local), rdma[1]"),
    ]
    assert found(with_cells(pair, (0, 1, "rdma_en2")))[1][2] == "host 1 (m1.local), rdma[0]"


def test_unequal_wires_in_a_ring_are_an_error() -> None:
    two = ("rdma_en6", "rdma_en7")
    hostfile = with_cells(cluster(4), (2, 3, two), (3, 2, two))
    assert found(hostfile, "jaccl-ring")[:2] == [
        ("ring-wires-unequal", "error", "host 2 (m2.local), rdma[3]"),
        ("ring-wires-unequal", "error", "host 3 (m3.local), rdma[2]"),
    ]


def test_five_wires_in_a_ring_are_an_error() -> None:
    five = tuple(f"rdma_en{number}" for number in range(2, 7))
    hostfile = with_cells(cluster(2), (0, 1, five), (1, 0, five))
    assert [code for code, _, _ in found(hostfile, "jaccl-ring")] == ["ring-wires", "ring-wires"]


def test_cells_that_a_ring_ignores_are_a_warning() -> None:
    assert found(cluster(4), "jaccl-ring") == [
        ("ring-ignores-cells", "warning", "host 0 (m0.local), rdma[2]")
    ]
    assert found(cluster(3), "jaccl-ring") == []


# Never less than mlx.launch and JACCL

ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "m0.local", "::1", ""]), max_size=2)
DEVICES = st.sampled_from(["", "rdma_en2", "rdma_en3", "rdma_en4"])
CELLS = st.none() | DEVICES | st.lists(DEVICES, max_size=3) | st.just(7)


@st.composite
def hostfiles(draw: st.DrawFn) -> Hostfile:
    """A template with a few changes, so that some files are valid."""
    size = draw(st.integers(2, 5))
    hostfile = changed(cluster(size), 0, ips=tuple(draw(st.just(["10.0.0.1"]) | ADDRESSES)))
    for _ in range(draw(st.integers(0, 3))):
        rank, column = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
        cell = draw(CELLS)
        hostfile = with_cells(hostfile, (rank, column, tuple(cell) if isinstance(cell, list) else cell))
    if draw(st.booleans()) and draw(st.booleans()):
        hostfile = changed(hostfile, draw(st.integers(0, size - 1)), rdma=(None,))
    return hostfile


class _RefusedError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _RefusedError(message)


def refusal(hostfile: Hostfile, backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of mlx.launch's own code for a hostfile before it starts a process, or ""."""
    monkeypatch.setattr(mlx_launch, "_launch_with_io", lambda *_: None)
    hosts = [
        mlx_common.Host(rank, host.ssh, list(host.ips), list(host.rdma))
        for rank, host in enumerate(hostfile.hosts)
    ]
    args = SimpleNamespace(backend=backend, env=[], cwd=None, starting_port=1, verbose=False, python=None)
    try:
        mlx_launch.launch_jaccl(_Parser(), hosts, args, ["true"])
    except (_RefusedError, IndexError) as error:
        return str(error)
    return ""


@settings(max_examples=150)
@given(hostfiles(), st.sampled_from(["jaccl", "jaccl-ring"]))
def test_a_file_without_errors_works_with_mlx_launch_and_jaccl(hostfile: Hostfile, backend: str) -> None:
    problems = check(hostfile, backend=backend, environ={})
    with pytest.MonkeyPatch.context() as monkeypatch:
        refused = refusal(hostfile, backend, monkeypatch)
    ring = backend == "jaccl-ring"
    outcomes = [
        verdict(hostfile.rdma, prefer_ring=ring, mesh_wires="first"),
        verdict(hostfile.rdma, prefer_ring=ring, mesh_wires="all"),
    ]
    sound = not refused and all(outcome.kind == ("ring" if ring else "mesh") for outcome in outcomes)
    assert sound or has_errors(problems), (refused, outcomes)


@given(hostfiles(), st.sampled_from(["jaccl", "jaccl-ring", "ring"]))
def test_no_location_has_the_same_problem_twice(hostfile: Hostfile, backend: str) -> None:
    told = [(problem.code, problem.where) for problem in check(hostfile, backend=backend, environ={})]
    assert len(set(told)) == len(told)


RING = {(0, 1): "rdma_en3", (1, 2): "rdma_en4", (2, 3): "rdma_en3", (3, 0): "rdma_en4"}


def ring_of_four(order: str) -> Hostfile:
    """The ring a-b-c-d-a, with its hosts in that order."""
    joined = {frozenset(("abcd"[i], "abcd"[j])): name for (i, j), name in RING.items()}
    hosts = [
        {
            "ssh": f"{own}.local",
            "ips": [f"10.0.0.{rank + 1}"],
            "rdma": [joined.get(frozenset((own, other))) if own != other else None for other in order],
        }
        for rank, own in enumerate(order)
    ]
    return Hostfile.loads(json.dumps({"backend": "jaccl-ring", "hosts": hosts}))


def test_the_hosts_of_a_permuted_ring_are_told_their_order() -> None:
    assert found(ring_of_four("abcd")) == []
    [problem] = check(ring_of_four("acbd"), environ={})
    assert (problem.code, problem.severity) == ("ring-order", "error")
    order = problem.fix.partition(": ")[2].replace(".local", "").replace(", ", "").rstrip(".")
    assert found(ring_of_four(order)) == []


def test_a_part_of_a_ring_is_no_ring() -> None:
    [problem] = check(ring_of_four("abcd").subset([0, 1, 2]), environ={})
    assert (problem.code, problem.severity) == ("ring-none", "error")
    assert "c.local" in problem.message
    assert "a.local" in problem.message
    assert "form no ring" in problem.message
