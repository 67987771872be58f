"""Picks events out of a run, for tests."""

from collections.abc import Iterable
from typing import TypeVar

from jaccl_kernel.core.events import Body, Event, Stage

B = TypeVar("B", bound=Body)


def bodies(events: Iterable[Event], kind: type[B], rank: int | None = None) -> list[B]:
    """The bodies of this class, of one rank or of all."""
    return [one.body for one in events if isinstance(one.body, kind) and rank in (None, one.rank)]


def is_stage(event: Event, name: str, rank: int | None = None) -> bool:
    """Whether a rank, or any, reports this stage."""
    return isinstance(event.body, Stage) and event.body.name == name and rank in (None, event.rank)
