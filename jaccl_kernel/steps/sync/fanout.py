"""Plans which machine sends a model to which node, so that it crosses each slow link once. Pure.

A machine outside of the cluster sends to one node; the nodes then send to each other, in rounds in which the
number of senders grows. `copies.py` carries the plan out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

OUTSIDE = None
"""The sender that is not a node of the cluster: this machine, behind the uplink."""

Sender = int | None
Link = Literal["local", "cable", "network", "uplink"]
"""Local: one machine, no network. Cable: Thunderbolt, which each pair of nodes has to itself. Network: one
interface of a node for all its peers. Uplink: from outside into the cluster."""

_ORDER: tuple[Link, ...] = ("local", "cable", "network", "uplink")


@dataclass(frozen=True)
class Send:
    """One copy: `source` sends to the node `target` over `link`."""

    source: Sender
    target: int
    link: Link


def plan(
    holders: Iterable[Sender], needed: Mapping[int, int], link: Callable[[Sender, int], Link]
) -> tuple[tuple[Send, ...], ...]:
    """Plan the rounds: in each, every sender has the model from the start of the round.

    In a round, a node sends over all its cables at once, and to one node over the network. The uplink is used
    once, and only if no node has the model: for the node that needs the fewest bytes, then for the one with
    the most cables.

    Args:
        holders: who has the complete model, the preferred first.
        needed: the bytes that each target still needs.
        link: the best link from a sender to a target.
    """
    have = list(dict.fromkeys(holders))
    waiting = sorted(needed)
    rounds = []
    while waiting:
        sends = _round(have, waiting, link) or [_entry(waiting, needed, link)]
        rounds.append(tuple(sends))
        arrived = {send.target for send in sends}
        have += [target for target in waiting if target in arrived]
        waiting = [target for target in waiting if target not in arrived]
    return tuple(rounds)


def _round(have: list[Sender], waiting: list[int], link: Callable[[Sender, int], Link]) -> list[Send]:
    """The sends of one round without the uplink; a cable is never left for the network."""
    sends: dict[int, Send] = {}
    load: dict[Sender, int] = dict.fromkeys(have, 0)
    for kind in _ORDER[:3]:
        for target in waiting:
            able = [
                source
                for source in have
                if target not in sends
                and link(source, target) == kind
                and (kind != "network" or not load[source])
            ]
            if able:
                source = min(able, key=lambda one: load[one])
                load[source] += 1
                sends[target] = Send(source, target, kind)
    return [sends[target] for target in waiting if target in sends]


def _entry(waiting: list[int], needed: Mapping[int, int], link: Callable[[Sender, int], Link]) -> Send:
    def rank(target: int) -> tuple[int, int]:
        cables = sum(link(target, other) == "cable" for other in waiting if other != target)
        return needed[target], -cables

    target = min(waiting, key=rank)
    return Send(OUTSIDE, target, link(OUTSIDE, target))
