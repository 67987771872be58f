"""Rank 0's address: which is taken, and when it is stale. Run: pytest tests/cluster/test_coordinator.py"""

from dataclasses import replace

from jaccl_kernel.cluster.coordinator import addresses, choose, stale
from jaccl_kernel.cluster.facts import Address, InterfaceFacts, LanAddress, NodeFacts

ETHERNET = LanAddress("en0", "10.0.0.11", "ethernet", 24)
WIFI = LanAddress("en1", "10.0.1.11", "wifi", 24)


def mac(*lan: LanAddress, name: str = "mac1") -> NodeFacts:
    return NodeFacts(name, name, lan=lan)


def test_ethernet_goes_before_wifi() -> None:
    chosen = choose([mac(WIFI, ETHERNET)])
    assert chosen is not None
    assert (chosen.address, chosen.kind, chosen.note) == ("10.0.0.11", "ethernet", "")
    assert chosen.reason == "10.0.0.11 (en0, Ethernet)"


def test_wifi_is_taken_where_there_is_no_ethernet_and_the_risk_is_told() -> None:
    chosen = choose([mac(WIFI)])
    assert chosen is not None
    assert chosen.address == "10.0.1.11"
    assert "Wi-Fi is less steady" in chosen.note


def test_an_ethernet_that_the_others_are_not_in_gives_way_to_a_wifi_that_they_are_in() -> None:
    other = mac(LanAddress("en1", "10.0.1.12", "wifi", 24), name="mac2")
    chosen = choose([mac(ETHERNET, WIFI), other])
    assert chosen is not None
    assert chosen.address == "10.0.1.11"


def test_where_no_network_is_shared_ethernet_is_taken_and_the_router_named() -> None:
    chosen = choose([mac(ETHERNET, WIFI), mac(LanAddress("en0", "172.16.0.2", "ethernet", 24), name="mac2")])
    assert chosen is not None
    assert chosen.address == "10.0.0.11"
    assert "a router must join them" in chosen.note


def test_a_link_local_address_is_never_taken() -> None:
    assert choose([mac(LanAddress("en9", "169.254.7.7", "other", 16))]) is None


def test_a_mac_that_told_nothing_has_no_address() -> None:
    assert choose([NodeFacts("mac1", "mac1")]) is None


def test_an_address_of_rank_0_is_not_stale_be_it_of_whatever_interface() -> None:
    first = replace(mac(ETHERNET), interfaces=(InterfaceFacts("en5", ipv4=(Address("192.168.9.1", 24),)),))
    assert stale("10.0.0.11", [first], ["mac1"]) == ""
    assert stale("192.168.9.1", [first], ["mac1"]) == ""


def test_an_address_that_rank_0_lost_is_stale_and_its_present_one_named() -> None:
    why = stale("10.0.0.99", [mac(ETHERNET)], ["mac1"])
    assert why == "10.0.0.99 is not an address of mac1 (any more): it has 10.0.0.11"


def test_an_address_of_another_mac_is_named_as_such() -> None:
    other = mac(LanAddress("en0", "10.0.0.12", "ethernet", 24), name="mac2")
    why = stale("10.0.0.12", [mac(ETHERNET), other], ["mac1", "mac2"])
    assert why == "10.0.0.12 is an address of mac2, not of mac1: it has 10.0.0.11"


def test_nobody_can_tell_of_a_mac_that_told_nothing() -> None:
    assert stale("10.0.0.11", [NodeFacts("mac1", "mac1")], ["mac1"]) is None
    assert addresses(NodeFacts("mac1", "mac1")) is None
