"""The socket that rank 0 answers on."""

import socket

import pytest

from jaccl_kernel.api.http import Http
from jaccl_kernel.core.errors import Busy


def test_answers_leave_at_once() -> None:
    # asyncio turns off Nagle's algorithm (40 ms an answer) only on sockets that name their protocol
    http = Http("127.0.0.1", 0)
    assert http._socket.proto == socket.IPPROTO_TCP
    http.stop()


def test_a_port_in_use_is_reported() -> None:
    first = Http("127.0.0.1", 0)
    with pytest.raises(Busy, match="cannot serve on"):
        Http("127.0.0.1", int(first.url.rpartition(":")[2]))
    first.stop()
