"""The list of problems of a wiring."""

from dataclasses import replace

import pytest

from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import ConnectedDevice, NodeFacts, PortFacts
from jaccl_kernel.topology.issues import Issue, find_issues
from jaccl_kernel.topology.wiring import build_wiring


def found(n: int, *faults: str) -> tuple[Issue, ...]:
    return find_issues(build_wiring(facts(with_faults(ClusterSpec.healthy(n), faults))))


@pytest.mark.parametrize("n", range(1, 7))
def test_a_healthy_cluster_has_no_issues(n: int) -> None:
    assert found(n) == ()


@pytest.mark.parametrize(
    ("fault", "code", "words", "nodes"),
    [
        ("missing-cable:1-3", "missing", "No cable connects macstudio1 and macstudio3.", (0, 2)),
        ("doubled-cable:1-2", "doubled", "port 2 of macstudio1 to port 4 of macstudio2", (0, 1)),
        ("doubled-cable:1-2", "missing", "macstudio1 and macstudio3", (0, 2)),
        ("swapped-cable:1-3,2-4", "missing", "macstudio2 and macstudio4", (1, 3)),
        ("half-seen:2-3", "half", "Only one end detects the cable between port 2 of macstudio2", (1, 2)),
        ("dock:2", "foreign-device", "TS5 Plus is connected to port 4 of macstudio2.", (1,)),
        ("thunderbolt4:3", "slow", "runs at 40 Gb/s, not 80", (0, 2)),
        ("thunderbolt4:3", "few-ports", "macstudio3 has no Thunderbolt 5 ports", (2,)),
        ("rdma-off:2", "no-device", "macstudio2 lists no RDMA device", (1,)),
        ("asleep:4", "untested", "The Thunderbolt ports of macstudio4 are not tested", (3,)),
        ("asleep:4", "foreign-device", "possibly macstudio4, whose ports are not tested", (0,)),
        ("hang:3:networksetup", "no-interface", "port 1 of macstudio3", (2,)),
    ],
)
def test_each_fault_is_reported_with_its_location(
    fault: str, code: str, words: str, nodes: tuple[int, ...]
) -> None:
    assert any(
        issue.code == code and words in issue.text and issue.nodes == nodes for issue in found(4, fault)
    )


def test_a_sleeping_mac_is_not_reported_as_missing_a_cable() -> None:
    assert "missing" not in {issue.code for issue in found(4, "asleep:4")}


def test_a_ring_is_recommended_for_macbooks_with_three_ports() -> None:
    spec = ClusterSpec.healthy(5)
    for node in range(5):
        spec = spec.with_mac(node, interfaces={1: "en1", 2: "en2", 3: "en3"}, product="MacBook Pro")
    ring = [CableSpec((i, 1), ((i + 1) % 5, 2)) for i in range(5)]
    assert [issue.code for issue in find_issues(build_wiring(facts(replace(spec, cables=tuple(ring)))))] == [
        "few-ports"
    ]
    (issue,) = find_issues(build_wiring(facts(replace(spec, cables=tuple(ring)))))
    assert "have 3 Thunderbolt 5 ports, but a mesh of 5 Macs needs 4 on each" in issue.text
    assert "a ring, or at most 4 Macs" in issue.text


def test_nine_macs_are_too_many_for_a_mesh() -> None:
    nodes = [NodeFacts(f"mac{i}", f"mac{i}") for i in range(9)]
    assert find_issues(build_wiring(nodes))[0].code == "mesh-limit"


def test_one_mac_in_the_list_twice_is_named() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    named = [
        issue
        for issue in find_issues(build_wiring([first, second, replace(first, name="again")]))
        if issue.code == "duplicate"
    ]
    assert "port 1 of macstudio1 and port 1 of again" in named[0].text
    assert "Check whether a Mac is in the list twice." in named[0].text


def test_a_cable_to_itself_is_named() -> None:
    spec = replace(ClusterSpec.healthy(2), cables=(CableSpec((0, 1), (0, 4)),))
    assert any(
        issue.code == "loop" and "port 4 of macstudio1" in issue.text
        for issue in find_issues(build_wiring(facts(spec)))
    )


def test_a_single_missing_device_is_named() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    less = replace(second, devices=tuple(d for d in second.devices or () if d.name != "rdma_en3"))
    (issue,) = find_issues(build_wiring([first, less]))
    assert (
        issue.text
        == "port 1 of macstudio2 should have the RDMA device rdma_en3, but the Mac does not list it."
    )


def test_a_dock_in_between_is_named() -> None:
    behind = (ConnectedDevice("TS5 Plus"), ConnectedDevice("Mac Studio", domain_uuid="U9", behind="TS5 Plus"))
    node = NodeFacts("a", "a", ports=(PortFacts(1, "U1", plugged=behind),))
    (issue,) = find_issues(build_wiring([node]))
    assert (
        issue.text
        == "TS5 Plus is between port 1 of a and a Mac that does not list this port: use a direct cable."
    )


def texts(n: int, code: str, *faults: str) -> list[str]:
    return [issue.text for issue in found(n, *faults) if issue.code == code]


def test_a_cable_beside_ethernet_is_warned_of_with_its_source() -> None:
    [text] = texts(3, "beside-ethernet", "beside-ethernet:2")
    assert text.startswith("A cable is in port 6 of macstudio2.")
    assert "exo's README" in text
    assert "TN3205 does not mention it" in text


def test_a_hub_between_two_macs_is_named() -> None:
    [text] = texts(3, "hub", "hub:1-2")
    assert text.startswith("Thunderbolt 5 hub is between port 1 of macstudio1 and port 1 of macstudio2")
    assert "exo#1982" in text


def test_a_peer_that_announces_no_rdma_service_has_rdma_off() -> None:
    first, second = facts(with_faults(ClusterSpec.healthy(2), ["rdma-off:2"]))
    issues = find_issues(build_wiring([first, replace(second, devices=None)]))
    [text] = [issue.text for issue in issues if issue.code == "peer-rdma-off"]
    assert text.startswith("RDMA is off on macstudio2")
    assert texts(2, "peer-rdma-off") == []


def test_two_cables_between_two_macs_are_both_used() -> None:
    spec = ClusterSpec.healthy(2).with_cable(0, 1)
    (issue,) = find_issues(build_wiring(facts(spec)))
    assert issue.code == "doubled"
    assert "Jobs use all of them" in issue.text
    assert any("Jobs use 1 of them" in text for text in texts(4, "doubled", "doubled-cable:1-2"))


def test_the_ports_of_mac_studios_are_counted_without_the_one_beside_ethernet() -> None:
    [text] = texts(7, "few-ports")
    assert "have 5 Thunderbolt 5 ports for RDMA (the one beside Ethernet does not count)" in text
    assert "at most 6 Macs" in text
