"""IP routes between two nodes along the Thunderbolt cables that connect them. Pure.

A cable is a route if the ports at both ends have an IPv4 address in the same network: the port's own address,
or that of the Thunderbolt Bridge that it belongs to, which macOS configures by default.
"""

from collections.abc import Iterator
from ipaddress import IPv4Interface

from jaccl_kernel.nodes.transfer import Route
from jaccl_kernel.topology.facts import Address, NodeFacts
from jaccl_kernel.topology.wiring import Wiring

_LINK_LOCAL_PREFIX = 16  # of 169.254.0.0, macOS's default for an unconfigured port


def thunderbolt_routes(wiring: Wiring, source: int, target: int) -> tuple[Route, ...]:
    """The routes along cables that both ends see, the best cable first.

    Args:
        wiring: of all nodes.
        source, target: node indices.
    """
    found = []
    for cable in wiring.between((min(source, target), max(source, target))):
        if cable.seen != "both" or cable.is_loop:
            continue
        ends = (cable.end_at(source), cable.end_at(target))
        local, remote = (list(_addresses(wiring.nodes[end.node], wiring.port(end).interface)) for end in ends)
        found += [Route("thunderbolt", b.ip, a.ip) for a in local for b in remote if _same_network(a, b)]
    return tuple(found)


def _addresses(node: NodeFacts, interface: str | None) -> Iterator[Address]:
    """The port's own addresses, then those of its bridge."""
    if port := node.interface(interface):
        yield from port.ipv4
        if bridge := node.interface(port.bridge):
            yield from bridge.ipv4


def _same_network(one: Address, other: Address) -> bool:
    """Whether both addresses are in the same network; one without a known prefix must be link-local."""
    a, b = (IPv4Interface(f"{end.ip}/{end.prefix or _LINK_LOCAL_PREFIX}") for end in (one, other))
    return a.ip != b.ip and b.ip in a.network and a.ip in b.network
