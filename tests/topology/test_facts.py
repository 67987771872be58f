"""The facts and their conversion to and from JSON."""

import json
from typing import Any

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import DeviceFacts, NodeFacts, PortFacts, PowerFacts, version_tuple


def test_facts_survive_json() -> None:
    spec = with_faults(ClusterSpec.healthy(4), ["asleep:4", "dock:1", "hang:2:ibv_devinfo", "gid-index-2:3"])
    for mac in facts(spec):
        assert NodeFacts.from_json(json.loads(json.dumps(mac.to_json()))) == mac


def test_fields_of_a_newer_version_are_dropped() -> None:
    data = NodeFacts("a", "a").to_json() | {"mood": "good"}
    assert NodeFacts.from_json(data) == NodeFacts("a", "a")


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"name": "a"}, {"name": 1, "ssh": "a"}, {"name": "a", "ssh": "a", "ports": {}},
     {"name": "a", "ssh": "a", "rdma": "perhaps"}, {"name": "a", "ssh": "a", "memory": True},
     {"name": "a", "ssh": "a", "outcomes": []}, {"name": "a", "ssh": "a", "ports": [7]}],
)  # fmt: skip
def test_invalid_facts_are_refused(data: Any) -> None:
    with pytest.raises(InputError, match="invalid node facts"):
        NodeFacts.from_json(data)


def test_a_node_without_facts_has_unknown_properties() -> None:
    mac = NodeFacts("a", "a")
    assert (mac.thunderbolt5, mac.devices, mac.rdma, mac.lan, mac.power.may_sleep) == (None,) * 5


@pytest.mark.parametrize(
    ("ports", "verdict"),
    [
        ((), False),
        ((PortFacts(max_gbps=120),), True),
        ((PortFacts(max_gbps=40), PortFacts(max_gbps=40)), False),
        ((PortFacts(current_gbps=40), PortFacts(max_gbps=40)), False),
        ((PortFacts(current_gbps=40), PortFacts(max_gbps=120)), True),
        ((PortFacts(current_gbps=40),), None),
        ((PortFacts(current_gbps=80),), True),
    ],
)
def test_slow_links_do_not_prove_slow_ports(ports: tuple[PortFacts, ...], verdict: bool | None) -> None:
    assert NodeFacts("a", "a", ports=ports).thunderbolt5 is verdict


def test_the_ipv4_gid_is_found_at_any_index() -> None:
    assert DeviceFacts("d", gids=((0, "fe80::1"), (2, "::ffff:10.0.0.1"))).ipv4_gid == (2, "10.0.0.1")
    assert DeviceFacts("d", gids=((0, "fe80::1"), (1, "junk"))).ipv4_gid is None
    assert DeviceFacts("d", gids=None).ipv4_gid is None


def test_jaccl_sends_from_index_1_only() -> None:
    assert DeviceFacts("d", gids=((0, "fe80::1"), (1, "::ffff:10.0.0.1"))).gid_ready is True
    assert DeviceFacts("d", gids=((0, "fe80::1"), (2, "::ffff:10.0.0.1"))).gid_ready is False
    assert DeviceFacts("d", gids=()).gid_ready is False
    assert DeviceFacts("d").gid_ready is None


@pytest.mark.parametrize(
    ("power", "may"),
    [
        (PowerFacts(), None),
        (PowerFacts(sleep_minutes=0), False),
        (PowerFacts(sleep_minutes=1), None),
        (PowerFacts(sleep_minutes=1, sleep_prevented=True), False),
        (PowerFacts(sleep_minutes=1, sleep_prevented=False), True),
    ],
)
def test_whether_a_mac_may_fall_asleep(power: PowerFacts, may: bool | None) -> None:
    assert power.may_sleep is may


def test_versions_compare_as_numbers() -> None:
    assert version_tuple("26.10") > version_tuple("26.2")  # type: ignore[operator]
    assert version_tuple("26.5.1 (a)") == (26, 5, 1)
    assert version_tuple("beta") is None
    assert version_tuple(None) is None
