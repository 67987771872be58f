"""What is wrong with a wiring, in words. Run: pytest tests/cluster/test_flaws.py"""

from dataclasses import replace

import pytest

from jaccl_kernel.cluster.facts import NodeFacts, Plugged, PortFacts
from jaccl_kernel.cluster.flaws import Flaw, flaws
from jaccl_kernel.cluster.wiring import wire
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts


def found(n: int, *faults: str) -> tuple[Flaw, ...]:
    return flaws(wire(facts(with_faults(ClusterSpec.healthy(n), faults))))


@pytest.mark.parametrize("n", range(1, 8))
def test_a_healthy_cluster_has_none(n: int) -> None:
    assert found(n) == ()


@pytest.mark.parametrize(
    ("fault", "code", "words", "nodes"),
    [
        ("missing-cable:1-3", "missing", "No cable between macstudio1 and macstudio3.", (0, 2)),
        ("doubled-cable:1-2", "doubled", "port 2 of macstudio1 to port 4 of macstudio2", (0, 1)),
        ("doubled-cable:1-2", "missing", "macstudio1 and macstudio3", (0, 2)),
        ("swapped-cable:1-3,2-4", "missing", "macstudio2 and macstudio4", (1, 3)),
        ("half-seen:2-3", "half", "Only one end sees the cable between port 2 of macstudio2", (1, 2)),
        ("dock:2", "stranger", "TS5 Plus is plugged into port 4 of macstudio2.", (1,)),
        ("thunderbolt4:3", "slow", "runs at 40 Gb/s, not 80", (0, 2)),
        ("thunderbolt4:3", "few-ports", "macstudio3 has no Thunderbolt 5 ports", (2,)),
        ("rdma-off:2", "no-device", "macstudio2 lists no RDMA device", (1,)),
        ("asleep:4", "untested", "macstudio4 did not tell its Thunderbolt ports", (3,)),
        ("asleep:4", "stranger", "perhaps macstudio4, which did not tell", (0,)),
        ("hang:3:networksetup", "no-interface", "port 1 of macstudio3", (2,)),
    ],
)
def test_each_fault_is_named_with_its_place(
    fault: str, code: str, words: str, nodes: tuple[int, ...]
) -> None:
    assert any(flaw.code == code and words in flaw.text and flaw.nodes == nodes for flaw in found(4, fault))


def test_a_mac_that_only_sleeps_is_not_called_uncabled() -> None:
    assert "missing" not in {flaw.code for flaw in found(4, "asleep:4")}


def test_macbooks_with_three_ports_are_told_to_use_a_ring() -> None:
    spec = ClusterSpec.healthy(5)
    for node in range(5):
        spec = spec.with_mac(node, interfaces={1: "en1", 2: "en2", 3: "en3"})
    ring = [CableSpec((i, 1), ((i + 1) % 5, 2)) for i in range(5)]
    assert [flaw.code for flaw in flaws(wire(facts(replace(spec, cables=tuple(ring)))))] == ["few-ports"]
    (flaw,) = flaws(wire(facts(replace(spec, cables=tuple(ring)))))
    assert "have 3 Thunderbolt 5 ports, and a mesh of 5 needs 4 on each" in flaw.text
    assert "a ring, or at most 4 Macs" in flaw.text


def test_nine_macs_are_too_many_for_a_mesh() -> None:
    nodes = [NodeFacts(f"mac{i}", f"mac{i}") for i in range(9)]
    assert flaws(wire(nodes))[0].code == "mesh-limit"


def test_one_mac_in_the_list_twice_is_named() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    named = [
        flaw
        for flaw in flaws(wire([first, second, replace(first, name="again")]))
        if flaw.code == "duplicate"
    ]
    assert "port 1 of macstudio1 and port 1 of again" in named[0].text
    assert "Is one Mac in the list twice?" in named[0].text


def test_a_cable_to_itself_is_named() -> None:
    spec = replace(ClusterSpec.healthy(2), cables=(CableSpec((0, 1), (0, 4)),))
    assert any(
        flaw.code == "loop" and "port 4 of macstudio1" in flaw.text for flaw in flaws(wire(facts(spec)))
    )


def test_a_single_device_that_is_not_there_is_named() -> None:
    first, second = facts(ClusterSpec.healthy(2))
    less = replace(second, devices=tuple(d for d in second.devices or () if d.name != "rdma_en3"))
    (flaw,) = flaws(wire([first, less]))
    assert flaw.text == "port 1 of macstudio2 should have the RDMA device rdma_en3, which is not there."


def test_a_dock_in_between_is_named() -> None:
    behind = (Plugged("TS5 Plus"), Plugged("Mac Studio", domain_uuid="U9", behind="TS5 Plus"))
    node = NodeFacts("a", "a", ports=(PortFacts(1, "U1", plugged=behind),))
    (flaw,) = flaws(wire([node]))
    assert flaw.text == "TS5 Plus stands between port 1 of a and a Mac: RDMA needs a direct cable."
