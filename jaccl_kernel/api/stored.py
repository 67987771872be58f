"""Stored responses of `POST /v1/responses`, in memory and bounded."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 512  # responses
MOST_CHARACTERS = 64 << 20  # of all their items, approximately


@dataclass(frozen=True)
class StoredResponse:
    """A stored response.

    Args:
        body: the response that the client received.
        items: the conversation with its output, for the next turn.
        input_items: the conversation before its output.
        characters: its approximate size.
    """

    body: dict[str, Any]
    items: Sequence[dict[str, Any]]
    input_items: Sequence[dict[str, Any]]
    characters: int


class ResponseStore:
    """The latest responses; drops the least recently used. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._characters = 0

    def put(
        self,
        name: str,
        body: dict[str, Any],
        items: Sequence[dict[str, Any]],
        input_items: Sequence[dict[str, Any]],
    ) -> None:
        """Store a response."""
        size = sum(len(str(item)) for item in items)
        with self._lock:
            self._stored[name] = StoredResponse(body, tuple(items), tuple(input_items), size)
            self._characters += size
            while len(self._stored) > MOST or (self._characters > MOST_CHARACTERS and len(self._stored) > 1):
                _, dropped = self._stored.popitem(last=False)
                self._characters -= dropped.characters

    def get(self, name: str) -> StoredResponse | None:
        """Return the response with this id, or None."""
        with self._lock:
            if name in self._stored:
                self._stored.move_to_end(name)
            return self._stored.get(name)

    def delete(self, name: str) -> bool:
        """Delete a response. Returns whether it existed."""
        with self._lock:
            dropped = self._stored.pop(name, None)
            self._characters -= dropped.characters if dropped else 0
        return dropped is not None

    def item(self, name: str) -> Mapping[str, Any] | None:
        """Return the item with this id from any stored response, or None."""
        with self._lock:
            every = (item for stored in reversed(self._stored.values()) for item in stored.items)
            return next((item for item in every if item.get("id") == name), None)
