"""Parses the output of the RDMA and Thunderbolt tools into facts: one pure function per tool, no I/O.

The parsers were not tested on a Mac, so each looks for the values that it knows and ignores the rest: other
locales, tabs or spaces, CRLF, reordered or unknown fields. Unreadable output gives None, an empty tuple means
that the tool listed nothing, and no input raises. `system.py` parses the other tools.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any, Literal

from jaccl_kernel.topology.facts import ConnectedDevice, DeviceFacts, PortFacts
from jaccl_kernel.topology.tools._text import integer, is_mac, lines, word

RDMA_SERVICE = 64087
"""The protocol id of the RDMA service that a Thunderbolt host offers to its peer."""

_DEEPEST_DOCK = 8  # a Thunderbolt chain has at most six devices


def rdma_ctl_status(text: str) -> Literal["enabled", "disabled"] | None:
    """`rdma_ctl status`: the state, if the output has exactly one of the two words."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    if "not" in words or len(found := words & {"enabled", "disabled"}) != 1:
        return None
    return "enabled" if "enabled" in found else "disabled"


def ibv_devices(text: str) -> tuple[DeviceFacts, ...] | None:
    """`ibv_devices`: names and node GUIDs, in the tool's own order, which is not sorted."""
    rows = re.findall(r"^\s*([\w.-]+)\s+([0-9a-fA-F]{16})\s*$", text, re.MULTILINE | re.ASCII)
    if not rows and not re.search(r"node GUID|No IB devices", text, re.IGNORECASE):
        return None
    return tuple(DeviceFacts(name, node_guid=guid.lower()) for name, guid in dict(rows).items())


def ibv_devinfo(text: str, *, verbose: bool = False) -> tuple[DeviceFacts, ...] | None:
    """`ibv_devinfo`: port states and MTUs, and with `-v` the GIDs.

    Args:
        text: what the tool printed.
        verbose: whether the tool ran with `-v`; a device without GID lines then has no GIDs.
    """
    devices: dict[str, DeviceFacts] = {}
    name = ""
    for line in lines(text):
        if not (match := re.match(r"(\w+(?:\[\s*\d+\s*\])?)\s*:\s*(\S+)", line, re.ASCII)):
            continue
        key, value = match.groups()
        if key == "hca_id":
            name = value
            devices.setdefault(name, DeviceFacts(name, gids=() if verbose else None))
        elif name:
            devices[name] = _with_devinfo(devices[name], key, value)
    if not devices and not re.search(r"No IB devices", text, re.IGNORECASE):
        return None
    return tuple(devices.values())


def _with_devinfo(device: DeviceFacts, key: str, value: str) -> DeviceFacts:
    if key == "state" and device.state is None:  # of the first port; Apple's devices have one port
        return replace(device, state=value)
    if key == "node_guid":
        return replace(device, node_guid=value.replace(":", "").lower())
    if key in ("active_mtu", "max_mtu"):
        mtu = integer(value)
        return replace(device, active_mtu=mtu) if key == "active_mtu" else replace(device, max_mtu=mtu)
    if key == "link_layer":
        return replace(device, link_layer=value)
    if (match := re.fullmatch(r"GID\[\s*(\d{1,5})\s*\]", key)) and (gid := _gid(value)):
        return replace(device, gids=(*(device.gids or ()), (int(match[1]), gid)))
    return device


def _gid(text: str) -> str | None:
    """A GID in canonical form; IPv4-mapped addresses always as `::ffff:a.b.c.d`."""
    try:
        address = IPv6Address(text.rstrip(","))
    except ValueError:
        return None
    if address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address) if int(address) else None  # all zeros: an empty table entry


def thunderbolt(text: str) -> tuple[PortFacts, ...] | None:
    """`system_profiler SPThunderboltDataType -json`: one port per bus, without interfaces."""
    try:
        data, _ = json.JSONDecoder().raw_decode(
            text, max(text.find("{"), 0)
        )  # warnings may surround the JSON
    except (ValueError, RecursionError):
        return None
    buses = data.get("SPThunderboltDataType") if isinstance(data, dict) else None
    if not isinstance(buses, list):
        return None
    ports = [_port(bus) for bus in buses if isinstance(bus, dict)]
    return tuple(port for port in ports if port.number is not None or port.domain_uuid is not None)


def _port(bus: dict[str, Any]) -> PortFacts:
    # The tag is named receptacle_1_tag on every bus; the port number is inside.
    tags = [
        tag
        for key, tag in sorted(bus.items())
        if re.fullmatch(r"receptacle_\d+_tag", key) and isinstance(tag, dict)
    ]
    tag = tags[0] if tags else {}
    plugged = tuple(_plugged(bus.get("_items"), behind=None, depth=0))
    status = word(tag.get("receptacle_status_key")) or ""
    connected = {"receptacle_connected": True, "receptacle_no_devices_connected": False}.get(status)
    if connected is None and plugged:
        connected = True
    speed_text = word(tag.get("current_speed_key")) or ""
    speed = _gigabits(speed_text)
    is_limit = connected is False or not speed_text[:1].isdigit()  # "Up to 120 Gb/s"
    return PortFacts(
        number=integer(tag.get("receptacle_id_key")),
        domain_uuid=_uuid(bus.get("domain_uuid_key")),
        current_gbps=None if is_limit else speed,
        max_gbps=speed if is_limit else None,
        connected=connected,
        plugged=plugged,
        bus=word(bus.get("_name")),
        product=word(bus.get("device_name_key")),
    )


def _plugged(items: object, *, behind: str | None, depth: int) -> Iterator[ConnectedDevice]:
    if not isinstance(items, list) or depth > _DEEPEST_DOCK:
        return
    for item in items:
        if not isinstance(item, dict):
            continue
        found = ConnectedDevice(
            name=word(item.get("_name")),
            vendor=word(item.get("vendor_name_key")),
            model=word(item.get("device_name_key")),
            domain_uuid=_uuid(item.get("domain_uuid_key")),
            rdma_service=_offers_rdma(item.get("services_title")),
            behind=behind,
        )
        yield found
        yield from _plugged(item.get("_items"), behind=found.label, depth=depth + 1)


def _offers_rdma(services: object) -> bool | None:
    if not isinstance(services, list):
        return None
    return any(isinstance(s, dict) and integer(s.get("protocol_id_key")) == RDMA_SERVICE for s in services)


@dataclass(frozen=True)
class HardwarePort:
    """One block of `networksetup -listallhardwareports`."""

    name: str
    interface: str
    mac: str | None = None

    @property
    def thunderbolt(self) -> int | None:
        """The Thunderbolt port number, or None if it is another kind of port."""
        match = re.fullmatch(r"thunderbolt\s*(\d{1,3})", self.name.strip(), re.IGNORECASE | re.ASCII)
        return int(match[1]) if match else None


def hardware_ports(text: str) -> tuple[HardwarePort, ...] | None:
    """`networksetup -listallhardwareports`: fields are recognised by value, as labels may be translated."""
    found: list[HardwarePort] = []
    block: dict[str, str] = {}
    for line in [*lines(text), ""]:
        label, colon, value = line.replace("：", ":").partition(":")
        kind = _kind(value.strip()) if colon and label.strip() else None
        ended = not line or line.startswith("==")
        if (ended or kind == "name" or kind in block) and "name" in block and "interface" in block:
            found.append(HardwarePort(block["name"], block["interface"], block.get("mac")))
            block = {}
        if ended:
            block = {}
        if line.startswith("=="):  # "VLAN Configurations": similar blocks that are not hardware
            break
        if kind:
            block[kind] = value.strip()
    return tuple(found) or None


def _kind(value: str) -> Literal["name", "interface", "mac"] | None:
    if is_mac(value):
        return "mac"
    if re.fullmatch(r"[a-z]{2,10}\d{1,4}", value):
        return "interface"
    return "name" if value and value.upper() != "N/A" else None


def _uuid(value: object) -> str | None:
    text = word(value)
    return text.upper() if text else None


def _gigabits(text: str) -> float | None:
    match = re.search(r"(\d{1,6}(?:[.,]\d{1,3})?)\s*([GM])b", text, re.IGNORECASE | re.ASCII)
    if not match:
        return None
    return float(match[1].replace(",", ".")) / (1000 if match[2] in "Mm" else 1)
