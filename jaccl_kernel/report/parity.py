"""The parity check: whether N ranks generate the same tokens as the reference. Pure.

Greedy tokens are compared first. Rounding can flip a near tie (N ranks add in another order), after which the
texts differ, so different tokens alone prove nothing. Then the reference's tokens are fed through both, and
the log-probabilities of the most likely tokens at every position are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.core.results import Score

# The largest difference in nats that rounding explains. Logits between 16 and 32 have a spacing of 2^-3 in
# bfloat16 and 2^-6 in float16; a few such steps accumulate over the layers. An incorrectly split model
# differs by nats.
TOLERANCE_NATS = {"float32": 1e-3, "float16": 0.15, "bfloat16": 0.6}
WORST_FIRST = ("different", "near-tie", "equal", "not-tested")


@dataclass(frozen=True)
class Parity:
    """The result of the check: `verdict` is equal, near-tie, different or not-tested."""

    verdict: str
    first_difference: int | None = None  # position of the first generated token that differs
    max_logprob_diff: float | None = None  # nats, over all positions and compared tokens
    tolerance: float | None = None  # nats, for the type of the model's logits
    reference_ranks: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object in a record."""
        return {
            "verdict": self.verdict,
            "first_difference": self.first_difference,
            "max_logprob_diff": self.max_logprob_diff,
            "tolerance": self.tolerance,
            "reference_ranks": self.reference_ranks,
        }

    def sentence(self) -> str:
        """The verdict as a sentence."""
        if self.verdict == "not-tested":
            return "Parity: not tested (needs at least two numbers of ranks)."
        against = f"{self.reference_ranks} rank{'s' if self.reference_ranks != 1 else ''}"
        if self.verdict == "equal":
            return f"Parity: equal. The greedy tokens are identical to those of {against}."
        difference = "log-probabilities cannot be compared"
        if self.max_logprob_diff is not None:
            difference = f"log-probabilities differ by up to {self.max_logprob_diff:.2g} nats"
        if self.verdict == "near-tie":
            return (
                f"Parity: near-tie. The tokens differ from those of {against} from position "
                f"{self.first_difference}, but {difference}, within the tolerance of {self.tolerance}."
            )
        return (
            f"Parity: DIFFERENT from {against} from position {self.first_difference}; {difference} "
            f"(rounding tolerance {self.tolerance}). Do not use the output of this configuration."
        )


NOT_TESTED = Parity("not-tested")


def compare(
    reference: Sequence[int],
    tokens: Sequence[int],
    reference_score: Score,
    score: Score,
    *,
    reference_ranks: int = 1,
) -> Parity:
    """Compare a run with the reference run.

    Args:
        reference: the reference run's T tokens.
        tokens: the run's own tokens.
        reference_score: the reference's tokens, scored by the reference's ranks.
        score: the log-probabilities of the same ids, from the run's ranks.
        reference_ranks: number of ranks of the reference run.
    """
    dtype = reference_score.dtype
    tolerance = TOLERANCE_NATS.get(dtype, TOLERANCE_NATS["float32"])
    differences = [
        abs(ours - theirs)
        for mine, other in zip(score.logprobs, reference_score.logprobs, strict=True)
        for ours, theirs in zip(mine, other, strict=True)
    ]
    # NaN never matches
    worst = max(differences) if all(map(math.isfinite, differences)) else None
    at = first_difference(reference, tokens)
    if at is None:
        verdict = "equal"
    else:
        # in a near tie, the chosen token is also among the reference's most likely tokens
        likely = at < len(tokens) and tokens[at] in reference_score.top[at]
        verdict = "near-tie" if worst is not None and worst <= tolerance and likely else "different"
    return Parity(verdict, at, worst, tolerance, reference_ranks)


def first_difference(reference: Sequence[int], tokens: Sequence[int]) -> int | None:
    """The first position at which two runs differ (a missing token counts as different), or None."""
    for position, (theirs, ours) in enumerate(zip(reference, tokens, strict=False)):
        if theirs != ours:
            return position
    return None if len(reference) == len(tokens) else min(len(reference), len(tokens))


def worst(parities: Sequence[Parity]) -> Parity:
    """The verdict of a benchmark, which is that of its worst run."""
    return min(parities, key=lambda one: WORST_FIRST.index(one.verdict), default=NOT_TESTED)
