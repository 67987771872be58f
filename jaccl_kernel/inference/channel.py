"""Frames over one connection: a length (4 bytes, big-endian) and that many bytes of JSON.

Every send and receive has a deadline, and a heartbeat never waits for a plan. Knows no ranks and no
secrets. No mlx.
"""

import contextlib
import json
import select
import socket
import struct
import threading
import time
from typing import Any

Message = dict[str, Any]

MAX_FRAME = 64 << 20  # bytes: a prompt of some millions of tokens
SEND_S = 10.0  # for one frame: a worker that does not accept it in this time counts as dead


class Channel:
    """One connection that sends and receives frames, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._pending = bytearray()

    def send(self, message: Message, within: float | None = None) -> None:
        """Send one frame, from any thread, in at most `within` seconds (SEND_S).

        Raises:
            OSError: the peer has closed the connection, or does not accept the frame.
        """
        with self._lock:
            self._send(message, SEND_S if within is None else within)

    def send_if_free(self, message: Message) -> None:
        """Send one small frame, or nothing if that would block.

        Raises:
            OSError: see `send`.
        """
        if not self._lock.acquire(blocking=False):
            return  # another frame is in progress, which proves that this end is alive
        try:
            if self._writable(0):
                self._send(message, SEND_S)
        finally:
            self._lock.release()

    def _send(self, message: Message, within: float) -> None:
        body = json.dumps(message, separators=(",", ":")).encode("ascii")
        remaining = memoryview(struct.pack(">I", len(body)) + body)
        end = time.monotonic() + within
        while remaining:
            if not self._writable(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"the peer did not accept a message within {within:.0f} s")
            with contextlib.suppress(BlockingIOError):
                remaining = remaining[self._socket.send(remaining, socket.MSG_DONTWAIT) :]

    def _writable(self, within: float) -> bool:
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
        except ValueError as error:  # closed by another thread
            raise ConnectionError("the connection was closed") from error
        return bool(poll.poll(within * 1e3))

    def receive(self, limit: int = MAX_FRAME, end: float | None = None) -> Message:
        """Return the next frame. After a timeout in the middle of a frame the next call continues it.

        Args:
            limit: the maximum length in bytes.
            end: the deadline of the whole frame, by time.monotonic; None for the deadline of a receive alone.

        Raises:
            BlockingIOError: no data within the deadline.
            OSError: the connection ended, or the frame is invalid.
        """
        while (body := self._take(limit)) is None:
            if end is not None:
                if (remaining := end - time.monotonic()) <= 0:
                    raise TimeoutError("a frame was not complete in time")
                self.deadline(remaining)
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the connection was closed")
            self._pending += data
        try:
            message = json.loads(body)
        except ValueError as error:
            raise ConnectionError("received a frame that is not JSON") from error
        if not isinstance(message, dict):
            raise ConnectionError("received a frame that is not a JSON object")
        return message

    def _take(self, limit: int) -> bytes | None:
        """Return the body of a complete frame, or None."""
        if len(self._pending) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._pending)
        if length > limit:
            raise ConnectionError(f"received a frame of {length} bytes")
        if len(self._pending) < 4 + length:
            return None
        body = bytes(self._pending[4 : 4 + length])
        del self._pending[: 4 + length]
        return body

    def deadline(self, receive: float | None) -> None:
        """Set how many seconds a receive may wait; None: without limit."""
        microseconds = 0 if receive is None else max(1, int(receive * 1e6))
        value = struct.pack("ll", *divmod(microseconds, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)

    def close(self) -> None:
        """Close the connection and wake a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
