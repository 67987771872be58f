"""Chooses the coordinator address (rank 0's) and checks whether an address still belongs to rank 0. Pure.

Prefers Ethernet to Wi-Fi, and never uses a Thunderbolt port or 169.254.x.x, which are specific to one cable.
`steps/verify/reachability.py` tests whether the other Macs reach the address.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface
from typing import Literal

from jaccl_kernel.topology.facts import LanAddress, NodeFacts

_ORDER = {"ethernet": 0, "wifi": 1, "other": 2}
_KIND_NAMES = {"ethernet": "Ethernet", "wifi": "Wi-Fi", "other": "another interface"}


@dataclass(frozen=True)
class Coordinator:
    """The address chosen for rank 0, its interface and kind; `note` is a caveat, or ""."""

    address: str
    interface: str
    kind: Literal["ethernet", "wifi", "other"]
    note: str = ""

    @property
    def reason(self) -> str:
        """The choice for messages: `10.0.0.11 (en0, Ethernet)`."""
        return f"{self.address} ({self.interface}, {_KIND_NAMES[self.kind]})"


def choose(facts: Sequence[NodeFacts]) -> Coordinator | None:
    """Choose the address on which the first of these Macs should listen; None if its addresses are unknown.

    An address in a network that all other Macs share is preferred; then Ethernet is preferred to Wi-Fi.
    """
    candidates = [one for one in facts[0].lan or () if not _is_link_local(one.ip)]
    if not candidates:
        return None
    best = min(candidates, key=lambda one: (not _shared(one, facts[1:]), _ORDER[one.kind]))
    return Coordinator(best.ip, best.interface, best.kind, _note(best, facts))


def stale(address: str, facts: Sequence[NodeFacts], labels: Sequence[str]) -> str | None:
    """Why an address does not belong to the first Mac; "" if it does, None if its addresses are unknown.

    Args:
        address: the hostfile's address of rank 0.
        facts: of all Macs, in rank order.
        labels: their names.
    """
    own = addresses(facts[0])
    if own is None:
        return None
    if address in own:
        return ""
    has = f"its addresses are {', '.join(own)}" if own else "it has no LAN address"
    for other, label in zip(facts[1:], labels[1:], strict=True):
        if address in (addresses(other) or ()):
            return f"{address} belongs to {label}, not to {labels[0]}: {has}"
    return f"{address} does not belong to {labels[0]}: {has}"


def addresses(facts: NodeFacts) -> tuple[str, ...] | None:
    """All IPv4 addresses of a Mac except loopback, LAN addresses first; None if unknown."""
    if facts.lan is None and facts.interfaces is None:
        return None
    found = [one.ip for one in facts.lan or ()]
    found += [address.ip for interface in facts.interfaces or () for address in interface.ipv4]
    return tuple(dict.fromkeys(ip for ip in found if not IPv4Address(ip).is_loopback))


def thunderbolt(address: str, facts: NodeFacts) -> str | None:
    """The name of the Thunderbolt port that has this address; None if none has it."""
    numbers = {port.interface: port.number for port in facts.ports or () if port.interface}
    for interface in facts.interfaces or ():
        if all(one.ip != address for one in interface.ipv4):
            continue
        if interface.name in numbers:
            return f"Thunderbolt port {numbers[interface.name] or '?'} ({interface.name})"
        if set(interface.members) & set(numbers):
            return f"the Thunderbolt bridge ({interface.name})"
    return None


def _is_link_local(ip: str) -> bool:
    try:
        return IPv4Address(ip).is_link_local
    except AddressValueError:
        return True  # not an IPv4 address: not usable


def _shared(address: LanAddress, others: Sequence[NodeFacts]) -> bool:
    """Whether every other Mac with known addresses has one in the same network."""
    if address.prefix is None:
        return True
    network = IPv4Interface(f"{address.ip}/{address.prefix}").network
    return all(
        any(IPv4Address(one.ip) in network for one in other.lan) for other in others if other.lan is not None
    )


def _note(chosen: LanAddress, facts: Sequence[NodeFacts]) -> str:
    if not _shared(chosen, facts[1:]):
        network = f"{chosen.ip}/{chosen.prefix}"
        return f"not all other Macs have an address in {network}: a router must connect them"
    if chosen.kind == "wifi":
        return f"{facts[0].name} has no usable Ethernet address, and Wi-Fi is less reliable"
    return (
        ""
        if chosen.kind == "ethernet"
        else f"{chosen.interface} is neither Ethernet nor Wi-Fi, so the address may change"
    )
