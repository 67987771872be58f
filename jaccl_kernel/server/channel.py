"""Whole frames over one connection: a length (4 bytes, big-endian) and so many bytes of JSON.

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
SEND_S = 10.0  # for a whole frame: a worker that does not take it in this time is as good as dead


class Channel:
    """One connection: whole frames in and out, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._pending = bytearray()

    def send(self, message: Message, within: float | None = None) -> None:
        """Send one frame, whole, from any thread, in at most `within` seconds (SEND_S).

        Raises:
            OSError: the other end is gone, or does not take it.
        """
        with self._lock:
            self._send(message, SEND_S if within is None else within)

    def send_if_free(self, message: Message) -> None:
        """Send one small frame if that does not have to wait: for another frame's end, or for room.

        Raises:
            OSError: as of `send`.
        """
        if not self._lock.acquire(blocking=False):
            return  # what is on its way is as good a sign of life
        try:
            if self._writable(0):
                self._send(message, SEND_S)
        finally:
            self._lock.release()

    def _send(self, message: Message, within: float) -> None:
        body = json.dumps(message, separators=(",", ":")).encode("ascii")
        left = memoryview(struct.pack(">I", len(body)) + body)
        end = time.monotonic() + within
        while left:
            if not self._writable(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"it did not take a message within {within:.0f} s")
            with contextlib.suppress(BlockingIOError):
                left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]

    def _writable(self, within: float) -> bool:
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
        except ValueError as error:  # closed meanwhile, by another thread
            raise ConnectionError("the connection was closed") from error
        return bool(poll.poll(within * 1e3))

    def receive(self, limit: int = MAX_FRAME, end: float | None = None) -> Message:
        """The next frame. A timeout in the middle of one loses nothing: the next call goes on there.

        Args:
            limit: of its bytes.
            end: until when all of it has to be here, by time.monotonic; or None for the deadline alone.

        Raises:
            BlockingIOError: nothing came within the deadline.
            OSError: the end of the connection, or nonsense.
        """
        while (body := self._take(limit)) is None:
            if end is not None:
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError("a frame came too slowly")
                self.deadline(left)
            piece = self._socket.recv(1 << 20)
            if not piece:
                raise ConnectionError("the connection was closed")
            self._pending += piece
        try:
            message = json.loads(body)
        except ValueError as error:
            raise ConnectionError("a frame that is not JSON") from error
        if not isinstance(message, dict):
            raise ConnectionError("a frame that is not an object")
        return message

    def _take(self, limit: int) -> bytes | None:
        """The body of the frame that is in, or None while it is not whole."""
        if len(self._pending) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._pending)
        if length > limit:
            raise ConnectionError(f"a frame of {length} bytes")
        if len(self._pending) < 4 + length:
            return None
        body = bytes(self._pending[4 : 4 + length])
        del self._pending[: 4 + length]
        return body

    def deadline(self, receive: float | None) -> None:
        """How many seconds a receive may wait; None: as long as it takes."""
        microseconds = 0 if receive is None else max(1, int(receive * 1e6))
        value = struct.pack("ll", *divmod(microseconds, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)

    def close(self) -> None:
        """Close it, waking whoever waits in `receive`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
