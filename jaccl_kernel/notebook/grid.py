"""The grid of a sweep: its axes, and its points in the order that needs the fewest starts and loads."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import BACKENDS, SHARDINGS
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import effective_backend

COLLECTIVE_SIZES = tuple(64 << (2 * step) for step in range(11))  # 64 B to 64 MB
LEAST_BYTES, MOST_BYTES = 64, 256 << 20  # of a collective; the same as in ranks/collectives.py


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    ranks: int
    sharding: str = "tensor"
    backend: str = "ring"
    prompt_tokens: int = 128
    batch: int = 1
    fast_synch: bool = False

    def label(self) -> str:
        """A short description."""
        parts = [f"{self.ranks} rank{'s' if self.ranks != 1 else ''}", self.sharding, self.backend]
        parts += [f"prompt {self.prompt_tokens}", *([f"batch {self.batch}"] if self.batch > 1 else [])]
        return ", ".join([*parts, *(["fast sync"] if self.fast_synch else [])])


@dataclass(frozen=True)
class Grid:
    """What to measure: every combination of the axes.

    Args:
        ranks: numbers of ranks.
        sharding: "tensor", "pipeline".
        backends: mlx.launch's ("jaccl" is the mesh, "jaccl-ring" the ring, "ring" TCP); None for the
            hostfile's own.
        prompt_tokens: lengths of generated prompts.
        batch: sequences at once; more than 1 measures their total throughput.
        fast_synch: MLX_METAL_FAST_SYNCH off and on (MLX warns that it can deadlock and wedge the GPU).
        max_tokens: tokens to generate.
        repeats: measured runs of a single sequence.
        collectives: sizes in bytes at which collectives are timed after each start; empty to skip.
        needle: prompt lengths of the test that asks for a hidden number.
        model: a folder or a hub id; None for the notebooks' choice.
    """

    ranks: Sequence[int] = (1, 2)
    sharding: Sequence[str] = ("tensor",)
    backends: Sequence[str | None] = (None,)
    prompt_tokens: Sequence[int] = (128,)
    batch: Sequence[int] = (1,)
    fast_synch: Sequence[bool] = (False,)
    max_tokens: int = 64
    repeats: int = 2
    collectives: Sequence[int] = COLLECTIVE_SIZES
    needle: Sequence[int] = ()
    model: str | None = None

    def settings(self, hostfile: Hostfile) -> list[Setting]:
        """The points, in the order of measurement.

        Raises:
            InputError: more ranks than hosts, an empty axis, or a number below 1.
        """
        axes = (self.ranks, self.sharding, self.backends, self.prompt_tokens, self.batch, self.fast_synch)
        if not all(axes):
            raise InputError("an axis of the grid is empty", fix="Give each axis at least one value.")
        if max(self.ranks) > len(hostfile):
            raise InputError(
                f"requested {max(self.ranks)} ranks, but the hostfile has {len(hostfile)} hosts",
                fix=f"Use 1 to {len(hostfile)}.",
            )
        self._check_names()
        numbers = (*self.ranks, *self.prompt_tokens, *self.batch, self.max_tokens, self.repeats)
        if min(numbers) < 1:
            raise InputError(f"every number of the grid must be at least 1 (got {min(numbers)})")
        points = {
            Setting(
                count,
                way if count > 1 else "tensor",
                effective_backend(hostfile, backend) if count > 1 else "none",
                length,
                batch,
                fast,
            )
            for fast, backend, count, way, length, batch in itertools.product(
                self.fast_synch, self.backends, self.ranks, self.sharding, self.prompt_tokens, self.batch
            )
        }
        return sorted(
            points,
            key=lambda one: (
                one.fast_synch,
                one.ranks,
                one.backend,
                one.sharding,
                one.prompt_tokens,
                one.batch,
            ),
        )

    def _check_names(self) -> None:
        for name, known, given in (
            ("sharding", SHARDINGS, self.sharding),
            ("backend", BACKENDS, [one for one in self.backends if one is not None]),
        ):
            if unknown := next((one for one in given if one not in known), None):
                raise InputError(f"unknown {name} {unknown!r}", fix=f"Use one of {', '.join(known)}.")
        for size in self.collectives:
            if not LEAST_BYTES <= size <= MOST_BYTES or size % 4:
                raise InputError(
                    f"collective size must be a multiple of 4 from {LEAST_BYTES} to {MOST_BYTES} (got {size})"
                )
