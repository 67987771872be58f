"""Joins the group and proves it.

`World.from_environment` reads the variables that mlx.launch set; `join` initializes MLX's group once,
strictly, under a deadline, and then checks its size, an all_sum and an all_gather of values that differ by
rank. A single rank has no group (a strict init of one rank is an error in MLX): its `group` is None.
"""

import faulthandler
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import JobError

# If set on a node, these override the variables that mlx.launch sets for the job (JACCL reads them first), so
# a wired rank removes them. MLX_JACCL_RING is on when it is set to any value.
OVERRIDES = ("JACCL_RANK", "JACCL_IBV_DEVICES", "JACCL_COORDINATOR", "JACCL_RING")

PROOF_LENGTH = 1024  # values per rank in the proof of a join: more than one cache line, less than a frame
MODULUS = 1021  # a prime: no two frames hold the same values, and float32 sums of 8 ranks are exact


@dataclass(frozen=True)
class World:
    """What the launcher set for this process: its rank, the number of ranks, and MLX's backend."""

    rank: int
    size: int
    backend: str  # "ring", "jaccl", or "none" for a single rank

    @classmethod
    def from_environment(cls) -> "World":
        """Read MLX_RANK, and the size from the device or host file that mlx.launch wrote.

        Raises:
            JobError: the file cannot be read.
        """
        rank = int(os.environ.get("MLX_RANK", "0"))
        for variable, backend in (("MLX_IBV_DEVICES", "jaccl"), ("MLX_HOSTFILE", "ring")):
            if not (name := os.environ.get(variable)):
                continue
            try:
                text = Path(name).read_text(encoding="utf-8").strip()
                size = len(json.loads(text)) if text else 1  # mlx.launch writes "" for one host on ring
            except (OSError, ValueError, TypeError) as error:
                raise JobError(
                    f"cannot read {variable} ({name}): {error}",
                    where=f"rank {rank}",
                    fix="Start the ranks with mlx.launch or `jaccl`, which write this file.",
                ) from error
            return cls(rank, size, backend if size > 1 else "none")
        return cls(0, 1, "none")

    @property
    def topology(self) -> str:
        """ "mesh" or "ring", whose ranks send to their neighbours only; "none" for a single rank."""
        if self.backend == "none":
            return "none"
        ring = self.backend == "ring" or "MLX_JACCL_RING" in os.environ
        return "ring" if ring else "mesh"

    def name(self) -> str:
        """ "rank 1 of 2 over ring"."""
        return f"rank {self.rank} of {self.size} over {self.backend}"


def drop_overrides(backend: str | None) -> None:
    """Remove inherited variables that would override the job's own; `backend` is mlx.launch's."""
    for variable in OVERRIDES:
        os.environ.pop(variable, None)
    if backend != "jaccl-ring":
        os.environ.pop("MLX_JACCL_RING", None)


def join(world: World, *, deadline: float, log: Any = None) -> Any:
    """Join the group and prove it; returns the mx.distributed.Group, or None for a single rank.

    `mx.distributed.init` holds the GIL until all ranks have joined, so no thread of this process can end it:
    a C-level timer does, which writes the stack to `log` (an open file; stderr by default) and exits.

    Raises:
        JobError: the group has another size or rank, or its sums are wrong.
    """
    if world.size == 1:
        return None
    import mlx.core as mx

    faulthandler.dump_traceback_later(deadline, exit=True, **({"file": log} if log else {}))
    try:
        group = mx.distributed.init(strict=True, backend=world.backend)
        prove(group, world)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return group


def prove(group: Any, world: World, length: int = PROOF_LENGTH) -> dict[str, float]:
    """Check the group's size and rank, one all_sum and one all_gather of rank-dependent values.

    Args:
        group: the mx.distributed.Group.
        world: what it should be.
        length: float32 values that each rank sums, and that the gathered array has.

    Returns the seconds of the first all_sum and of the all_gather.

    Raises:
        JobError: a size, rank or value is wrong; says which value was expected.
    """
    import mlx.core as mx

    if (group.size(), group.rank()) != (world.size, world.rank):
        raise JobError(
            f"joined as rank {group.rank()} of {group.size()}, not as {world.name()}",
            where=f"rank {world.rank}",
            fix="Check that all ranks were started by the same launch.",
        )
    began = time.perf_counter()
    values = (mx.arange(length) % MODULUS).astype(mx.float32)
    mine = values + world.rank
    mx.eval(values, mine)
    total = mx.distributed.all_sum(mine, group=group, stream=mx.cpu)
    mx.eval(total)
    summed = time.perf_counter()
    ranks = world.size
    expected = values * ranks + ranks * (ranks - 1) / 2
    _compare("all_sum", total, expected, world)
    part = max(1, length // ranks)
    gathered = mx.distributed.all_gather(mine[None, :part], group=group, stream=mx.cpu)
    mx.eval(gathered)
    done = time.perf_counter()
    rows = values[None, :part] + mx.arange(ranks, dtype=mx.float32)[:, None]
    _compare("all_gather", gathered, rows, world)
    return {"all_sum_s": summed - began, "all_gather_s": done - summed}


def _compare(what: str, got: Any, expected: Any, world: World) -> None:
    import mlx.core as mx

    if got.shape == expected.shape and mx.array_equal(got, expected).item():
        return
    wrong = "shape" if got.shape != expected.shape else "values"
    raise JobError(
        f"{what} over {world.size} ranks gave wrong {wrong}: {got.flatten()[:4].tolist()} … "
        f"instead of {expected.flatten()[:4].tolist()} …",
        where=f"rank {world.rank}",
        fix="Do not use this group: its results are wrong. jaccl-ring of mlx 0.32.2 has this defect "
        "(fixed in 0.32.3); otherwise compare the rdma matrix with the cabling.",
    )
