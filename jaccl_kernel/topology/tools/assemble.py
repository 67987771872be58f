"""Builds the `NodeFacts` of one Mac from its raw command results. Pure.

Partial output of a command that timed out is not used: its facts stay None, and its outcome has the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Literal, TypeVar

from jaccl_kernel.nodes.survey import free_bytes
from jaccl_kernel.topology.facts import (
    CommandOutcome,
    DeviceFacts,
    InterfaceFacts,
    LanAddress,
    NodeFacts,
    PortFacts,
    PowerFacts,
    Status,
)
from jaccl_kernel.topology.tools import rdma, system
from jaccl_kernel.topology.tools.commands import CommandResult

T = TypeVar("T")

NOT_FOUND = 127
"""A shell's exit status for a command that does not exist."""

_LAN_ORDER = {"ethernet": 0, "wifi": 1, "other": 2}


def assemble(
    name: str, ssh: str, outputs: Mapping[str, CommandResult], *, error: str | None = None
) -> NodeFacts:
    """Build the facts of one node from its command results.

    Args:
        name: the node's name.
        ssh: the node's ssh host name.
        outputs: results by the ids of `commands.COMMANDS`; any may be absent.
        error: why the probe failed, if it did.
    """
    reader = _Reader(outputs)
    read = reader.read
    hardware = read("networksetup", rdma.hardware_ports)
    interfaces = read("ifconfig", system.ifconfig)
    getifaddr = {interface: read(f"getifaddr_{interface}", system.getifaddr) for interface in ("en0", "en1")}
    macos, build = read("sw_vers", system.sw_vers) or (None, None)
    sysctl = read("sysctl", system.settings) or {}
    date = outputs.get("date")
    clock = read("date", system.clock)
    return NodeFacts(
        name=name,
        ssh=ssh,
        error=error,
        hostname=read("hostname", system.first_line),
        arch=read("uname", system.first_line),
        model=sysctl.get("hw.model"),
        chip=sysctl.get("machdep.cpu.brand_string"),
        memory=system.count(sysctl.get("hw.memsize")),
        wired_limit_mb=system.count(sysctl.get("iogpu.wired_limit_mb")),
        macos=macos,
        build=build,
        python=read("python", system.python_versions),
        rdma=read("rdma_ctl", rdma.rdma_ctl_status),
        ports=_with_interfaces(read("system_profiler", rdma.thunderbolt), hardware),
        devices=_merged(
            read("ibv_devices", rdma.ibv_devices),
            read("ibv_devinfo", lambda text: rdma.ibv_devinfo(text, verbose=True)),
        ),
        interfaces=interfaces,
        lan=_lan(hardware, interfaces, getifaddr),
        power=_power(reader),
        disk_free=read("df", free_bytes),
        # date truncates to whole seconds, which loses half a second on average
        clock_offset_s=None
        if clock is None or date is None or date.at is None
        else round(clock + 0.5 - date.at, 1),
        rsync=read("rsync", system.rsync_flavour),
        ssh_version=read("ssh", system.ssh_version),
        outcomes=reader.outcomes,
    )


class _Reader:
    """Parses results by their ids, and records the outcome of each command."""

    def __init__(self, results: Mapping[str, CommandResult]) -> None:
        self._results = results
        self.outcomes = {key: _outcome(result) for key, result in results.items()}

    def read(self, key: str, parser: Callable[[str], T | None]) -> T | None:
        """The parsed output of that command; None if it has no usable output."""
        if key not in self._results or self.outcomes[key].status in ("timeout", "missing", "empty"):
            return None
        result = self._results[key]
        text = result.stdout if result.stdout.strip() else result.stderr  # ssh -V prints to stderr
        value = parser(text)
        if value is None and self.outcomes[key].status == "ok":
            self.outcomes[key] = CommandOutcome("unreadable", _last_line(text))
        return value


def _outcome(result: CommandResult) -> CommandOutcome:
    words = _last_line(result.stderr) or _last_line(result.stdout)
    status: Status
    if result.timed_out or result.returncode is None:
        status = "timeout"
    elif result.returncode == NOT_FOUND:
        status = "missing"
    elif result.returncode != 0:
        status = "failed"
    else:
        return CommandOutcome("ok" if words else "empty")
    return CommandOutcome(status, words)


def _last_line(text: str) -> str:
    """The last non-blank line, truncated for display."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "")


def _with_interfaces(
    ports: tuple[PortFacts, ...] | None, hardware: tuple[rdma.HardwarePort, ...] | None
) -> tuple[PortFacts, ...] | None:
    """The ports with the interface that networksetup lists for each port number; never inferred."""
    if ports is None:
        return None
    interfaces = {port.thunderbolt: port.interface for port in hardware or ()}
    named = (
        replace(port, interface=None if port.number is None else interfaces.get(port.number))
        for port in ports
    )
    return tuple(sorted(named, key=lambda port: (port.number is None, port.number or 0)))


def _merged(
    listed: tuple[DeviceFacts, ...] | None, detailed: tuple[DeviceFacts, ...] | None
) -> tuple[DeviceFacts, ...] | None:
    """The list of ibv_devices with the details of ibv_devinfo; either alone if the other has no result."""
    if listed is None or detailed is None:
        return listed if detailed is None else detailed
    details = {device.name: device for device in detailed}
    names = {device.name for device in listed}
    return (
        *(details.get(device.name, device) for device in listed),
        *(device for device in detailed if device.name not in names),
    )


def _lan(
    hardware: tuple[rdma.HardwarePort, ...] | None,
    interfaces: tuple[InterfaceFacts, ...] | None,
    getifaddr: Mapping[str, str | None],
) -> tuple[LanAddress, ...] | None:
    """Addresses except those of Thunderbolt ports, Ethernet first, then Wi-Fi."""
    kinds = {port.interface: _kind(port) for port in hardware or ()}
    found = [
        LanAddress(interface.name, address.ip, kind, address.prefix)
        for interface in interfaces or ()
        if (kind := kinds.get(interface.name)) is not None
        for address in interface.ipv4
        if not IPv4Address(address.ip).is_link_local
    ]
    known = {address.ip for address in found}
    for interface_name, ip in getifaddr.items():  # may work when networksetup or ifconfig failed
        kind = kinds.get(interface_name, "other" if interface_name not in kinds else None)
        if ip and ip not in known and kind is not None and not IPv4Address(ip).is_link_local:
            found.append(LanAddress(interface_name, ip, kind))
    if not found and (hardware is None or interfaces is None):
        return None
    return tuple(sorted(found, key=lambda address: (_LAN_ORDER[address.kind], address.interface)))


def _kind(port: rdma.HardwarePort) -> Literal["ethernet", "wifi", "other"] | None:
    name = port.name.lower()
    if port.thunderbolt is not None or "bridge" in port.interface:
        return None
    if any(word in name for word in ("wi-fi", "wifi", "wlan", "airport")):
        return "wifi"
    return "ethernet" if "ethernet" in name or "lan" in name.split() else "other"


def _power(reader: _Reader) -> PowerFacts:
    settings = reader.read("pmset", system.pmset) or PowerFacts()
    battery = reader.read("pmset_batt", system.pmset_batt) or PowerFacts()
    adapter = reader.read("pmset_ac", system.pmset_ac) or PowerFacts()
    held = reader.read("pmset_assertions", system.pmset_assertions) or PowerFacts()
    return PowerFacts(
        source=battery.source,
        battery_percent=battery.battery_percent,
        adapter_watts=adapter.adapter_watts,
        low_power_mode=settings.low_power_mode,
        sleep_minutes=settings.sleep_minutes,
        sleep_prevented=held.sleep_prevented,
        caffeinated=held.caffeinated,
    )
