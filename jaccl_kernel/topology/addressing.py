"""Plans the commands that give each connected Thunderbolt port a usable IPv4 GID, each with its undo command.

Runs nothing; `steps/network.py` applies a plan after confirmation. A port with a usable GID is not changed,
even if it is a bridge member. New addresses are in /30 networks that overlap no network of any Mac, or in the
network of the address that the other end already has.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import chain
from typing import Literal

from jaccl_kernel.topology.facts import DeviceFacts, InterfaceFacts, NodeFacts
from jaccl_kernel.topology.wiring import Cable, End, Wiring

REBOOT = "A reboot reverts these changes: afterwards, scan the Macs again and repeat the changes if needed."

_LINK_LOCAL = IPv4Network("169.254.0.0/16")
_UNKNOWN_PREFIX = 16  # assume a large network if the prefix length is unknown
# One /24 has the /30 networks of 64 cables. Rarely used parts of the private ranges come first; MLX's own
# set-up uses 192.168.0.x, which collides with many home routers.
_POOLS = tuple(
    chain(
        (IPv4Network(f"10.{third}.254.0/24") for third in range(254, 200, -1)),
        (IPv4Network(f"172.{second}.254.0/24") for second in range(31, 15, -1)),
        (IPv4Network(f"192.168.{third}.0/24") for third in range(254, 200, -1)),
        (IPv4Network(f"198.18.{third}.0/24") for third in range(254, 200, -1)),
    )
)


@dataclass(frozen=True)
class NetworkStep:
    """One change on one Mac: the command, its undo command (both need root), and the reason."""

    node: int
    kind: Literal["unbridge", "address"]
    port: str
    command: tuple[str, ...]
    undo: tuple[str, ...]
    reason: str

    @property
    def line(self) -> str:
        """The command to paste into a terminal."""
        return f"sudo {shlex.join(self.command)}"

    @property
    def undo_line(self) -> str:
        """The undo command to paste into a terminal."""
        return f"sudo {shlex.join(self.undo)}"

    @property
    def undo_if(self) -> str:
        """A shell condition that is true if the change is in effect and can be undone."""
        if self.kind == "unbridge":
            _, bridge, _, name = self.command
            return f"! ifconfig {shlex.quote(bridge)} 2>&1 | grep -qF {shlex.quote(f'member: {name} ')}"
        _, name, _, ip, *_ = self.command
        return f"ifconfig {shlex.quote(name)} 2>&1 | grep -qF {shlex.quote(f'inet {ip} ')}"


@dataclass(frozen=True)
class NetworkPlan:
    """The steps for all Macs, in the order in which to run them; `notes` are for the user.

    Attributes:
        labels: the names of the Macs, by node index.
        unknown: the indices of the Macs whose ports are unknown, because they were not reached.
    """

    labels: tuple[str, ...]
    steps: tuple[NetworkStep, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: tuple[int, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """The indices of the Macs that the plan changes."""
        return tuple(sorted({step.node for step in self.steps}))

    def of(self, node: int) -> tuple[NetworkStep, ...]:
        """The steps on one Mac."""
        return tuple(step for step in self.steps if step.node == node)

    def text(self) -> str:
        """The commands for each Mac, to read or to paste, and the undo commands.

        All other text is on lines that begin with `#`: an interactive zsh passes a `#` after a command as an
        argument, but does not run a line that begins with it.
        """
        parts = []
        for node in self.nodes:
            lines = [f"On {self.labels[node]}:"]
            for step in self.of(node):
                lines += [f"  # {step.reason}", f"  {step.line}"]
            lines.append(f"  # To undo on {self.labels[node]}, last change first:")
            lines += [f"  #   {step.undo_line}" for step in reversed(self.of(node))]
            parts.append("\n".join(lines))
        return "\n".join([*parts, *self.notes])

    def undo_script(self, node: int) -> str:
        """A POSIX sh script that undoes the changes on one Mac; it continues after a step that fails.

        It may run again, or after a reboot: changes that are no longer in effect are skipped. Two such
        scripts can be concatenated into one that undoes both. The environment variable `SUDO` replaces plain
        `sudo`, for example with `sudo -n`.
        """
        lines = [
            "#!/bin/sh",
            f"# Undoes the changes to the Thunderbolt ports of {self.labels[node]}, last change first.",
            "# A reboot has the same effect. Run: sh undo-network.sh",
            'PATH="$PATH:/usr/sbin:/sbin"',
            ': "${undo_failed:=0}"',
        ]
        for step in reversed(self.of(node)):
            undo = shlex.join(step.undo)
            lines += [
                f"# {step.port}: {step.reason}",
                f"if {step.undo_if}; then",
                f"    ${{SUDO:-sudo}} {undo} ||",
                f"        {{ echo {shlex.quote(f'failed: {undo}')} >&2; undo_failed=1; }}",
                "fi",
            ]
        return "\n".join([*lines, '[ "$undo_failed" -eq 0 ]', ""])


def plan(wiring: Wiring) -> NetworkPlan:
    """Plan the steps that the connected ports need; none if every GID is usable."""
    steps: list[NetworkStep] = []
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
        steps += _addresses(wiring, cable, ends, fresh, planned=_assigned(steps))
    notes += [_wrong_index(wiring, end) for end in _wrong_index_ends(wiring)]
    if steps:
        notes += [*_collision_notes(steps, taken), REBOOT]
    notes += [_why_unknown(wiring, node) for node in wiring.untested]
    return NetworkPlan(wiring.labels, tuple(steps), tuple(dict.fromkeys(notes)), wiring.untested)


def _why_unknown(wiring: Wiring, node: int) -> str:
    error = wiring.nodes[node].error
    why = f"not reached: {error}" if error else "system_profiler gave no result"
    return f"{wiring.labels[node]}: nothing is planned, because its ports are unknown ({why.rstrip('.')})."


@dataclass(frozen=True)
class _Port:
    """One end of a cable, with the facts of its interface and its RDMA device."""

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
            untested = f"{place}: the network interface is unknown, so no command is proposed."
        elif device is None:
            untested = f"{place}: no RDMA device is listed, so an address has no effect."
        elif device.gids is None:
            untested = f"{place}: the GIDs are unknown (ibv_devinfo -v), so no change is proposed."
        return cls(end, place, interface, device, untested)

    @property
    def needs_gid(self) -> bool:
        """Whether the port is known to have no IPv4 GID."""
        return (
            not self.untested
            and self.device is not None
            and self.device.gids is not None
            and self.device.ipv4_gid is None
        )

    @property
    def address(self) -> IPv4Interface | None:
        """The port's IPv4 address, if any."""
        for one in self.interface.ipv4 if self.interface else ():
            return IPv4Interface(f"{one.ip}/{one.prefix if one.prefix is not None else 32}")
        return None

    def unbridge(self) -> list[NetworkStep]:
        """The step that removes the port from its bridge, if it is in one."""
        if self.interface is None or not self.interface.bridge:
            return []
        bridge, name = self.interface.bridge, self.interface.name
        return [
            NetworkStep(
                self.end.node,
                "unbridge",
                self.place,
                ("ifconfig", bridge, "deletem", name),
                ("ifconfig", bridge, "addm", name),
                f"removes {self.place} from {bridge}: a bridge member has no GID",
            )
        ]

    def assign(self, address: IPv4Interface) -> NetworkStep:
        """The step that assigns an address to the port."""
        assert self.interface is not None
        name, ip = self.interface.name, str(address.ip)
        return NetworkStep(
            self.end.node,
            "address",
            self.place,
            ("ifconfig", name, "inet", ip, "netmask", str(address.netmask)),
            ("ifconfig", name, "inet", ip, "-alias"),
            f"assigns an IPv4 address to {self.place}, which creates its GID",
        )


def _assigned(steps: Sequence[NetworkStep]) -> set[IPv4Address]:
    """The addresses that the steps assign."""
    return {IPv4Address(step.command[3]) for step in steps if step.kind == "address"}


def _addresses(
    wiring: Wiring,
    cable: Cable,
    ends: Sequence[_Port],
    fresh: Iterator[IPv4Network],
    planned: set[IPv4Address],
) -> list[NetworkStep]:
    """Addresses for the ends of a cable that need one: from a new /30, or from the other end's network."""
    lacking = [port for port in ends if port.needs_gid and port.address is None]
    if not lacking:
        return []
    other = next((port for port in ends if port not in lacking), None)
    if other is not None and (fitting := _address_beside(other, cable, wiring, planned)):
        return [lacking[0].assign(fitting)]
    network = next(fresh, None)
    if network is None:  # every pool overlaps a LAN: use link-local addresses, as macOS does by default
        network = _LINK_LOCAL
    hosts = network.hosts() if network is not _LINK_LOCAL else _link_local_addresses(cable)
    pairs = list(zip(ends, hosts, strict=False))
    return [port.assign(IPv4Interface(f"{ip}/{network.prefixlen}")) for port, ip in pairs if port in lacking]


def _link_local_addresses(cable: Cable) -> Iterator[IPv4Address]:
    for end in (cable.a, cable.b):
        yield IPv4Address(f"169.254.{100 + end.node}.{1 + end.port}")


def _address_beside(
    other: _Port, cable: Cable, wiring: Wiring, planned: set[IPv4Address]
) -> IPv4Interface | None:
    """A free address in the network of the other end, if no other interface is in that network."""
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
    if network == _LINK_LOCAL:  # every port without another address is in this network
        candidates = _link_local_addresses(cable)
    elif elsewhere or network.prefixlen < 24:
        return None
    else:
        candidates = iter(network.hosts())
    ip = next((ip for ip in candidates if ip not in used), None)
    return IPv4Interface(f"{ip}/{network.prefixlen}") if ip else None


def _networks(nodes: Sequence[NodeFacts]) -> set[IPv4Network]:
    """All IPv4 networks of the Macs."""
    found = set()
    for node in nodes:
        known = [(one.ip, one.prefix) for one in node.lan or ()]
        known += [(one.ip, one.prefix) for interface in node.interfaces or () for one in interface.ipv4]
        for ip, prefix in known:
            length = _UNKNOWN_PREFIX if prefix is None else prefix
            found.add(IPv4Interface(f"{ip}/{length}").network)
    return found


def _wrong_index_ends(wiring: Wiring) -> Iterator[End]:
    """Ports whose IPv4 GID is not at the index that JACCL sends with."""
    for cable in wiring.cables:
        for end in (cable.a, cable.b):
            device = wiring.nodes[end.node].device(wiring.port(end).rdma_device)
            if device is not None and device.ipv4_gid is not None and not device.gid_ready:
                yield end


def _wrong_index(wiring: Wiring, end: End) -> str:
    return (
        f"{wiring.place(end)}: the IPv4 GID is not at index 1, which no command can change. Set the port's "
        "IPv6 to link-local only (System Settings → Network), or restart that Mac."
    )


def _collision_notes(steps: Sequence[NetworkStep], taken: set[IPv4Network]) -> Iterator[str]:
    new = _assigned(steps)
    if any(not any(ip in network for network in (*taken, _LINK_LOCAL)) for ip in new):
        lans = (
            str(network) for network in sorted(taken) if not network.is_loopback and network != _LINK_LOCAL
        )
        yield (
            f"The new networks overlap none of the Macs' networks ({', '.join(lans) or 'none known'}). "
            "Networks behind a router or a VPN are not tested."
        )
    if any(ip in _LINK_LOCAL for ip in new):
        yield "Addresses in 169.254.x.x are link-local, like those of the other ends: they overlap no LAN."
