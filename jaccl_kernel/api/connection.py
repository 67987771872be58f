"""One client's TCP connection, with the limits that uvicorn lacks: headers, and clients that do not read.

A client that sends no complete request cannot hold a connection for long, nor keep others out: headers have a
deadline and a maximum size, a client that stops reading its answer is disconnected, and when the server has
no connection left, the oldest one without a complete request makes room. Knows no routes.
"""

import asyncio
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 15.0  # from the connection, or a request's first byte, until its headers are complete
READ_S = 60.0  # a client that reads nothing of a full send buffer for so long is disconnected
LINGER_S = 5.0  # after an answer that came before the end of the request's body
FRESH_S = 1.0  # a connection idle for less does not make room: its request may be on the way
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 128


class TooManyHeadersError(ValueError):
    """Rejects a request while its headers are parsed; uvicorn answers 400."""


class Connection(HttpToolsProtocol):
    """A connection.

    Attributes:
        state: "head" while it waits for a request's headers, "body" until the request is complete; "done".
    """

    transport: Any

    def connection_made(self, transport: Any) -> None:
        """Start the deadline for the first request, and make room if there are too many connections."""
        super().connection_made(transport)
        self._since = time.monotonic()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._begin()
        if self.limit_concurrency and (over := len(self.connections) + 1 - self.limit_concurrency) > 0:
            self._make_room(over)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        for name in tuple(self._timers):
            self._disarm(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of the headers."""
        if self.state == "head":
            self._head += len(data)
        super().data_received(data)
        if self.state == "head" and self._head > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Start the deadline of a further request on this connection."""
        if self.state != "head":
            self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Limit the number of headers; trailers are ignored."""
        if self.state != "head":
            return
        if len(self.headers) >= MAX_HEADERS:
            raise TooManyHeadersError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the deadline: from now on the route reads the body, with its own limits."""
        self.state = "body"
        self._disarm("head")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self.state = "done"
        self._disarm("linger")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait briefly for the rest of a request that was answered before its end."""
        self._since = time.monotonic()
        super().on_response_complete()
        if self.state == "body":
            self._arm("linger", LINGER_S)

    def pause_writing(self) -> None:
        """The client does not read: bound the wait."""
        self._arm("read", READ_S)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._disarm("read")
        super().resume_writing()

    def _begin(self) -> None:
        self.state = "head"
        self._head = 0
        self._arm("head", HEAD_S)

    def _arm(self, name: str, seconds: float) -> None:
        self._disarm(name)
        self._timers[name] = self.loop.call_later(seconds, self._abort)

    def _disarm(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _abort(self) -> None:
        self.connections.discard(self)  # at once: uvicorn counts these
        self.transport.abort()

    def _idle(self) -> bool:
        """Whether no complete request is in progress."""
        return self.cycle is None or self.state == "body" or bool(self.cycle.response_complete)

    def _make_room(self, number: int) -> None:
        """Close the oldest connections without a complete request, of the client that has the most of them.

        Connections that never had a request come first.
        """
        now = time.monotonic()
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        idle = [one for one in others if one._idle() and now - one._since >= FRESH_S]
        count = Counter(_address(one) for one in idle)
        idle.sort(key=lambda one: (-count[_address(one)], one.cycle is not None, one._since))
        for one in idle[:number]:
            one._abort()


def _address(connection: Connection) -> str:
    return connection.client[0] if connection.client else ""
