"""Chooses free ports for jobs whose ranks all run on this machine, by binding, never by connecting.

A stray connection to the coordinator's port crashes rank 0 (JACCL accepts any peer as a rank), so this module
never probes a port on another machine.

Nor does it choose a port that the system may give to an outgoing connection. Such a connection could take the
port before the rank does; and a rank that tries to connect before its peer listens could connect to itself
(on Linux about one try in 20,000 does), after which the join never ends.
"""

import random
import socket
from collections.abc import Collection
from contextlib import ExitStack

from jaccl_kernel.core.errors import Busy, InputError

LAUNCH_DEFAULT = 32323  # of mlx.launch
FIRST, LAST = 10_000, 31_000  # below the ephemeral ports of Linux (from 32768) and macOS (from 49152)
TRIES = 1000
ADDRESS = "127.0.0.1"


def are_free(first: int, count: int) -> bool:
    """Whether `count` consecutive TCP ports from `first` can be bound on loopback now."""
    with ExitStack() as stack:
        for port in range(first, first + count):
            probe = stack.enter_context(socket.socket())
            # as MLX's own sockets do: a port in TIME_WAIT counts as free, one with a listener does not
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                return False
    return True


def choose(count: int, requested: int | None = None, reserved: Collection[int] = ()) -> int:
    """The first of `count` free consecutive ports: `requested`, or an automatic choice.

    Args:
        count: number of ports.
        requested: the first port, if the user chose one.
        reserved: ports that must not be used although they are free.

    Raises:
        Busy: `requested` is in use, or no range is free.
        InputError: the requested range contains one of `reserved`.
    """
    if requested is not None:
        check_not_reserved(requested, count, reserved)
        if not 0 < requested <= 65535 - count + 1 or not are_free(requested, count):
            raise Busy(
                f"port {requested} or one of the {count - 1} ports after it is in use or not allowed",
                where=ADDRESS,
                fix="Choose another port with --port, or omit --port for an automatic choice.",
            )
        return requested
    for _ in range(TRIES):
        first = random.randrange(FIRST, LAST - count)  # so that two jobs that start together do not collide
        if not _shared(first, count, reserved) and are_free(first, count):
            return first
    raise Busy(f"no {count} consecutive free ports between {FIRST} and {LAST}", where=ADDRESS)


def check_not_reserved(first: int, count: int, reserved: Collection[int]) -> None:
    """Refuse a port range of the ranks that contains a port of the program itself.

    Raises:
        InputError: one of `reserved` is among the `count` ports from `first`.
    """
    if shared := _shared(first, count, reserved):
        raise InputError(
            f"port {min(shared)} is reserved for the ranks (they use {first} to {first + count - 1})",
            fix="Choose another port.",
        )


def _shared(first: int, count: int, reserved: Collection[int]) -> set[int]:
    return set(range(first, first + count)) & set(reserved)
