"""What would give each cabled Thunderbolt port a usable IPv4 GID: the exact commands, each with its undo.

A plan only: nothing is run here, and a port whose GID is in place is left alone, bridge or not. Addresses are
/30 networks that touch no network of any of the Macs, or fit the address that the far end has already.
`steps/network.py` applies a plan, after a yes.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import chain
from typing import Literal

from jaccl_kernel.cluster.facts import DeviceFacts, InterfaceFacts, NodeFacts
from jaccl_kernel.cluster.wiring import Cable, End, Wiring

REBOOT = "A reboot undoes all of this: scan again after one, and apply it again where it is needed."

_LINK_LOCAL = IPv4Network("169.254.0.0/16")
_UNKNOWN_PREFIX = 16  # a network whose size nobody told is taken for a large one
# One /24 holds the /30s of 64 cables. Rare ends of the private ranges first; 192.168.0.x, which MLX's own
# set-up takes, is what many home routers use.
_POOLS = tuple(
    chain(
        (IPv4Network(f"10.{third}.254.0/24") for third in range(254, 200, -1)),
        (IPv4Network(f"172.{second}.254.0/24") for second in range(31, 15, -1)),
        (IPv4Network(f"192.168.{third}.0/24") for third in range(254, 200, -1)),
        (IPv4Network(f"198.18.{third}.0/24") for third in range(254, 200, -1)),
    )
)


@dataclass(frozen=True)
class Step:
    """One change on one Mac: the command and what takes it back, both to be run by root, and why."""

    node: int
    kind: Literal["unbridge", "address"]
    port: str
    command: tuple[str, ...]
    undo: tuple[str, ...]
    why: str

    @property
    def line(self) -> str:
        """The command to paste into a terminal."""
        return f"sudo {shlex.join(self.command)}"

    @property
    def undo_line(self) -> str:
        """What takes it back."""
        return f"sudo {shlex.join(self.undo)}"

    @property
    def undo_if(self) -> str:
        """A test in sh whether there is anything to take back: no for what was never done, or is undone."""
        if self.kind == "unbridge":
            _, bridge, _, name = self.command
            return f"! ifconfig {shlex.quote(bridge)} 2>&1 | grep -qF {shlex.quote(f'member: {name} ')}"
        _, name, _, ip, *_ = self.command
        return f"ifconfig {shlex.quote(name)} 2>&1 | grep -qF {shlex.quote(f'inet {ip} ')}"


@dataclass(frozen=True)
class NetworkPlan:
    """The steps for all Macs, in an order that may be followed one by one; `notes` are for the reader.

    Attributes:
        labels: the Macs' names, by node.
    """

    labels: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """The Macs that would be changed."""
        return tuple(sorted({step.node for step in self.steps}))

    def of(self, node: int) -> tuple[Step, ...]:
        """The steps on one Mac."""
        return tuple(step for step in self.steps if step.node == node)

    def text(self) -> str:
        """The commands for each Mac, to read or to paste, and what takes them back.

        Whatever is no command to be run now is a line of its own that begins with `#`: a person's zsh takes
        a `#` after a command for one more argument, and runs nothing of a line that begins with it.
        """
        parts = []
        for node in self.nodes:
            lines = [f"On {self.labels[node]}:"]
            for step in self.of(node):
                lines += [f"  # {step.why}", f"  {step.line}"]
            lines.append(f"  # To take it back on {self.labels[node]}, last change first:")
            lines += [f"  #   {step.undo_line}" for step in reversed(self.of(node))]
            parts.append("\n".join(lines))
        return "\n".join([*parts, *self.notes])

    def undo_script(self, node: int) -> str:
        """A POSIX sh script that puts one Mac back as it was; it goes on after a step that fails.

        It may be run again, or after a reboot: what is not there any more is passed over. Two such scripts
        one after the other are one that takes back both. `SUDO` in its environment replaces plain `sudo`,
        such as `sudo -n`.
        """
        lines = [
            "#!/bin/sh",
            f"# Takes back what was done to the Thunderbolt ports of {self.labels[node]}, last change first.",
            "# A reboot does the same. Run: sh undo-network.sh",
            'PATH="$PATH:/usr/sbin:/sbin"',
            ': "${undo_failed:=0}"',
        ]
        for step in reversed(self.of(node)):
            undo = shlex.join(step.undo)
            lines += [
                f"# {step.port}: {step.why}",
                f"if {step.undo_if}; then",
                f"    ${{SUDO:-sudo}} {undo} ||",
                f"        {{ echo {shlex.quote(f'failed: {undo}')} >&2; undo_failed=1; }}",
                "fi",
            ]
        return "\n".join([*lines, '[ "$undo_failed" -eq 0 ]', ""])


def plan(wiring: Wiring) -> NetworkPlan:
    """The steps that the cabled ports need; none for a cluster whose GIDs are in place."""
    steps: list[Step] = []
    notes: list[str] = []
    taken = _networks(wiring.nodes)
    pool = next((pool for pool in _POOLS if not any(pool.overlaps(network) for network in taken)), None)
    fresh = iter(pool.subnets(new_prefix=30) if pool else ())
    for cable in wiring.cables:
        if cable.is_loop:
            continue
        ends = [_Port.of(wiring, end) for end in (cable.a, cable.b)]
        notes += [port.untested for port in ends if port.untested]
        steps += [step for port in ends if port.needs_gid for step in port.unbridge()]
        steps += _addresses(wiring, cable, ends, fresh, planned=_given(steps))
    notes += [_late(wiring, end) for end in _late_ends(wiring)]
    if steps:
        notes += [*_about_collisions(steps, taken), REBOOT]
    return NetworkPlan(wiring.labels, tuple(steps), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Port:
    """One end of a cable, with what is known of its interface and its RDMA device."""

    end: End
    place: str
    interface: InterfaceFacts | None
    device: DeviceFacts | None
    untested: str

    @classmethod
    def of(cls, wiring: Wiring, end: End) -> "_Port":
        port, node = wiring.port(end), wiring.nodes[end.node]
        interface, device = node.interface(port.interface), node.device(port.rdma_device)
        place = f"{wiring.place(end)} ({port.interface or 'no interface'})"
        untested = ""
        if interface is None:
            untested = f"{place}: nothing is known of its network interface, so no command is proposed."
        elif device is None:
            untested = f"{place}: it lists no RDMA device, and without one an address does not help."
        elif device.gids is None:
            untested = f"{place}: its GIDs are not known (ibv_devinfo -v), so nothing is changed there."
        return cls(end, place, interface, device, untested)

    @property
    def needs_gid(self) -> bool:
        """Whether the port is known to have no IPv4 GID at all."""
        return (
            not self.untested
            and self.device is not None
            and self.device.gids is not None
            and self.device.ipv4_gid is None
        )

    @property
    def address(self) -> IPv4Interface | None:
        """The IPv4 address that it has."""
        for one in self.interface.ipv4 if self.interface else ():
            return IPv4Interface(f"{one.ip}/{one.prefix if one.prefix is not None else 32}")
        return None

    def unbridge(self) -> list[Step]:
        """Out of the bridge, if it is in one."""
        if self.interface is None or not self.interface.bridge:
            return []
        bridge, name = self.interface.bridge, self.interface.name
        return [
            Step(
                self.end.node,
                "unbridge",
                self.place,
                ("ifconfig", bridge, "deletem", name),
                ("ifconfig", bridge, "addm", name),
                f"takes {self.place} out of {bridge}: a member has no GID of its own",
            )
        ]

    def give(self, address: IPv4Interface) -> Step:
        """An address for the port."""
        assert self.interface is not None
        name, ip = self.interface.name, str(address.ip)
        return Step(
            self.end.node,
            "address",
            self.place,
            ("ifconfig", name, "inet", ip, "netmask", str(address.netmask)),
            ("ifconfig", name, "inet", ip, "-alias"),
            f"gives {self.place} an IPv4 address, of which its GID is made",
        )


def _given(steps: Sequence[Step]) -> set[IPv4Address]:
    """The addresses that steps give."""
    return {IPv4Address(step.command[3]) for step in steps if step.kind == "address"}


def _addresses(
    wiring: Wiring,
    cable: Cable,
    ends: Sequence[_Port],
    fresh: Iterator[IPv4Network],
    planned: set[IPv4Address],
) -> list[Step]:
    """Addresses for the ends of a cable that need one: of a fresh /30, or one that fits the other end."""
    lacking = [port for port in ends if port.needs_gid and port.address is None]
    if not lacking:
        return []
    other = next((port for port in ends if port not in lacking), None)
    if other is not None and (fitting := _beside(other, cable, wiring, planned)):
        return [lacking[0].give(fitting)]
    network = next(fresh, None)
    if network is None:  # more LANs than we have pools; every Mac makes up such an address by itself too
        network = _LINK_LOCAL
    hosts = network.hosts() if network is not _LINK_LOCAL else _made_up(cable)
    pairs = list(zip(ends, hosts, strict=False))
    return [port.give(IPv4Interface(f"{ip}/{network.prefixlen}")) for port, ip in pairs if port in lacking]


def _made_up(cable: Cable) -> Iterator[IPv4Address]:
    for end in (cable.a, cable.b):
        yield IPv4Address(f"169.254.{100 + end.node}.{1 + end.port}")


def _beside(other: _Port, cable: Cable, wiring: Wiring, planned: set[IPv4Address]) -> IPv4Interface | None:
    """A free address in the network of the far end, if that network is the cable's own."""
    if other.address is None or other.interface is None:
        return None
    network = other.address.network
    used, elsewhere = set(planned), False
    for number, node in enumerate(wiring.nodes):
        for interface in node.interfaces or ():
            here = {IPv4Address(one.ip) for one in interface.ipv4}
            is_other = number == other.end.node and interface.name == other.interface.name
            elsewhere = elsewhere or (not is_other and any(ip in network for ip in here))
            used |= here
    if network == _LINK_LOCAL:  # every port without another address is in it
        candidates = _made_up(cable)
    elif elsewhere or network.prefixlen < 24:
        return None
    else:
        candidates = iter(network.hosts())
    ip = next((ip for ip in candidates if ip not in used), None)
    return IPv4Interface(f"{ip}/{network.prefixlen}") if ip else None


def _networks(nodes: Sequence[NodeFacts]) -> set[IPv4Network]:
    """Every IPv4 network that any of the Macs is in."""
    found = set()
    for node in nodes:
        known = [(one.ip, one.prefix) for one in node.lan or ()]
        known += [(one.ip, one.prefix) for interface in node.interfaces or () for one in interface.ipv4]
        for ip, prefix in known:
            length = _UNKNOWN_PREFIX if prefix is None else prefix
            found.add(IPv4Interface(f"{ip}/{length}").network)
    return found


def _late_ends(wiring: Wiring) -> Iterator[End]:
    """Ports whose IPv4 GID is there, but not where JACCL sends from."""
    for cable in wiring.cables:
        for end in (cable.a, cable.b):
            device = wiring.nodes[end.node].device(wiring.port(end).rdma_device)
            if device is not None and device.ipv4_gid is not None and not device.gid_ready:
                yield end


def _late(wiring: Wiring, end: End) -> str:
    return (
        f"{wiring.place(end)}: its IPv4 GID is not at index 1, and no command is proposed. Set the port's "
        "IPv6 to link-local only (System Settings → Network), or restart that Mac."
    )


def _about_collisions(steps: Sequence[Step], taken: set[IPv4Network]) -> Iterator[str]:
    new = _given(steps)
    if any(not any(ip in network for network in (*taken, _LINK_LOCAL)) for ip in new):
        lans = (
            str(network) for network in sorted(taken) if not network.is_loopback and network != _LINK_LOCAL
        )
        yield (
            f"The new networks touch none that the Macs are in ({', '.join(lans) or 'none is known'}). "
            "Networks behind a router or a VPN cannot be seen from here."
        )
    if any(ip in _LINK_LOCAL for ip in new):
        yield "Addresses of 169.254.x.x are link-local, as the far ends' are: they touch no LAN."
