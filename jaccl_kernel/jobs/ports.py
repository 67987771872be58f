"""Ports for jobs whose ranks all run on this machine, found by binding them, never by connecting.

A stray connection to a coordinator's port ends rank 0 (JACCL takes any peer for a rank), so a port on
another machine is never probed.
"""

import os
import socket
from collections.abc import Collection
from contextlib import ExitStack

from jaccl_kernel.errors import Busy, InputError

FIRST, LAST = 32323, 48000  # from mlx.launch's default up, below the usual ephemeral range of macOS
STRIDE = 16  # between two places to begin at: more than any job needs
ADDRESS = "127.0.0.1"


def are_free(first: int, count: int) -> bool:
    """Whether `count` consecutive TCP ports from `first` can be bound on loopback now."""
    with ExitStack() as stack:
        for port in range(first, first + count):
            probe = stack.enter_context(socket.socket())
            # as MLX's own sockets do; a port in TIME_WAIT is free, one that someone listens on is not
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                return False
    return True


def choose(count: int, wanted: int | None = None, besides: Collection[int] = ()) -> int:
    """The first of `count` free consecutive ports: `wanted`, or some that serve.

    Args:
        count: how many.
        wanted: the first of them, where that was asked for.
        besides: ports that are free but spoken for.

    Raises:
        Busy: `wanted` is taken, or none is free.
        InputError: `wanted` would take one of `besides`.
    """
    if wanted is not None:
        refuse_shared(wanted, count, besides)
        if not 0 < wanted <= 65535 - count + 1 or not are_free(wanted, count):
            raise Busy(
                f"port {wanted} (or one of the {count - 1} after it) is in use or not allowed",
                where=ADDRESS,
                fix="Choose another with --port, or leave it out to have one chosen.",
            )
        return wanted
    # each process begins at a place of its own: two that choose at the same time would take the same ports
    places = range(FIRST, LAST, max(count, STRIDE))
    begin = os.getpid() % len(places)
    for at in range(len(places)):
        first = places[(begin + at) % len(places)]
        if not _shared(first, count, besides) and are_free(first, count):
            return first
    raise Busy(f"no {count} free ports in a row between {FIRST} and {LAST}", where=ADDRESS)


def refuse_shared(first: int, count: int, besides: Collection[int]) -> None:
    """Refuse a program's own ports where the ranks would meet at them.

    Raises:
        InputError: one of `besides` is among the `count` ports from `first`.
    """
    if shared := _shared(first, count, besides):
        raise InputError(
            f"port {min(shared)} is where the ranks meet (they use {first} to {first + count - 1})",
            fix="Choose another port.",
        )


def _shared(first: int, count: int, besides: Collection[int]) -> set[int]:
    return set(range(first, first + count)) & set(besides)
