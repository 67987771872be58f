"""Rank 0's address, at which all ranks meet: which one to take, and whether one still holds; pure.

Ethernet before Wi-Fi, never a Thunderbolt port and never 169.254.x.x: those belong to one cable. Whether the
other Macs really reach it is for a live test to say (`steps/meeting.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface
from typing import Literal

from jaccl_kernel.cluster.facts import LanAddress, NodeFacts

_ORDER = {"ethernet": 0, "wifi": 1, "other": 2}
_CALLED = {"ethernet": "Ethernet", "wifi": "Wi-Fi", "other": "another interface"}


@dataclass(frozen=True)
class Coordinator:
    """The address chosen for rank 0: on which interface, and why; `note` is what speaks against it, or ""."""

    address: str
    interface: str
    kind: Literal["ethernet", "wifi", "other"]
    note: str = ""

    @property
    def reason(self) -> str:
        """The choice in a few words: `10.0.0.11 (en0, Ethernet)`."""
        return f"{self.address} ({self.interface}, {_CALLED[self.kind]})"


def choose(facts: Sequence[NodeFacts]) -> Coordinator | None:
    """The address at which the first of these Macs should listen; None when none of its is known.

    Ethernet first, then Wi-Fi; but an address whose network all the others are in goes before one that some
    are not in.
    """
    candidates = [one for one in facts[0].lan or () if not _is_link_local(one.ip)]
    if not candidates:
        return None
    best = min(candidates, key=lambda one: (not _shared(one, facts[1:]), _ORDER[one.kind]))
    return Coordinator(best.ip, best.interface, best.kind, _note(best, facts))


def stale(address: str, facts: Sequence[NodeFacts], labels: Sequence[str]) -> str | None:
    """Why an address is not, or no longer, one of the first Mac's; "" if it is, None if nobody can tell.

    Args:
        address: what a hostfile names for rank 0.
        facts: of all Macs, in rank order.
        labels: their names.
    """
    own = addresses(facts[0])
    if own is None:
        return None
    if address in own:
        return ""
    has = f"it has {', '.join(own)}" if own else "it has no LAN address at all"
    for other, label in zip(facts[1:], labels[1:], strict=True):
        if address in (addresses(other) or ()):
            return f"{address} is an address of {label}, not of {labels[0]}: {has}"
    return f"{address} is not an address of {labels[0]} (any more): {has}"


def addresses(facts: NodeFacts) -> tuple[str, ...] | None:
    """All IPv4 addresses of a Mac but loopback, those of its LAN first; None if it did not tell."""
    if facts.lan is None and facts.interfaces is None:
        return None
    found = [one.ip for one in facts.lan or ()]
    found += [address.ip for interface in facts.interfaces or () for address in interface.ipv4]
    return tuple(dict.fromkeys(ip for ip in found if not IPv4Address(ip).is_loopback))


def thunderbolt(address: str, facts: NodeFacts) -> str | None:
    """The Thunderbolt port that an address of this Mac is on, in words; None if it is on none."""
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
        return True  # no address at all: not one to take


def _shared(address: LanAddress, others: Sequence[NodeFacts]) -> bool:
    """Whether every other Mac that told has an address in the same network."""
    if address.prefix is None:
        return True
    network = IPv4Interface(f"{address.ip}/{address.prefix}").network
    return all(
        any(IPv4Address(one.ip) in network for one in other.lan) for other in others if other.lan is not None
    )


def _note(chosen: LanAddress, facts: Sequence[NodeFacts]) -> str:
    if not _shared(chosen, facts[1:]):
        network = f"{chosen.ip}/{chosen.prefix}"
        return f"not all of the other Macs have an address in {network}: a router must join them"
    if chosen.kind == "wifi":
        return f"{facts[0].name} has no Ethernet address that serves, and Wi-Fi is less steady"
    return (
        ""
        if chosen.kind == "ethernet"
        else f"{chosen.interface} is neither Ethernet nor Wi-Fi: will it stay?"
    )
