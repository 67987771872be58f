"""Faults, and that each shows where it should and nowhere else."""

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.faults import FAULTS, STALE_COORDINATOR, with_fault, with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts, results, ssh_error
from jaccl_kernel.topology.facts import NodeFacts

EXAMPLES = (
    "missing-cable:1-3",
    "doubled-cable:1-2",
    "swapped-cable:1-3,2-4",
    "swapped-cable:2",
    "half-seen:1-2",
    "dock:2",
    "hub:1-2",
    "beside-ethernet:2",
    "rdma-off:2",
    "thunderbolt4:3",
    "old-macos:3",
    "macos-skew:2",
    "bridged-port:2",
    "bridged-port:2:3",
    "no-ipv4:3",
    "gid-index-2:2",
    "hang:2:ibv_devinfo",
    "version-skew:2",
    "stale-coordinator",
    "partial-model:3",
    "ssh-fails:4",
    "asleep:3",
)


def broken(*faults: str) -> list[NodeFacts]:
    return facts(with_faults(ClusterSpec.healthy(4), faults))


def states(mac: NodeFacts) -> dict[str, bool | None]:
    return {device.name: device.active for device in mac.devices or ()}


def test_the_examples_cover_every_fault() -> None:
    assert {example.partition(":")[0] for example in EXAMPLES} == {fault.name for fault in FAULTS}


@pytest.mark.parametrize("fault", EXAMPLES)
def test_each_fault_changes_the_cluster(fault: str) -> None:
    spec = ClusterSpec.healthy(4)
    assert with_fault(spec, fault) != spec


@pytest.mark.parametrize("fault", [e for e in EXAMPLES if not e.startswith(("stale", "partial"))])
def test_each_fault_of_a_mac_shows_in_what_is_scanned(fault: str) -> None:
    assert broken(fault) != facts(ClusterSpec.healthy(4))


def test_rdma_off_takes_the_devices_away_and_the_peers_ports_down() -> None:
    macs = broken("rdma-off:2")
    assert (macs[1].rdma, macs[1].devices) == ("disabled", ())
    assert states(macs[0])["rdma_en3"] is False
    assert states(macs[0])["rdma_en4"] is True
    assert [port.peer.rdma_service for port in macs[0].ports or () if port.peer] == [False, True, True]


def test_a_thunderbolt_4_mac_is_enabled_and_lists_nothing() -> None:
    mac = broken("thunderbolt4:3")[2]
    assert (mac.rdma, mac.devices, mac.thunderbolt5) == ("enabled", (), False)


def test_a_bridged_port_has_no_address_and_no_gid() -> None:
    mac = broken("bridged-port:2")[1]
    interface, device = mac.interface("en3"), mac.device("rdma_en3")
    assert interface is not None
    assert device is not None
    assert (interface.bridge, interface.ipv4, device.gids, device.active) == ("bridge0", (), (), True)
    assert broken("bridged-port:2:3")[1].interface("en7").bridge == "bridge0"  # type: ignore[union-attr]


def test_a_port_without_ipv4_has_only_its_link_local_gid() -> None:
    mac = broken("no-ipv4:3")[2]
    interface, device = mac.interface("en3"), mac.device("rdma_en3")
    assert interface is not None
    assert device is not None
    assert (interface.ipv4, device.ipv4_gid, len(device.gids or ())) == ((), None, 1)


def test_the_ipv4_gid_stands_at_index_2() -> None:
    device = broken("gid-index-2:2")[1].device("rdma_en3")
    assert device is not None
    assert device.ipv4_gid is not None
    assert device.ipv4_gid[0] == 2


def test_a_hanging_command_times_out_alone() -> None:
    mac = broken("hang:2:ibv_devinfo")[1]
    assert {key for key, outcome in mac.outcomes.items() if outcome.status == "timeout"} == {"ibv_devinfo"}


def test_a_mac_out_of_reach_gives_nothing_but_the_reason() -> None:
    for fault, words in (("asleep:3", "timed out"), ("ssh-fails:3", "Permission denied")):
        spec = with_fault(ClusterSpec.healthy(4), fault)
        assert results(spec, 2) == {}
        assert words in (ssh_error(spec.macs[2]) or "")
        assert facts(spec)[2].error == ssh_error(spec.macs[2])
    assert states(broken("asleep:3")[0])["rdma_en4"] is False
    assert states(broken("ssh-fails:3")[0])["rdma_en4"] is True


def test_version_and_build_skew() -> None:
    macs = broken("version-skew:2", "macos-skew:3")
    assert [mac.python.mlx for mac in macs if mac.python] == ["0.32.4", "0.31.0", "0.32.4", "0.32.4"]
    assert len({mac.build for mac in macs}) == 2


def test_faults_that_no_scan_shows_are_in_the_description() -> None:
    spec = with_faults(ClusterSpec.healthy(4), ["stale-coordinator", "partial-model:3"])
    assert spec.coordinator == STALE_COORDINATOR
    assert STALE_COORDINATOR not in {mac.lan_ip for mac in spec.macs}
    assert [mac.partial_model for mac in spec.macs] == [False, False, True, False]


def test_faults_add_up() -> None:
    macs = broken("rdma-off:2", "hang:2:df", "hang:2:pmset", "dock:2", "dock:2")
    assert macs[1].rdma == "disabled"
    assert {key for key, outcome in macs[1].outcomes.items() if outcome.status == "timeout"} == {
        "df", "pmset", "pmset_batt", "pmset_ac", "pmset_assertions"
    }  # fmt: skip
    assert sum(bool(port.plugged) and port.peer is None for port in macs[1].ports or ()) == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gremlins:2", "Choose from: missing-cable:A-B"),
        ("", "unknown fault ''"),
        ("missing-cable", "Use missing-cable:A-B"),
        ("missing-cable:1", "Use missing-cable:A-B"),
        ("missing-cable:1-1", "no cable connects Mac 1 and Mac 1"),
        ("missing-cable:1-9", "Mac 9 does not exist"),
        ("rdma-off:0", "Mac 0 does not exist"),
        ("rdma-off:x", "Use rdma-off:N"),
        ("rdma-off:٣", "Use rdma-off:N"),
        ("no-ipv4:2:17", "has no port 17"),
        ("hang:2", "Use hang:N:COMMAND"),
        ("hang:2:rm -rf", "Use hang:N:COMMAND"),
        ("hang:2:vim", "a scan does not run vim"),
        ("stale-coordinator:1", "Use stale-coordinator"),
        ("swapped-cable:1-2,1-2", "cannot swap a cable with itself"),
    ],
)
def test_an_invalid_fault_is_refused_with_the_syntax(fault: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        with_fault(ClusterSpec.healthy(4), fault)
    assert words in str(caught.value)
    assert repr(fault) in str(caught.value)


def test_a_cable_that_was_taken_cannot_be_taken_again() -> None:
    with pytest.raises(InputError, match="no cable connects Mac 3 and Mac 1"):
        with_faults(ClusterSpec.healthy(4), ["missing-cable:1-3", "missing-cable:3-1"])


def test_a_single_mac_has_no_cables_to_swap_and_no_six_macs_ports_for_two_docks() -> None:
    with pytest.raises(InputError, match="fewer than two cables"):
        with_fault(ClusterSpec.healthy(1), "swapped-cable:1")
    with pytest.raises(InputError, match="no free Thunderbolt port"):
        with_faults(ClusterSpec.healthy(6), ["dock:1", "dock:1"])
