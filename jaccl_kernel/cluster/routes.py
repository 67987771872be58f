"""Ways from one node to another: along the Thunderbolt cable between them, over the LAN, through us. Pure.

A cable is a way when the ports at both its ends have an IPv4 address of one network: their own, or that of
the Thunderbolt Bridge that they belong to, as macOS sets them up by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Literal

from jaccl_kernel.cluster.facts import Address, NodeFacts
from jaccl_kernel.cluster.wiring import Wiring

Kind = Literal["same machine", "thunderbolt", "lan", "relay"]

_LINK_LOCAL_PREFIX = 16  # of 169.254.0.0, which macOS gives where nobody configured anything


@dataclass(frozen=True)
class Route:
    """One way; `address` is the target's on it, `bind` the source's own, both "" where names do."""

    kind: Kind
    address: str = ""
    bind: str = ""

    def __str__(self) -> str:
        words = {
            "same machine": "on the same machine",
            "thunderbolt": f"over Thunderbolt ({self.address})",
            "lan": "over the LAN",
            "relay": "relayed through this machine",
        }
        return words[self.kind]


def thunderbolt_routes(wiring: Wiring, source: int, target: int) -> tuple[Route, ...]:
    """The ways along cables that both ends see, the best cable first.

    Args:
        wiring: of all nodes.
        source, target: two of them, by index.
    """
    found = []
    for cable in wiring.between((min(source, target), max(source, target))):
        if cable.seen != "both" or cable.is_loop:
            continue
        ends = (cable.end_at(source), cable.end_at(target))
        here, there = (list(_addresses(wiring.nodes[end.node], wiring.port(end).interface)) for end in ends)
        found += [
            Route("thunderbolt", far.ip, near.ip) for near in here for far in there if _joined(near, far)
        ]
    return tuple(found)


def _addresses(node: NodeFacts, interface: str | None) -> Iterator[Address]:
    """The port's own addresses, then its bridge's."""
    if port := node.interface(interface):
        yield from port.ipv4
        if bridge := node.interface(port.bridge):
            yield from bridge.ipv4


def _joined(near: Address, far: Address) -> bool:
    """Whether both are in one network; an address without a known prefix could only be link-local."""
    a, b = (IPv4Interface(f"{one.ip}/{one.prefix or _LINK_LOCAL_PREFIX}") for one in (near, far))
    return a.ip != b.ip and b.ip in a.network and a.ip in b.network
