"""A simulated cluster as plain data: Macs, their ports, and the cables between them. Pure.

Nodes are numbered from 0 here, ports by the number of their receptacle. `tools.py` has the output of the
Macs' commands, `faults.py` the faults.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from itertools import combinations
from typing import Literal

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import InputError

MAX_MACS = 8
RDMA_PORTS_OF_A_STUDIO = 5
"""Ports of a Mac Studio with M3 Ultra that carry RDMA, which allow a mesh of at most six Macs.

It has six Thunderbolt 5 ports, but the one beside Ethernet (en2) carries no RDMA, according to exo's README.
"""

# Real Macs number interfaces and ports differently: on one Mac, Thunderbolt 2 is en6 and Thunderbolt 3 en2.
_INTERFACES = (("en3", "en4", "en5", "en6", "en2", "en7"), ("en3", "en6", "en7", "en5", "en4", "en2"))


@dataclass(frozen=True)
class MacSpec:
    """One simulated Mac. `interfaces` maps a port's number to its network interface.

    Attributes:
        bridged, no_ipv4, late_gid: ports in the Thunderbolt bridge, without an IPv4 address, or with their
            IPv4 GID at index 2.
        bridge: "up", "down", or "none" without a bridge0; it is up as soon as it has members.
        ipv4: manually assigned addresses by port number; other ports have macOS's default.
        down: ports whose interface is down.
        routes: manual routes: the interface for each host or network.
        devices: other connected devices by port number.
        hangs: names of commands that hang.
        reachable: "yes", "ssh-fails", or "asleep".
        partial_model: whether its copy of the model lacks a file.
    """

    name: str
    lan_ip: str
    interfaces: dict[int, str]
    wifi_ip: str | None = None
    model: str = "Mac15,14"
    product: str = "Mac Studio"
    chip: str = "Apple M3 Ultra"
    memory_gb: int = 512
    macos: str = "26.5.1"
    build: str = "25F80"
    thunderbolt: Literal[4, 5] = 5
    rdma: bool = True
    bridged: frozenset[int] = frozenset()
    no_ipv4: frozenset[int] = frozenset()
    late_gid: frozenset[int] = frozenset()
    bridge: Literal["up", "down", "none"] = "none"
    ipv4: Mapping[int, tuple[IPv4Interface, ...]] = field(default_factory=dict)
    down: frozenset[int] = frozenset()
    routes: Mapping[str, str] = field(default_factory=dict)
    wired_limit_mb: int = 0
    devices: dict[int, str] = field(default_factory=dict)
    hangs: frozenset[str] = frozenset()
    python: str = "3.12.11"
    mlx: str = "0.32.4"
    mlx_lm: str = "0.32.2"
    transformers: str = "5.1.0"
    jaccl_kernel: str = __version__
    reachable: Literal["yes", "ssh-fails", "asleep"] = "yes"
    partial_model: bool = False

    @property
    def has_rdma(self) -> bool:
        """Whether the Mac has RDMA devices; never on a Thunderbolt 4 Mac, whatever `rdma_ctl` says."""
        return self.rdma and self.thunderbolt == 5

    @property
    def bridge_state(self) -> Literal["up", "down", "none"]:
        """The state of bridge0."""
        return "up" if self.bridged and self.bridge == "none" else self.bridge

    @property
    def port_beside_ethernet(self) -> int | None:
        """The number of a Mac Studio's port beside Ethernet, which carries no RDMA."""
        return self.port_of("en2") if self.product == "Mac Studio" else None

    def port_of(self, interface: str) -> int | None:
        """The number of the Thunderbolt port of an interface."""
        return next((number for number, name in self.interfaces.items() if name == interface), None)


@dataclass(frozen=True)
class CableSpec:
    """A cable between two (node, port number) ends.

    `unseen_by` is a node that does not list it, `hub` the name of a hub in between, listed at end `a`.
    """

    a: tuple[int, int]
    b: tuple[int, int]
    gbps: int = 80
    unseen_by: int | None = None
    hub: str | None = None

    @property
    def nodes(self) -> tuple[int, int]:
        """The two nodes, smaller first."""
        return min(self.a[0], self.b[0]), max(self.a[0], self.b[0])

    def other_end(self, end: tuple[int, int]) -> tuple[int, int]:
        """The other end."""
        return self.b if end == self.a else self.a


@dataclass(frozen=True)
class ClusterSpec:
    """A simulated cluster. `coordinator` is rank 0's address in its hostfile."""

    macs: tuple[MacSpec, ...]
    cables: tuple[CableSpec, ...]
    coordinator: str

    @classmethod
    def healthy(cls, n: int = 4, names: Sequence[str] = ()) -> "ClusterSpec":
        """A healthy cluster of n Mac Studios: a full mesh up to six, a larger ring (too few ports).

        Args:
            n: number of Macs.
            names: their names; `macstudio1` and so on by default.

        Raises:
            InputError: n is not 1 to 8.
        """
        if not 1 <= n <= MAX_MACS:
            raise InputError(
                f"a rehearsal needs 1 to {MAX_MACS} Macs (got {n})", fix="Choose another number."
            )
        names = names or [f"macstudio{i + 1}" for i in range(n)]
        macs = tuple(_studio(i, name) for i, name in zip(range(n), names, strict=True))
        spec = cls(macs, (), coordinator=macs[0].lan_ip)
        mesh = n - 1 <= RDMA_PORTS_OF_A_STUDIO
        for pair in combinations(range(n), 2) if mesh else [(i, (i + 1) % n) for i in range(n)]:
            spec = spec.with_cable(*pair)
        return spec

    def with_cable(self, a: int, b: int) -> "ClusterSpec":
        """Add a cable between two nodes, in their first free ports.

        Raises:
            InputError: a node has no free port.
        """
        first = self.free_port(a)
        second = self.free_port(b, taken=first if a == b else None)
        return replace(self, cables=(*self.cables, CableSpec((a, first), (b, second))))

    def without(self, *cables: CableSpec) -> "ClusterSpec":
        """Remove these cables."""
        return replace(self, cables=tuple(cable for cable in self.cables if cable not in cables))

    def with_mac(self, node: int, **changes: object) -> "ClusterSpec":
        """Change some attributes of one Mac."""
        changed = replace(self.macs[node], **changes)  # type: ignore[arg-type]  # replace checks the names
        return replace(self, macs=(*self.macs[:node], changed, *self.macs[node + 1 :]))

    def between(self, a: int, b: int) -> list[CableSpec]:
        """The cables that join two nodes."""
        return [cable for cable in self.cables if cable.nodes == (min(a, b), max(a, b))]

    def cables_of(self, node: int) -> dict[int, CableSpec]:
        """The cables in a node's ports, by port number."""
        return {number: cable for cable, number in self._ends(node)}

    def ipv4(self, node: int, number: int) -> tuple[IPv4Interface, ...]:
        """The IPv4 addresses of a port: manual ones, else macOS's default for a port with a cable."""
        mac = self.macs[node]
        if number in mac.ipv4:
            return mac.ipv4[number]
        if number in mac.no_ipv4 | mac.bridged or number not in self.cables_of(node):
            return ()
        return (IPv4Interface(f"169.254.{node + 1}.{number}/16"),)

    def free_port(self, node: int, taken: int | None = None) -> int:
        """The number of a node's first free port, other than `taken`; the one beside Ethernet comes last.

        Raises:
            InputError: the node has no free port.
        """
        mac = self.macs[node]
        used = {*self.cables_of(node), *mac.devices, taken}
        ports = sorted(mac.interfaces, key=lambda number: (number == mac.port_beside_ethernet, number))
        number = next((number for number in ports if number not in used), None)
        if number is None:
            fix = "Remove another cable first, or choose fewer Macs."
            raise InputError(f"{mac.name} has no free Thunderbolt port", fix=fix)
        return number

    def _ends(self, node: int) -> Iterator[tuple[CableSpec, int]]:
        for cable in self.cables:
            for at, number in (cable.a, cable.b):
                if at == node:
                    yield cable, number


def _studio(index: int, name: str) -> MacSpec:
    interfaces = _INTERFACES[index % len(_INTERFACES)]
    return MacSpec(
        name=name,
        lan_ip=f"10.0.0.{11 + index}",
        wifi_ip=f"10.0.1.{11 + index}",
        interfaces={number + 1: interface for number, interface in enumerate(interfaces)},
    )
