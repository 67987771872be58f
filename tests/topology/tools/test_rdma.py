"""RDMA and Thunderbolt tools' output -> facts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.topology.facts import ConnectedDevice
from jaccl_kernel.topology.tools import rdma

SAMPLES = Path(__file__).parents[1] / "data" / "mac"

READERS: dict[str, Callable[[str], Any]] = {
    "rdma_ctl.txt": rdma.rdma_ctl_status,
    "ibv_devices.txt": rdma.ibv_devices,
    "ibv_devinfo_v.txt": rdma.ibv_devinfo,
    "system_profiler.json": rdma.thunderbolt,
    "networksetup.txt": rdma.hardware_ports,
}


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("enabled\n", "enabled"),
        ("disabled\r\n", "disabled"),
        ("RDMA: Enabled.", "enabled"),
        ("", None),
        ("not enabled", None),
        ("enabled or disabled?", None),
        ("rdma_ctl: This tool needs to be executed from Recovery OS.", None),
    ],
)
def test_rdma_ctl_gives_one_of_two_states_or_none(text: str, status: str | None) -> None:
    assert rdma.rdma_ctl_status(text) == status


def test_devices_are_listed_in_the_tools_own_order() -> None:
    devices = rdma.ibv_devices(sample("ibv_devices.txt")) or ()
    assert [device.name for device in devices] == ["rdma_en2", "rdma_en6", "rdma_en3"]
    assert devices[0].node_guid == "8096a9d9edbaac05"


@pytest.mark.parametrize("text", [sample("ibv_devices_off.txt"), "No IB devices found\n"])
def test_no_device_is_a_fact(text: str) -> None:
    assert rdma.ibv_devices(text) == ()


def test_empty_output_is_no_fact() -> None:
    assert rdma.ibv_devices("") is None
    assert rdma.ibv_devinfo("") is None
    assert rdma.ibv_devinfo("No IB devices found\n") == ()


def test_port_states_mtu_and_gids_in_every_notation() -> None:
    en2, en6, en3 = rdma.ibv_devinfo(sample("ibv_devinfo_v.txt"), verbose=True) or ()
    assert (en2.name, en2.active, en2.active_mtu, en2.link_layer) == ("rdma_en2", True, 4096, "Thunderbolt")
    assert en2.gids == ((0, "fe80::3474:d9ff:fe9d:cc84"), (1, "::ffff:10.0.1.1"))
    assert en2.ipv4_gid == (1, "10.0.1.1")
    assert en6.ipv4_gid == (2, "169.254.7.3")
    assert (en3.active, en3.gids, en3.ipv4_gid) == (False, (), None)


def test_gids_are_not_tested_without_v() -> None:
    (device,) = rdma.ibv_devinfo(sample("ibv_devinfo.txt")) or ()
    assert device.gids is None
    assert device.active is False


def test_a_port_has_its_number_speed_and_peer() -> None:
    two, one, three = rdma.thunderbolt(sample("system_profiler.json")) or ()
    assert (two.number, two.domain_uuid, two.connected) == (2, "00000004-0000-4000-8000-000000000004", True)
    assert (two.current_gbps, two.max_gbps, two.thunderbolt5) == (80.0, None, True)
    assert two.peer == ConnectedDevice(
        name="MacBook Pro",
        vendor="Apple Inc.",
        model="Mac17,6",
        domain_uuid="00000003-0000-4000-8000-000000000003",
        rdma_service=True,
    )
    assert (one.connected, one.current_gbps, one.max_gbps, one.plugged) == (False, None, 120.0, ())
    assert (three.current_gbps, three.thunderbolt5) == (40.0, None)


def test_a_mac_behind_a_dock_is_no_direct_peer() -> None:
    *_, three = rdma.thunderbolt(sample("system_profiler.json")) or ()
    dock, mac = three.plugged
    assert (dock.label, dock.domain_uuid, dock.rdma_service) == ("TS5 Plus", None, None)
    assert (mac.behind, mac.rdma_service) == ("TS5 Plus", False)
    assert three.peer is None


def test_speeds_are_read_in_other_locales_and_units() -> None:
    def speeds(text: str, status: str) -> tuple[float | None, float | None]:
        tag = {"current_speed_key": text, "receptacle_id_key": 1, "receptacle_status_key": status}
        (port,) = rdma.thunderbolt(json.dumps({"SPThunderboltDataType": [{"receptacle_1_tag": tag}]})) or ()
        return port.current_gbps, port.max_gbps

    assert speeds("Bis zu 120 Gb/s", "receptacle_no_devices_connected") == (None, 120.0)
    assert speeds("最高 40 Gb/秒", "?") == (None, 40.0)
    assert speeds("120 Gb/s max", "receptacle_no_devices_connected") == (None, 120.0)
    assert speeds("20,5 Gb/s", "receptacle_connected") == (20.5, None)
    assert speeds("fast", "receptacle_connected") == (None, None)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"SPThunderboltDataType": {}}', "[" * 100_000])
def test_invalid_json_is_not_tested(text: str) -> None:
    assert rdma.thunderbolt(text) is None


def test_a_mac_without_thunderbolt_has_no_ports() -> None:
    assert rdma.thunderbolt('{"SPThunderboltDataType": []}') == ()


def test_warnings_around_the_json_are_ignored() -> None:
    text = f"2026-11-20 system_profiler[1:2] something\n{sample('system_profiler.json')}Terminated\n"
    assert rdma.thunderbolt(text) == rdma.thunderbolt(sample("system_profiler.json"))


def test_ports_map_to_the_listed_interfaces_and_vlans_are_ignored() -> None:
    ports = rdma.hardware_ports(sample("networksetup.txt")) or ()
    assert {port.thunderbolt: port.interface for port in ports if port.thunderbolt} == {
        1: "en3",
        2: "en6",
        3: "en2",
    }
    assert [port.interface for port in ports] == ["en0", "bridge0", "en8", "en1", "en3", "en6", "en2"]
    assert ports[0].mac == "02:00:00:00:00:0a"


def test_translated_labels_and_another_order_are_read_too() -> None:
    ports = rdma.hardware_ports(sample("networksetup_german.txt")) or ()
    assert [(port.name, port.interface) for port in ports] == [("Ethernet", "en0"), ("Thunderbolt 2", "en6")]
    turned = "Ethernet Address: 02:00:00:00:00:02\nDevice: en6\nHardware Port: Thunderbolt 2\n"
    assert rdma.hardware_ports(turned) == (ports[1],)


@pytest.mark.parametrize(
    "name", ["Thunderbolt Bridge", "Thunderbolt Ethernet Slot 1", "Ethernet", "Thunderbolt"]
)
def test_not_everything_called_thunderbolt_is_a_port(name: str) -> None:
    assert rdma.HardwarePort(name, "en9").thunderbolt is None


@pytest.mark.parametrize("name", READERS)
def test_carriage_returns_change_nothing(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\n", "\r\n")) == READERS[name](text)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".txt")])
def test_tabs_and_spaces_are_the_same(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\t", "    ")) == READERS[name](text)


@given(st.randoms())
def test_the_order_of_keys_means_nothing(random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items} | {"new_key": random.random()}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    text = sample("system_profiler.json")
    assert rdma.thunderbolt(json.dumps(shuffled(json.loads(text)))) == rdma.thunderbolt(text)


@given(st.text(), st.sampled_from(sorted(READERS)))
def test_no_text_makes_a_parser_fail(text: str, name: str) -> None:
    READERS[name](text)


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_no_damage_to_a_sample_makes_a_parser_fail(data: st.DataObject, name: str) -> None:
    text = sample(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    READERS[name](text[:start] + data.draw(st.text(max_size=20)) + text[end:])


KEYS = ("_items", "_name", "domain_uuid_key", "receptacle_1_tag", "receptacle_id_key", "current_speed_key",
        "receptacle_status_key", "services_title", "protocol_id_key", "vendor_name_key")  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@given(TREES)
def test_no_json_makes_the_thunderbolt_parser_fail(tree: Any) -> None:
    text = json.dumps({"SPThunderboltDataType": tree if isinstance(tree, list) else [tree]})
    assert isinstance(rdma.thunderbolt(text), tuple)


@given(st.integers(0, 10_000))
def test_a_cut_off_devinfo_invents_no_device(length: int) -> None:
    text = sample("ibv_devinfo_v.txt")
    whole = {"rdma_en2", "rdma_en6", "rdma_en3"}
    found = rdma.ibv_devinfo(text[:length]) or ()
    assert all(any(name.startswith(device.name) for name in whole) for device in found)
