"""The network of a simulated Mac in the output of ifconfig, ipconfig and networksetup, and its GIDs. Pure.

The state may come from macOS's defaults, a fault, or a command of the user.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface

from jaccl_kernel.rehearsal.macs import ClusterSpec, MacSpec

BRIDGE = "bridge0"
BRIDGE_SERVICE = "Thunderbolt Bridge"

_FLAGS = "BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST"
_LOOPBACK = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
"""


def service(number: int) -> str:
    """networksetup's name of a Thunderbolt port."""
    return f"Thunderbolt {number}"


def gids(spec: ClusterSpec, node: int, number: int) -> list[str]:
    """The GID table of a port's RDMA device, index 0 first."""
    mac = spec.macs[node]
    if number not in spec.cables_of(node) or number in mac.down:
        return []
    if number in mac.bridged and mac.bridge_state == "up":  # a bridge member usually has no GID
        return []
    mapped = [f"::ffff:{address.ip}" for address in spec.ipv4(node, number)]
    return [_link_local(node, number), *late_addresses(mac, node, number), *mapped]


def late_addresses(mac: MacSpec, node: int, number: int) -> list[str]:
    """The IPv6 address that occupies index 1 of a port's GID table instead of the IPv4 address, if any."""
    return [f"fd00::{node + 1:x}:{number:x}"] if number in mac.late_gid else []


def answers(spec: ClusterSpec, node: int) -> Iterator[tuple[str, str, int]]:
    """All network commands: command line, output, exit status."""
    mac = spec.macs[node]
    yield "networksetup -listallhardwareports", _hardware_ports(mac, node), 0
    names = ["Ethernet", BRIDGE_SERVICE, "Wi-Fi", *(service(number) for number in sorted(mac.interfaces))]
    heading = "An asterisk (*) denotes that a network service is disabled.\n"
    yield "networksetup -listallnetworkservices", heading + "".join(f"{name}\n" for name in names), 0
    for number in mac.interfaces:
        text = _service_info(spec.ipv4(node, number), manual=number in mac.ipv4)
        yield f"networksetup -getinfo {service(number)}", text, 0
    texts = dict(_interfaces(spec, node))
    yield "ifconfig -a", "".join(texts.values()), 0
    yield "ifconfig", "".join(texts.values()), 0
    for name in (BRIDGE, *texts):
        missing = f"ifconfig: interface {name} does not exist\n"
        yield f"ifconfig {name}", texts.get(name, missing), 0 if name in texts else 1
    for name, address in _addresses(spec, node):
        yield f"ipconfig getifaddr {name}", f"{address}\n" if address else "", 0 if address else 1


def _addresses(spec: ClusterSpec, node: int) -> Iterator[tuple[str, str | None]]:
    """The first IPv4 address of each interface."""
    mac = spec.macs[node]
    yield "en0", mac.lan_ip
    yield "en1", mac.wifi_ip
    for number, name in sorted(mac.interfaces.items()):
        found = spec.ipv4(node, number)
        yield name, str(found[0].ip) if found else None


def _interfaces(spec: ClusterSpec, node: int) -> Iterator[tuple[str, str]]:
    """The output of ifconfig for each existing interface."""
    mac = spec.macs[node]
    yield "lo0", _LOOPBACK
    own: tuple[tuple[str, str | None], ...] = (("en0", mac.lan_ip), ("en1", mac.wifi_ip))
    for index, (name, ip) in enumerate(own):
        lines = [*_head(name, _mac_address(node, index)), *_inet([IPv4Interface(f"{ip}/24")] if ip else [])]
        yield name, _text(lines, active=ip is not None)
    for number, name in sorted(mac.interfaces.items()):
        up, cabled = number not in mac.down, number in spec.cables_of(node)
        lines = _head(name, _mac_address(node, 16 + number), up=up)
        if cabled and up and number not in mac.bridged:
            lines.append(f"\tinet6 {_link_local(node, number)}%{name} prefixlen 64 secured scopeid 0x9")
            lines += [f"\tinet6 {late} prefixlen 64" for late in late_addresses(mac, node, number)]
        lines += _inet(spec.ipv4(node, number))
        yield name, _text(lines, active=cabled and up)
    if mac.bridge_state != "none":
        up = mac.bridge_state == "up"
        lines = [*_head(BRIDGE, _mac_address(node, 1), up=up), "\tConfiguration:"]
        lines.append("\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0")
        for place, number in enumerate(sorted(mac.bridged)):
            lines.append(f"\tmember: {mac.interfaces[number]} flags=3<LEARNING,DISCOVER>")
            lines.append(f"\t        ifmaxaddr 0 port {place + 8}")
        yield BRIDGE, _text(lines, active=up and bool(mac.bridged))


def _head(name: str, mac: str, *, up: bool = True) -> list[str]:
    flags = f"8863<UP,{_FLAGS}>" if up else f"8862<{_FLAGS}>"
    return [f"{name}: flags={flags} mtu 1500", f"\tether {mac}"]


def _inet(addresses: Sequence[IPv4Interface]) -> list[str]:
    return [
        f"\tinet {address.ip} netmask {int(address.netmask):#010x} "
        f"broadcast {address.network.broadcast_address}"
        for address in addresses
    ]


def _text(lines: list[str], *, active: bool) -> str:
    ending = ["\tmedia: autoselect", f"\tstatus: {'active' if active else 'inactive'}"]
    return "\n".join([*lines, *ending]) + "\n"


def _hardware_ports(mac: MacSpec, node: int) -> str:
    ports = [("Ethernet", "en0"), (BRIDGE_SERVICE, BRIDGE), ("Wi-Fi", "en1")]
    ports += [(service(number), interface) for number, interface in sorted(mac.interfaces.items())]
    blocks = [
        f"\nHardware Port: {name}\nDevice: {interface}\nEthernet Address: {_mac_address(node, i)}\n"
        for i, (name, interface) in enumerate(ports)
    ]
    return "".join(blocks) + "\nVLAN Configurations\n===================\n"


def _service_info(addresses: Sequence[IPv4Interface], *, manual: bool) -> str:
    lines = ["Manual Configuration" if manual else "DHCP Configuration"]
    if addresses:
        lines += [f"IP address: {addresses[0].ip}", f"Subnet mask: {addresses[0].netmask}"]
    return "\n".join([*lines, "Router: (null)", "IPv6: Automatic"]) + "\n"


def _link_local(node: int, number: int) -> str:
    return f"fe80::3474:d9ff:fe{node + 1:02x}:{number:x}"


def _mac_address(node: int, last: int) -> str:
    return f"02:00:00:00:{node + 1:02x}:{last:02x}"
