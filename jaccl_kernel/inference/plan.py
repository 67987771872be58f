"""Plans: the changes that every rank applies before a step, and the executor that applies them.

Rank 0's engine creates the plans and sends them to the workers; every rank applies the same plan to its own
Executor, so that batch and prompt caches are identical on all ranks. Between plans the ranks step on: rank 0
announces a plan with the tokens of the step before the last one, so that no step waits for the control plane
while nothing changes. Knows integers only: no text, no requests.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from jaccl_kernel.inference.batch import Batch, CachedPrompt
from jaccl_kernel.inference.channel import Message
from jaccl_kernel.inference.control import Follower
from jaccl_kernel.inference.request import Token

STEP_WEIGHT = 0.1  # of the newest step in the running mean of step times


@dataclass(frozen=True)
class AddSequence:
    """A sequence that joins the batch."""

    sequence: int
    prompt: list[int]  # the tokens that are not in the cache
    max_tokens: int
    cache: tuple[int, int, int] | None = None  # (number, tokens used, tokens to trim)
    boundary: int = 0
    ignore_eos: bool = False


@dataclass
class Plan:
    """The changes before the next step, in this order: keep, remove, add, drop; then step if `step`."""

    remove: list[int] = field(default_factory=list)
    keep: list[tuple[int, int, bool]] = field(
        default_factory=list
    )  # (sequence, cache number, at its boundary)
    drop: list[int] = field(default_factory=list)
    add: list[AddSequence] = field(default_factory=list)
    step: bool = True

    def to_json(self) -> Message:
        """Return the plan as a message of the control plane."""
        return {
            "remove": self.remove,
            "keep": self.keep,
            "drop": self.drop,
            "add": [
                [one.sequence, one.prompt, one.max_tokens, one.cache, one.boundary, one.ignore_eos]
                for one in self.add
            ],
            "step": self.step,
        }

    @classmethod
    def from_json(cls, message: Message) -> "Plan":
        """Return the plan of a message."""
        return cls(
            message["remove"],
            [(sequence, number, boundary) for sequence, number, boundary in message["keep"]],
            message["drop"],
            [
                AddSequence(sequence, prompt, limit, tuple(cache) if cache else None, boundary, ignore_eos)
                for sequence, prompt, limit, cache, boundary, ignore_eos in message["add"]
            ],
            message["step"],
        )


class Executor:
    """One rank's part of the engine: its batch, its cached prompts, and a digest of all tokens.

    Args:
        batch: the running sequences.
        announced: called after each step; returns whether rank 0 announced a plan before the next one.
    """

    def __init__(self, batch: Batch, announced: Callable[[], bool] = lambda: True) -> None:
        self.batch = batch
        self.needs_plan = True  # before the next step; the same on every rank
        self._announced = announced
        self.cached: dict[int, CachedPrompt] = {}
        self.mark = (0, 0)  # the number of steps, and a digest of all their tokens
        self.step_ms = 0.0

    def apply(
        self, plan: Plan, known: Callable[[AddSequence], Sequence[int]] = lambda add: ()
    ) -> list[Token]:
        """Apply a plan; returns the tokens of its step. `known` gives the tokens in an addition's cache."""
        for sequence, number, boundary in plan.keep:
            self.cached[number] = (self.batch.at_boundary if boundary else self.batch.ended)[sequence]
        # release the caches that the plan does not keep
        self.batch.ended.clear()
        self.batch.at_boundary.clear()
        for sequence in plan.remove:
            self.batch.remove(sequence)
        for add in plan.add:
            cache = None
            if add.cache:
                number, _, trim = add.cache
                cache = self.cached[number].copied(trim)
            self.batch.add(
                add.sequence,
                add.prompt,
                add.max_tokens,
                known=known(add),
                cache=cache,
                boundary=add.boundary,
                ignore_eos=add.ignore_eos,
            )
        for number in plan.drop:  # after the additions, which may use it
            del self.cached[number]
        return self.step() if plan.step else []

    def step(self) -> list[Token]:
        """Step the batch as it is; only if it needs no plan."""
        began = time.perf_counter()
        tokens = self.batch.step()
        steps, digest = self.mark
        for one in tokens:
            digest = zlib.crc32(b"%d %d " % (one.sequence, one.id), digest)
        self.mark = (steps + 1, digest)
        announced = self._announced()
        self.needs_plan = announced or not len(self.batch)
        duration = (time.perf_counter() - began) * 1e3
        self.step_ms += STEP_WEIGHT * (duration - self.step_ms) if self.step_ms else duration
        return tokens

    def clear(self) -> None:
        """Release every sequence and cached prompt, and reset the digest; keeps the model."""
        self.apply(Plan(remove=self.batch.sequences(), step=False))
        self.cached.clear()
        self.batch.ended.clear()
        self.mark = (0, 0)
        self._announced()  # nothing announced before counts
        self._announced()
        self.needs_plan = True

    def status(self) -> Message:
        """Return the body of this rank's heartbeat."""
        return {
            "mark": self.mark,
            "step_ms": round(self.step_ms, 3),
            "memory_bytes": mx.get_active_memory(),
            "peak_memory_bytes": mx.get_peak_memory(),
        }


def run_worker(executor: Executor, control: Follower) -> Any:
    """Step with rank 0, and apply its plans, until its stop message. Returns the result in it, if any.

    An error on this rank is reported to rank 0, and raised.
    """
    while True:
        message = control.receive() if executor.needs_plan else None
        if message and "stop" in message:
            return message.get("result")
        try:
            if message:
                executor.apply(Plan.from_json(message))
            else:
                executor.step()
        except Exception as error:
            control.send({"error": f"{type(error).__name__}: {error}"})
            raise
