"""A simulated cluster as plain data: Macs, their ports, and the cables between them; pure.

Nodes are counted from 0 here, ports by the number on their receptacle. What the Macs' commands print of all
this is in `tools.py`; the ways to break it are in `faults.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface
from itertools import combinations
from typing import Literal

from jaccl_kernel.errors import InputError

MOST_MACS = 8
PORTS_OF_A_STUDIO = 6
"""Thunderbolt 5 ports of a Mac Studio with M3 Ultra: a mesh of seven is the largest that any Mac allows."""

# Real Macs do not number interfaces as ports: Thunderbolt 2 was en6 and Thunderbolt 3 en2 on one.
_INTERFACES = (("en3", "en4", "en5", "en6", "en2", "en7"), ("en3", "en6", "en2", "en5", "en4", "en7"))


@dataclass(frozen=True)
class MacSpec:
    """One simulated Mac. `interfaces` maps a port's number to its network interface.

    Attributes:
        bridged, no_ipv4, late_gid: ports in the Thunderbolt bridge, without an IPv4 address, or with their
            IPv4 GID at index 2.
        bridge: "up", "down", or "none" when there is no bridge0; it is up as soon as it has members.
        ipv4: addresses that somebody gave to a port, by its number; the others have what macOS gave them.
        down: ports whose interface is switched off.
        routes: the interface of each host or network that somebody routed.
        devices: what else is plugged in, by port.
        hangs: names of commands that never end.
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
    jaccl_kernel: str = "0.1.0"
    reachable: Literal["yes", "ssh-fails", "asleep"] = "yes"
    partial_model: bool = False

    @property
    def has_rdma(self) -> bool:
        """Whether RDMA devices are there: on a Thunderbolt 4 Mac none is, whatever `rdma_ctl` says."""
        return self.rdma and self.thunderbolt == 5

    @property
    def bridge_state(self) -> Literal["up", "down", "none"]:
        """What bridge0 is doing."""
        return "up" if self.bridged and self.bridge == "none" else self.bridge

    def port_of(self, interface: str) -> int | None:
        """The number of the Thunderbolt port that an interface belongs to."""
        return next((number for number, name in self.interfaces.items() if name == interface), None)


@dataclass(frozen=True)
class CableSpec:
    """A cable between two (node, port number) ends; `unseen_by` is a node that does not list it."""

    a: tuple[int, int]
    b: tuple[int, int]
    gbps: int = 80
    unseen_by: int | None = None

    @property
    def nodes(self) -> tuple[int, int]:
        """The two nodes, smaller first."""
        return min(self.a[0], self.b[0]), max(self.a[0], self.b[0])

    def far_end(self, end: tuple[int, int]) -> tuple[int, int]:
        """The other end."""
        return self.b if end == self.a else self.a


@dataclass(frozen=True)
class ClusterSpec:
    """A simulated cluster. `coordinator` is the address that its hostfile names for rank 0."""

    macs: tuple[MacSpec, ...]
    cables: tuple[CableSpec, ...]
    coordinator: str

    @classmethod
    def healthy(cls, n: int = 4, names: Sequence[str] = ()) -> "ClusterSpec":
        """n Mac Studios that are ready: a full mesh up to seven; eight, which lack the ports, as a ring.

        Args:
            n: how many.
            names: what they are called; `macstudio1` and so on by default.

        Raises:
            InputError: n is not 1 to 8.
        """
        if not 1 <= n <= MOST_MACS:
            raise InputError(f"a rehearsal of {n} Macs", fix=f"Choose 1 to {MOST_MACS}.")
        names = names or [f"macstudio{i + 1}" for i in range(n)]
        macs = tuple(_studio(i, name) for i, name in zip(range(n), names, strict=True))
        spec = cls(macs, (), coordinator=macs[0].lan_ip)
        mesh = n - 1 <= PORTS_OF_A_STUDIO
        for pair in combinations(range(n), 2) if mesh else [(i, (i + 1) % n) for i in range(n)]:
            spec = spec.with_cable(*pair)
        return spec

    def with_cable(self, a: int, b: int) -> "ClusterSpec":
        """One more cable between two nodes, in their first free ports.

        Raises:
            InputError: a node has no free port left.
        """
        first = self.free_port(a)
        second = self.free_port(b, taken=first if a == b else None)
        return replace(self, cables=(*self.cables, CableSpec((a, first), (b, second))))

    def without(self, *cables: CableSpec) -> "ClusterSpec":
        """The cluster with these cables pulled out."""
        return replace(self, cables=tuple(cable for cable in self.cables if cable not in cables))

    def with_mac(self, node: int, **changes: object) -> "ClusterSpec":
        """The cluster with some attributes of one Mac changed."""
        changed = replace(self.macs[node], **changes)  # type: ignore[arg-type]  # replace checks the names
        return replace(self, macs=(*self.macs[:node], changed, *self.macs[node + 1 :]))

    def between(self, a: int, b: int) -> list[CableSpec]:
        """The cables that join two nodes."""
        return [cable for cable in self.cables if cable.nodes == (min(a, b), max(a, b))]

    def cables_of(self, node: int) -> dict[int, CableSpec]:
        """What is in a node's ports, by their numbers."""
        return {number: cable for cable, number in self._ends(node)}

    def ipv4(self, node: int, number: int) -> tuple[IPv4Interface, ...]:
        """The IPv4 addresses of a port: those that somebody gave it, else macOS's own to a cabled port."""
        mac = self.macs[node]
        if number in mac.ipv4:
            return mac.ipv4[number]
        if number in mac.no_ipv4 | mac.bridged or number not in self.cables_of(node):
            return ()
        return (IPv4Interface(f"169.254.{node + 1}.{number}/16"),)

    def free_port(self, node: int, taken: int | None = None) -> int:
        """The number of a node's first free port, `taken` left out.

        Raises:
            InputError: it has none.
        """
        mac = self.macs[node]
        used = {*self.cables_of(node), *mac.devices, taken}
        number = next((number for number in sorted(mac.interfaces) if number not in used), None)
        if number is None:
            fix = "Take out another cable first, or choose fewer Macs."
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
