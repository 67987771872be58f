"""A hostfile compared with the Macs, cell by cell."""

from dataclasses import replace

import pytest

from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology import compare
from jaccl_kernel.topology.wiring import Wiring, build_wiring


def cabled(*faults: str, n: int = 4) -> Wiring:
    return build_wiring(facts(with_faults(ClusterSpec.healthy(n), faults)))


def fitting(wiring: Wiring, *cells: tuple[int, int, object]) -> Hostfile:
    """The hostfile of this cabling, some cells changed to (rank, column, value)."""
    rows: list[list[object]] = [list(row) for row in wiring.rdma_matrix()]
    for rank, column, value in cells:
        rows[rank][column] = value
    hosts = [Host(label, rdma=tuple(row)) for label, row in zip(wiring.labels, rows, strict=True)]
    hosts[0] = replace(hosts[0], ips=("10.0.0.11",))
    return Hostfile(tuple(hosts), "jaccl")


def cells(hostfile: Hostfile, wiring: Wiring, *, ring: bool = False) -> list[Problem]:
    return compare.cell_problems(hostfile, wiring, ring=ring)


def ports(hostfile: Hostfile, wiring: Wiring) -> list[Problem]:
    return compare.port_problems(compare.device_uses(hostfile, wiring, ring=False), wiring)


def gids(hostfile: Hostfile, wiring: Wiring) -> list[Problem]:
    return compare.gid_problems(compare.device_uses(hostfile, wiring, ring=False), wiring)


HEALTHY = cabled()
SOUND = fitting(HEALTHY)


@pytest.mark.parametrize("n", range(2, 8))
def test_a_hostfile_from_the_wiring_has_no_problem(n: int) -> None:
    wiring = cabled(n=n)
    hostfile = fitting(wiring)
    assert cells(hostfile, wiring) == ports(hostfile, wiring) == gids(hostfile, wiring) == []


def test_a_wrong_cell_is_named_with_its_actual_peer_and_the_right_device() -> None:
    right, wrong = SOUND.hosts[2].rdma[0], SOUND.hosts[2].rdma[3]
    problem = cells(fitting(HEALTHY, (2, 0, wrong)), HEALTHY)[0]
    assert problem.code == "cell-wrong"
    assert problem.where == "host 2 (macstudio3), rdma[0]"
    assert problem.message == (
        f"set to {wrong}, but the cable in that port connects to macstudio4; "
        f"the cable to macstudio1 is on {right}."
    )
    assert problem.fix == f"Set the cell to {right}, or move the cable."


def test_every_wrong_cell_is_named() -> None:
    row = SOUND.hosts[1].rdma
    swapped = fitting(HEALTHY, (1, 0, row[2]), (1, 2, row[0]))
    assert [p.where for p in cells(swapped, HEALTHY)] == [
        "host 1 (macstudio2), rdma[0]",
        "host 1 (macstudio2), rdma[2]",
    ]


def test_a_device_that_does_not_exist_is_named_with_those_that_do() -> None:
    problem = cells(fitting(HEALTHY, (0, 1, "rdma_en12")), HEALTHY)[0]
    assert problem.code == "cell-no-device"
    assert "rdma_en12, which macstudio1 does not have; its devices are rdma_en2, rdma_en3" in problem.message
    assert problem.fix == f"Set the cell to {SOUND.hosts[0].rdma[1]}."


def test_a_device_on_an_empty_port_or_with_a_dock_is_reported() -> None:
    empty = cells(fitting(HEALTHY, (0, 1, "rdma_en7")), HEALTHY)[0]
    assert "nothing is connected to port 6 of macstudio1" in empty.message
    docked = cabled("dock:1")
    problem = cells(fitting(docked, (0, 1, "rdma_en6")), docked)[0]
    assert "TS5 Plus is connected to port 4 of macstudio1" in problem.message


def test_an_unplugged_cable_makes_both_its_cells_wrong() -> None:
    found = cells(SOUND, cabled("missing-cable:1-3"))
    assert [p.where for p in found] == ["host 0 (macstudio1), rdma[2]", "host 2 (macstudio3), rdma[0]"]
    assert "no cable connects macstudio1 and macstudio3" in found[0].message
    assert found[0].fix.startswith("Connect macstudio1 and macstudio3 with a cable")


def test_swapped_cables_make_the_old_matrix_wrong_and_name_the_right_devices() -> None:
    wiring = cabled("swapped-cable:2")
    for problem in cells(SOUND, wiring):
        assert problem.code == "cell-wrong"
        assert "host 1 (macstudio2)" in problem.where
    assert cells(fitting(wiring), wiring) == []


def test_cells_that_name_two_different_cables_of_one_pair_are_reported() -> None:
    wiring = cabled("doubled-cable:1-2", n=3)
    first, second = wiring.between((0, 1))
    crossed = fitting(wiring, (0, 1, wiring.port(second.a).rdma_device))
    problem = next(p for p in cells(crossed, wiring) if p.code == "cell-crossed")
    assert problem.where == "host 0 (macstudio1), rdma[1]"
    assert "two different cables" in problem.message
    assert str(wiring.port(second.b).rdma_device) in problem.fix
    assert str(wiring.port(first.b).rdma_device) in problem.message


def test_a_cable_that_only_one_end_sees_is_no_proof() -> None:
    problems = cells(SOUND, cabled("half-seen:1-2"))
    assert {p.code for p in problems} == {"cell-half"}


def test_cells_of_a_mac_without_facts_are_untested_not_wrong() -> None:
    found = cells(SOUND, cabled("ssh-fails:4"))
    assert {p.code for p in found} == {compare.UNTESTED}
    assert {p.severity for p in found} == {"warning"}
    assert "host 3 (macstudio4), rdma[0]" in {p.where for p in found}


def test_a_hanging_ibv_devinfo_means_a_stuck_rdma_stack() -> None:
    wiring = cabled("hang:2:ibv_devinfo")
    uses = compare.device_uses(SOUND, wiring, ring=False)
    [problem] = {p for p in compare.port_problems(uses, wiring) if "(macstudio2), rdma[0]" in p.where}
    assert "The RDMA stack of macstudio2 is stuck." in problem.message
    assert problem.fix.startswith("Plug the Thunderbolt cables of macstudio2 in again; otherwise restart it.")


def test_a_ring_is_checked_by_the_cells_of_its_neighbours_only() -> None:
    wiring = cabled("missing-cable:1-3")
    order = wiring.ring
    matrix = wiring.ring_matrix()
    assert order is not None
    assert matrix is not None
    turned = build_wiring([wiring.nodes[node] for node in order])
    hosts = [Host(label, rdma=tuple(row)) for label, row in zip(turned.labels, matrix, strict=True)]
    assert cells(Hostfile(tuple(hosts), "jaccl-ring"), turned, ring=True) == []


def test_ports_are_down_for_a_reason_at_the_other_end() -> None:
    off = ports(SOUND, cabled("rdma-off:2"))
    assert {p.code for p in off} == {"port-down", "device-missing"}
    down = next(p for p in off if p.code == "port-down")
    assert down.message == "rdma_en3 is PORT_DOWN: RDMA is off on macstudio2 at the other end."
    asleep = ports(SOUND, cabled("asleep:4"))
    assert "macstudio4 at the other end does not answer and may be asleep" in asleep[0].message


def test_a_cell_without_a_cable_has_a_port_that_is_down() -> None:
    found = ports(SOUND, cabled("missing-cable:1-3"))
    assert "no cable of this cluster is in port 2 of macstudio1" in found[0].message


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("no-ipv4:3", "gid-no-ipv4", "port 1 of macstudio3 (rdma_en3) has no IPv4 address"),
        ("bridged-port:2", "gid-bridge", "is a member of bridge0"),
        ("gid-index-2:2", "gid-index", "at index 2, but JACCL sends with index 1"),
    ],
)
def test_an_unusable_gid_is_reported_with_its_cause(fault: str, code: str, words: str) -> None:
    (problem,) = gids(SOUND, cabled(fault))
    assert problem.code == code
    assert words in problem.message
    assert problem.fix


def test_an_ipv4_gid_at_index_0_is_reported() -> None:
    nodes = list(HEALTHY.nodes)
    devices = tuple(
        replace(one, gids=((0, "::ffff:169.254.1.1"),)) if one.name == "rdma_en3" else one
        for one in nodes[0].devices or ()
    )
    nodes[0] = replace(nodes[0], devices=devices)
    (problem,) = gids(SOUND, build_wiring(nodes))
    assert "at index 0" in problem.message
    assert "link-local IPv6 address, which should be at index 0, is missing" in problem.message
    assert "instead of off" in problem.fix


def test_a_coordinator_on_a_thunderbolt_port_is_a_warning_with_the_port_number() -> None:
    address = next(one for one in HEALTHY.nodes[0].interfaces or () if one.name == "en3").ipv4[0].ip
    problem = compare.coordinator_problem(address, HEALTHY.nodes, HEALTHY.labels)
    assert problem is not None
    assert (problem.code, problem.severity) == ("coordinator-thunderbolt", "warning")
    assert f"{address} is on Thunderbolt port 1 (en3) of macstudio1" in problem.message
    assert problem.fix == "Write 10.0.0.11 (en0, Ethernet)."


def test_the_gids_of_a_mac_without_devices_are_untested() -> None:
    found = gids(SOUND, cabled("rdma-off:2"))
    assert {p.code for p in found} == {compare.UNTESTED}
    assert all("macstudio2" in p.where for p in found)


def test_states_and_gids_are_untested_if_the_command_timed_out() -> None:
    wiring = cabled("hang:2:ibv_devinfo")
    for found in (ports(SOUND, wiring), gids(SOUND, wiring)):
        assert {p.code for p in found} == {compare.UNTESTED}
        assert "ibv_devinfo on macstudio2 timed out" in found[0].message


def test_without_a_matrix_the_ports_come_from_the_cables() -> None:
    bare = Hostfile(tuple(Host(label) for label in HEALTHY.labels))
    assert len(compare.device_uses(bare, HEALTHY, ring=False)) == 12


def test_the_coordinator_is_checked_against_the_addresses_of_rank_0() -> None:
    assert compare.coordinator_problem("10.0.0.11", HEALTHY.nodes, HEALTHY.labels) is None
    problem = compare.coordinator_problem("10.0.0.99", HEALTHY.nodes, HEALTHY.labels)
    assert problem is not None
    assert problem.code == "coordinator-stale"
    assert problem.fix == "Write 10.0.0.11 (en0, Ethernet)."
    silent = cabled("asleep:1")
    problem = compare.coordinator_problem("10.0.0.11", silent.nodes, silent.labels)
    assert problem is not None
    assert problem.code == compare.UNTESTED


def test_a_row_of_a_wrong_length_is_skipped() -> None:
    hosts = (replace(SOUND.hosts[0], rdma=(None, "x")), *SOUND.hosts[1:])
    found = cells(replace(SOUND, hosts=hosts), HEALTHY)
    assert not any("host 0" in p.where for p in found)
