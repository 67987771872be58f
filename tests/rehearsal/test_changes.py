"""What typed commands do to a simulated Mac, and the way back."""

import shlex

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.changes import after, change
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import InterfaceFacts, NodeFacts


def typed(spec: ClusterSpec, *lines: str) -> ClusterSpec:
    """The cluster after these lines were typed, in order, on its first Mac."""
    for line in lines:
        spec = change(spec, 0, shlex.split(line))
    return spec


def broken(*faults: str) -> ClusterSpec:
    return with_faults(ClusterSpec.healthy(3), faults)


def first(spec: ClusterSpec) -> NodeFacts:
    return facts(spec)[0]


def interface(spec: ClusterSpec, name: str = "en3") -> InterfaceFacts:
    found = first(spec).interface(name)
    assert found is not None
    return found


def gid(spec: ClusterSpec, device: str = "rdma_en3") -> tuple[int, str] | None:
    found = first(spec).device(device)
    assert found is not None
    return found.ipv4_gid


def test_an_address_makes_the_gid_appear_and_its_removal_takes_it_away() -> None:
    spec = broken("no-ipv4:1")
    given = typed(spec, "ifconfig en3 inet 192.168.5.1 netmask 255.255.255.252")
    assert gid(spec) is None
    assert gid(given) == (1, "192.168.5.1")
    assert [(one.ip, one.prefix) for one in interface(given).ipv4] == [("192.168.5.1", 30)]
    assert facts(typed(given, "ifconfig en3 inet 192.168.5.1 delete")) == facts(spec)


@pytest.mark.parametrize(
    "line",
    [
        "ifconfig en3 inet 192.168.5.1/30",
        "ifconfig en3 192.168.5.1 netmask 0xfffffffc",
        "ifconfig en3 inet 192.168.5.1 netmask 255.255.255.252 up",
        "networksetup -setmanual 'Thunderbolt 1' 192.168.5.1 255.255.255.252",
    ],
)
def test_the_ways_to_write_an_address_are_one(line: str) -> None:
    expected = typed(broken(), "ifconfig en3 inet 192.168.5.1 netmask 255.255.255.252")
    assert facts(typed(broken(), line)) == facts(expected)


def test_an_alias_stands_beside_the_first_address_and_goes_alone() -> None:
    spec = typed(broken(), "ifconfig en3 inet 192.168.5.1 netmask 255.255.255.252 alias")
    assert [one.ip for one in interface(spec).ipv4] == ["169.254.1.1", "192.168.5.1"]
    assert gid(spec) == (1, "169.254.1.1")
    assert facts(typed(spec, "ifconfig en3 inet 192.168.5.1 -alias")) == facts(broken())


def test_a_port_leaves_the_bridge_without_an_address_and_can_go_back() -> None:
    spec = broken("bridged-port:1")
    out = typed(spec, "ifconfig bridge0 deletem en3")
    assert (interface(out).bridge, interface(out).ipv4, gid(out)) == (None, (), None)
    assert gid(typed(out, "ifconfig en3 inet 169.254.7.7 netmask 255.255.0.0")) == (1, "169.254.7.7")
    assert facts(typed(out, "ifconfig bridge0 addm en3")) == facts(spec)


def test_a_port_of_a_bridge_that_is_down_gets_its_gid_with_an_address() -> None:
    spec = broken("bridged-port:1")
    addressed = typed(spec, "ifconfig en3 inet 192.168.5.1 netmask 255.255.255.252")
    assert gid(addressed) is None
    assert gid(typed(addressed, "ifconfig bridge0 down")) == (1, "192.168.5.1")
    back = typed(addressed, "ifconfig bridge0 down", "ifconfig bridge0 up", "ifconfig en3 inet delete")
    assert facts(back) == facts(spec)


def test_an_interface_that_is_down_has_neither_link_nor_gids() -> None:
    down = typed(broken(), "ifconfig en3 down")
    device = first(down).device("rdma_en3")
    assert device is not None
    assert (interface(down).active, device.active, device.gids) == (False, False, ())
    assert facts(typed(down, "ifconfig en3 up")) == facts(broken())


def test_the_address_in_the_way_of_index_1_can_be_removed() -> None:
    spec = broken("gid-index-2:1")
    assert gid(spec) == (2, "169.254.1.1")
    assert gid(typed(spec, "ifconfig en3 inet6 fd00::1:1 delete")) == (1, "169.254.1.1")


def test_macos_gives_an_address_again_when_asked() -> None:
    spec = typed(broken("no-ipv4:1"), "networksetup -setdhcp 'Thunderbolt 1'")
    assert gid(spec) == (1, "169.254.1.1")
    assert gid(typed(spec, "networksetup -setv4off 'Thunderbolt 1'")) is None


def test_routes_come_change_and_go() -> None:
    spec = typed(broken(), "route -n add -host 192.168.5.2 -interface en3")
    assert spec.macs[0].routes == {"192.168.5.2": "en3"}
    spec = typed(spec, "route change 192.168.5.2 -interface en4")
    assert spec.macs[0].routes == {"192.168.5.2": "en4"}
    assert typed(spec, "route delete 192.168.5.2").macs[0].routes == {}


def test_the_wired_limit_is_set() -> None:
    assert first(typed(broken(), "sysctl iogpu.wired_limit_mb=400000")).wired_limit_mb == 400000


def test_other_macs_are_not_touched() -> None:
    spec = typed(broken(), "ifconfig en3 down", "ifconfig en4 inet 10.9.9.9")
    assert facts(spec)[1:] == facts(broken())[1:]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ifconfig en99 up", "interface en99 does not exist"),
        ("ifconfig", "does not exist"),
        ("ifconfig en0 down", "en0 cannot be changed"),
        ("ifconfig en3 inet 192.168.5.300", "bad value"),
        ("ifconfig en3 inet 192.168.5.1 netmask 255.0.255.0", "bad value"),
        ("ifconfig en3 inet 192.168.5.1 netmask 0xzz", "bad value"),
        ("ifconfig en3 inet 192.168.5.1 sideways", "bad value"),
        ("ifconfig en3 inet 192.168.5.1 delete", "Can't assign requested address"),
        ("ifconfig en3 inet6 fd00::1 delete", "Can't assign requested address"),
        ("ifconfig bridge0 addm en3", "interface bridge0 does not exist"),
        ("ifconfig bridge0 deletem en3", "interface bridge0 does not exist"),
        ("route add 192.168.5.2 -interface en99", "bad interface name"),
        ("route delete 192.168.5.2", "not in table"),
        ("route flush", "usage: route"),
        ("networksetup -setmanual Nowhere 1.2.3.4 255.255.0.0", "not a recognized network service"),
        ("networksetup", "not a recognized network service"),
        ("networksetup -setairportpower 'Thunderbolt 1'", "not supported in a rehearsal"),
        ("sysctl kern.hostname=x", "unknown oid"),
        ("sysctl iogpu.wired_limit_mb=lots", "unknown oid"),
        ("reboot now", "not supported in a rehearsal"),
    ],
)
def test_an_error_of_a_tool_has_its_own_message(line: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        typed(broken(), line)
    assert words in caught.value.what


@pytest.mark.parametrize("line", ["addm en3", "addm en99", "deletem en4", "create", "sideways"])
def test_a_bridge_refuses_invalid_changes(line: str) -> None:
    with pytest.raises(InputError, match="ifconfig: "):
        typed(broken("bridged-port:1"), f"ifconfig bridge0 {line}")


def test_lines_that_a_re_cabled_mac_no_longer_takes_change_nothing() -> None:
    lines = [["ifconfig", "bridge0", "deletem", "en3"], ["ifconfig", "en3", "inet", "10.9.9.9"]]
    healthy = broken()
    assert gid(after(healthy, 0, lines)) == (1, "10.9.9.9")
    assert after(healthy, 0, lines[:1]) == healthy
