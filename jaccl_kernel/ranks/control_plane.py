"""The control plane of this group: rank 0 listens, and the workers receive its address and a secret.

Rank 0 generates the secret and broadcasts it, with its address, over the group that was just proved: the
secret is in no command line and no environment. A single rank has no control plane.
"""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import RankError
from jaccl_kernel.inference import agreement
from jaccl_kernel.inference.channel import Message
from jaccl_kernel.inference.control import Follower, Leader
from jaccl_kernel.inference.engine import Engine
from jaccl_kernel.inference.loaded import LoadedModel
from jaccl_kernel.inference.plan import run_worker
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.host_channel import Link

CONNECT_S = 30.0
LOST_EXIT = 87  # exit status of a worker that lost rank 0
SECRET_BYTES = 32


@contextlib.contextmanager
def lead(group: Any, world: World, port: int = 0) -> Iterator[Leader | None]:
    """Rank 0: listen for the workers, which call `connect`, and stop them at the end; None for a single rank.

    Raises:
        Busy: the port is in use.
    """
    if group is None:
        yield None
        return
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        leader = Leader(_own_address(world), port, world.size, secret)
    except JobError:
        agreement.broadcast(group)  # so that no worker waits for an address
        raise
    try:
        address, bound = leader.address
        agreement.broadcast(group, secret + f"{address}:{bound}".encode("ascii"))
        yield leader
    finally:
        leader.close({"stop": True})


def connect(group: Any, world: World, status: Callable[[], Message], link: Link) -> Follower:
    """A worker: receive rank 0's address and the secret, and connect. If rank 0 is lost, this process exits.

    Args:
        group, world, link: the arguments of a rank program.
        status: returns the body of each heartbeat.

    Raises:
        JobError: rank 0 has no control port, or cannot be reached.
    """

    def lost(why: str) -> None:
        link.send(RankError("RankDied", why, stage=link.stage_name))
        sys.stderr.write(f"rank {world.rank}: {why}; exiting\n")
        link.leave(LOST_EXIT)

    received = agreement.broadcast(group)
    if not received:
        raise JobError("rank 0 could not open its control port", fix="See rank 0's error.")
    address, _, port = received[SECRET_BYTES:].decode("ascii").rpartition(":")
    return Follower(
        (address, int(port)),
        world.rank,
        received[:SECRET_BYTES],
        deadline=CONNECT_S,
        status=status,
        on_lost=lost,
    )


def with_engine(
    loaded: LoadedModel,
    engine: Engine | None,
    world: World,
    group: Any,
    link: Link,
    work: Callable[[Engine], Any],
) -> Any:
    """Use the engine on all ranks: rank 0 calls `work`, and the workers apply its plans until it returns.

    Args:
        loaded: the model.
        engine: rank 0's engine.
        world, group, link: the arguments of a rank program.
        work: called on rank 0; returns a JSON value.

    Returns the value that `work` returned, on every rank; None on a worker if it raised.
    """
    with mx.stream(generation_stream):
        try:
            if world.rank:
                with contextlib.closing(connect(group, world, loaded.executor.status, link)) as control:
                    return run_worker(loaded.executor, control)
            assert engine
            with lead(group, world) as leader:
                engine.attach(leader)
                if leader:
                    leader.gather(CONNECT_S)
                result = work(engine)
                if leader:
                    leader.close({"stop": True, "result": result})
                return result
        finally:
            mx.synchronize(generation_stream)


def _own_address(world: World) -> str:
    """An IPv4 address of rank 0 that the other ranks can reach: the one that they have just joined."""
    if world.backend == "jaccl":
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    first = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))[0]
    return str(first[0] if isinstance(first, list) else first).rpartition(":")[0]
