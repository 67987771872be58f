"""The facts of one Mac, as plain frozen data that converts to and from JSON.

Every fact is optional: None means "not tested" (the tool is missing, timed out, or its output is unreadable),
never "no". An empty tuple means "tested: none". `CommandOutcome` records for each command why a fact is None.
`probe.py` collects the command output, `assemble.py` builds the facts from it.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Literal

from jaccl_kernel.core.codec import decode
from jaccl_kernel.core.errors import InputError

THUNDERBOLT_5_GBPS = 80.0
"""The minimum link speed of Thunderbolt 5 (80 Gb/s per direction; an empty port reports "Up to 120 Gb/s")."""

JACCL_GID_INDEX = 1
"""The GID index that JACCL sends with, regardless of the index of the address that it found."""

Status = Literal["ok", "empty", "missing", "timeout", "failed", "unreadable"]


@dataclass(frozen=True)
class CommandOutcome:
    """The outcome of one command on the node; `detail` is its last line of output."""

    status: Status
    detail: str = ""


@dataclass(frozen=True)
class ConnectedDevice:
    """A device connected to a Thunderbolt port: another Mac, or a dock, disk or display.

    Only Macs (and other Thunderbolt hosts) have a `domain_uuid`, which identifies the peer's port.
    `rdma_service` is whether the peer offers its RDMA service (protocol 64087); None if it lists no services.
    `behind` is the name of the dock in between, or None for a direct cable.
    """

    name: str | None = None
    vendor: str | None = None
    model: str | None = None
    domain_uuid: str | None = None
    rdma_service: bool | None = None
    behind: str | None = None

    @property
    def label(self) -> str:
        """The name to show to a user."""
        return self.name or self.model or self.vendor or "an unnamed device"


@dataclass(frozen=True)
class PortFacts:
    """One Thunderbolt port. Speeds are in Gb/s; macOS reports `max_gbps` only while nothing is connected.

    `product` is the product name of the Mac that has the port, such as "Mac Studio".
    """

    number: int | None = None
    domain_uuid: str | None = None
    interface: str | None = None
    current_gbps: float | None = None
    max_gbps: float | None = None
    connected: bool | None = None
    plugged: tuple[ConnectedDevice, ...] = ()
    bus: str | None = None
    product: str | None = None

    @property
    def beside_ethernet(self) -> bool:
        """Whether it is a Mac Studio's port beside Ethernet, which carries no RDMA.

        The source is exo's README (its dashboard warns of rdma_en2 too; exo#1551, #1543). Apple's TN3205 does
        not mention it, and it is not proven here.
        """
        return self.product == "Mac Studio" and self.interface == "en2"

    @property
    def rdma_device(self) -> str | None:
        """The name of this port's RDMA device when RDMA is on: `rdma_` and the interface."""
        return f"rdma_{self.interface}" if self.interface else None

    @property
    def peers(self) -> tuple[ConnectedDevice, ...]:
        """The Macs at the other end: one directly, or those behind a hub; directly connected ones first."""
        macs = (device for device in self.plugged if device.domain_uuid)
        return tuple(sorted(macs, key=lambda mac: mac.behind is not None))

    @property
    def peer(self) -> ConnectedDevice | None:
        """The Mac at the other end of a direct cable, or None."""
        return next((peer for peer in self.peers if peer.behind is None), None)

    @property
    def thunderbolt5(self) -> bool | None:
        """Whether the port is Thunderbolt 5; None for a slow link, where cable or peer may be the limit."""
        if any(
            speed is not None and speed >= THUNDERBOLT_5_GBPS for speed in (self.current_gbps, self.max_gbps)
        ):
            return True
        return None if self.max_gbps is None else False


@dataclass(frozen=True)
class DeviceFacts:
    """One RDMA device. `gids` pairs each index with its address; None if `ibv_devinfo` ran without `-v`."""

    name: str
    node_guid: str | None = None
    state: str | None = None
    gids: tuple[tuple[int, str], ...] | None = None
    active_mtu: int | None = None
    max_mtu: int | None = None
    link_layer: str | None = None

    @property
    def active(self) -> bool | None:
        """Whether the port is up; it is also down if the peer sleeps or has RDMA off."""
        return None if self.state is None else self.state == "PORT_ACTIVE"

    @property
    def ipv4_gid(self) -> tuple[int, str] | None:
        """The first IPv4-mapped GID, which JACCL uses: its index and the IPv4 address."""
        for index, gid in self.gids or ():
            try:
                mapped = IPv6Address(gid).ipv4_mapped
            except AddressValueError:
                continue
            if mapped is not None:
                return index, str(mapped)
        return None

    @property
    def gid_ready(self) -> bool | None:
        """Whether the IPv4 GID is at the index that JACCL sends with; None if not tested."""
        if self.gids is None:
            return None
        return self.ipv4_gid is not None and self.ipv4_gid[0] == JACCL_GID_INDEX


@dataclass(frozen=True)
class Address:
    """An IPv4 address of an interface; `prefix` is the prefix length in bits."""

    ip: str
    prefix: int | None = None


@dataclass(frozen=True)
class InterfaceFacts:
    """One network interface. `bridge` is the bridge that it belongs to; `members` are those of a bridge."""

    name: str
    active: bool | None = None
    ipv4: tuple[Address, ...] = ()
    ipv6_link_local: str | None = None
    mac: str | None = None
    bridge: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class LanAddress:
    """An address that the other Macs can reach without Thunderbolt."""

    interface: str
    ip: str
    kind: Literal["ethernet", "wifi", "other"]
    prefix: int | None = None


@dataclass(frozen=True)
class PythonFacts:
    """A Python interpreter on the node, and the versions of the required packages (None: not installed)."""

    executable: str | None = None
    version: str | None = None
    mlx: str | None = None
    mlx_lm: str | None = None
    transformers: str | None = None
    jaccl_kernel: str | None = None


@dataclass(frozen=True)
class PowerFacts:
    """Power and sleep settings. `sleep_minutes` is the idle time before the Mac sleeps, 0 for never."""

    source: Literal["ac", "battery"] | None = None
    battery_percent: int | None = None
    adapter_watts: int | None = None
    low_power_mode: bool | None = None
    sleep_minutes: int | None = None
    sleep_prevented: bool | None = None
    caffeinated: bool | None = None

    @property
    def may_sleep(self) -> bool | None:
        """Whether the Mac may sleep when idle, which takes its peers' ports down."""
        if self.sleep_minutes == 0 or self.sleep_prevented:
            return False
        return None if self.sleep_minutes is None or self.sleep_prevented is None else True


@dataclass(frozen=True)
class RsyncFacts:
    """The rsync implementation; Apple's openrsync rejects `--info=progress2`."""

    flavour: Literal["rsync", "openrsync"]
    version: str | None = None
    protocol: int | None = None


@dataclass(frozen=True)
class NodeFacts:
    """One Mac. Sizes are in bytes, except `wired_limit_mb` (0: macOS's default).

    `clock_offset_s` is how far its clock is ahead of ours, in seconds. `error` is the reason if the probe
    failed.
    """

    name: str
    ssh: str
    error: str | None = None
    hostname: str | None = None
    model: str | None = None
    chip: str | None = None
    arch: str | None = None
    memory: int | None = None
    wired_limit_mb: int | None = None
    macos: str | None = None
    build: str | None = None
    python: PythonFacts | None = None
    rdma: Literal["enabled", "disabled"] | None = None
    ports: tuple[PortFacts, ...] | None = None
    devices: tuple[DeviceFacts, ...] | None = None
    interfaces: tuple[InterfaceFacts, ...] | None = None
    lan: tuple[LanAddress, ...] | None = None
    power: PowerFacts = PowerFacts()
    disk_free: int | None = None
    clock_offset_s: float | None = None
    rsync: RsyncFacts | None = None
    ssh_version: str | None = None
    outcomes: dict[str, CommandOutcome] = field(default_factory=dict)

    @property
    def thunderbolt5(self) -> bool | None:
        """Whether the Mac has Thunderbolt 5. No Mac mixes it with older ports, so one port is enough."""
        if self.ports is None:
            return None
        seen = {port.thunderbolt5 for port in self.ports}
        if True in seen:
            return True
        return False if False in seen or not seen else None

    def device(self, name: str | None) -> DeviceFacts | None:
        """The RDMA device of that name."""
        return next((device for device in self.devices or () if device.name == name), None)

    def interface(self, name: str | None) -> InterfaceFacts | None:
        """The network interface of that name."""
        return next((interface for interface in self.interfaces or () if interface.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON types, for `from_json`."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_json(cls, data: object) -> "NodeFacts":
        """Decode the result of `to_json`; unknown fields are dropped.

        Raises:
            InputError: the data is not the facts of a node.
        """
        try:
            return decode(cls, data)
        except (TypeError, ValueError) as error:
            fix = "Scan the Macs again (`jaccl probe --json`)."
            raise InputError(f"invalid node facts: {error}", fix=fix) from error


def version_tuple(version: str | None) -> tuple[int, ...] | None:
    """`26.5.1` as (26, 5, 1); None if the text does not start with a number."""
    match = re.match(r"\s*(\d{1,6}(?:\.\d{1,6})*)", version or "", re.ASCII)
    return tuple(int(part) for part in match[1].split(".")) if match else None
