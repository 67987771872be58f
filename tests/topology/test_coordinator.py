"""The choice of the coordinator address, and the detection of a stale one."""

from dataclasses import replace

from jaccl_kernel.topology.coordinator import addresses, choose, stale
from jaccl_kernel.topology.facts import Address, InterfaceFacts, LanAddress, NodeFacts

ETHERNET = LanAddress("en0", "10.0.0.11", "ethernet", 24)
WIFI = LanAddress("en1", "10.0.1.11", "wifi", 24)


def mac(*lan: LanAddress, name: str = "mac1") -> NodeFacts:
    return NodeFacts(name, name, lan=lan)


def test_ethernet_is_preferred_to_wifi() -> None:
    chosen = choose([mac(WIFI, ETHERNET)])
    assert chosen is not None
    assert (chosen.address, chosen.kind, chosen.note) == ("10.0.0.11", "ethernet", "")
    assert chosen.reason == "10.0.0.11 (en0, Ethernet)"


def test_wifi_is_chosen_without_ethernet_and_has_a_note() -> None:
    chosen = choose([mac(WIFI)])
    assert chosen is not None
    assert chosen.address == "10.0.1.11"
    assert "Wi-Fi is less reliable" in chosen.note


def test_a_shared_wifi_is_preferred_to_an_ethernet_that_is_not_shared() -> None:
    other = mac(LanAddress("en1", "10.0.1.12", "wifi", 24), name="mac2")
    chosen = choose([mac(ETHERNET, WIFI), other])
    assert chosen is not None
    assert chosen.address == "10.0.1.11"


def test_ethernet_is_chosen_if_no_network_is_shared_and_the_note_names_a_router() -> None:
    chosen = choose([mac(ETHERNET, WIFI), mac(LanAddress("en0", "172.16.0.2", "ethernet", 24), name="mac2")])
    assert chosen is not None
    assert chosen.address == "10.0.0.11"
    assert "a router must connect them" in chosen.note


def test_a_link_local_address_is_never_chosen() -> None:
    assert choose([mac(LanAddress("en9", "169.254.7.7", "other", 16))]) is None


def test_a_mac_without_facts_has_no_address() -> None:
    assert choose([NodeFacts("mac1", "mac1")]) is None


def test_an_address_of_any_interface_of_rank_0_is_not_stale() -> None:
    first = replace(mac(ETHERNET), interfaces=(InterfaceFacts("en5", ipv4=(Address("192.168.9.1", 24),)),))
    assert stale("10.0.0.11", [first], ["mac1"]) == ""
    assert stale("192.168.9.1", [first], ["mac1"]) == ""


def test_a_former_address_of_rank_0_is_stale_and_the_current_one_is_named() -> None:
    why = stale("10.0.0.99", [mac(ETHERNET)], ["mac1"])
    assert why == "10.0.0.99 does not belong to mac1: its addresses are 10.0.0.11"


def test_an_address_of_another_mac_is_reported_with_its_name() -> None:
    other = mac(LanAddress("en0", "10.0.0.12", "ethernet", 24), name="mac2")
    why = stale("10.0.0.12", [mac(ETHERNET), other], ["mac1", "mac2"])
    assert why == "10.0.0.12 belongs to mac2, not to mac1: its addresses are 10.0.0.11"


def test_the_result_is_none_without_facts() -> None:
    assert stale("10.0.0.11", [NodeFacts("mac1", "mac1")], ["mac1"]) is None
    assert addresses(NodeFacts("mac1", "mac1")) is None
