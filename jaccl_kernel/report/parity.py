"""The correctness gate: do N ranks say what one rank says? Pure.

Greedy tokens are compared first. Rounding alone can flip a near tie (N ranks add up in another order), after
which the texts part for good, so tokens that differ prove nothing by themselves: then the reference's tokens
are fed through both, and the log-probabilities of the likeliest tokens at every position are compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# The largest difference, in nats, that rounding explains. A logit of size 16 to 32 has a spacing of 2^-3 in
# bfloat16 and 2^-6 in float16; a few such steps add up over the layers. A wrongly split model is off by nats.
TOLERANCE_NATS = {"float32": 1e-3, "float16": 0.15, "bfloat16": 0.6}
WORST_FIRST = ("different", "near-tie", "equal", "not-tested")


@dataclass(frozen=True)
class Parity:
    """What the gate found: `verdict` is equal, near-tie, different or not-tested."""

    verdict: str
    first_difference: int | None = None  # position of the first generated token that differs
    max_logprob_diff: float | None = None  # nats, over all positions and compared tokens
    tolerance: float | None = None  # nats, for the type of the model's logits
    reference_ranks: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "verdict": self.verdict,
            "first_difference": self.first_difference,
            "max_logprob_diff": self.max_logprob_diff,
            "tolerance": self.tolerance,
            "reference_ranks": self.reference_ranks,
        }

    def sentence(self) -> str:
        """The verdict for people."""
        if self.verdict == "not-tested":
            return "Parity: not tested (only one number of ranks was run)."
        against = f"{self.reference_ranks} rank{'s' if self.reference_ranks != 1 else ''}"
        if self.verdict == "equal":
            return f"Parity: equal. The greedy tokens are those of {against}."
        apart = "log-probabilities cannot be compared"
        if self.max_logprob_diff is not None:
            apart = f"log-probabilities are up to {self.max_logprob_diff:.2g} nats apart"
        if self.verdict == "near-tie":
            return (
                f"Parity: near-tie. The tokens part from those of {against} at position "
                f"{self.first_difference}, but {apart}, within the {self.tolerance} that rounding explains."
            )
        return (
            f"Parity: DIFFERENT from {against} at position {self.first_difference}; {apart} "
            f"(rounding explains {self.tolerance}). Do not trust this set-up's output."
        )


NOT_TESTED = Parity("not-tested")


def compare(
    reference: Sequence[int],
    tokens: Sequence[int],
    reference_score: dict[str, Any],
    score: dict[str, Any],
    *,
    reference_ranks: int = 1,
) -> Parity:
    """Compare one run with the reference.

    Args:
        reference: the reference run's T tokens.
        tokens: the run's own tokens.
        reference_score: `top` (T x K ids), `logprobs` (T x K, nats) and `dtype` of the reference's tokens,
            fed through the reference's ranks.
        score: the same ids' log-probabilities, fed through the run's ranks.
        reference_ranks: how many ranks made the reference.
    """
    dtype = reference_score["dtype"]
    tolerance = TOLERANCE_NATS.get(dtype, TOLERANCE_NATS["float32"])
    apart = [
        abs(ours - theirs)
        for mine, other in zip(score["logprobs"], reference_score["logprobs"], strict=True)
        for ours, theirs in zip(mine, other, strict=True)
    ]
    # not a number agrees with nothing
    worst = max(apart) if all(map(math.isfinite, apart)) else None
    at = first_difference(reference, tokens)
    if at is None:
        verdict = "equal"
    else:
        # past a near tie the chosen token must be one that the reference found likely too
        likely = at < len(tokens) and tokens[at] in reference_score["top"][at]
        verdict = "near-tie" if worst is not None and worst <= tolerance and likely else "different"
    return Parity(verdict, at, worst, tolerance, reference_ranks)


def first_difference(reference: Sequence[int], tokens: Sequence[int]) -> int | None:
    """The first position at which two runs differ (a missing token differs), or None."""
    for position, (theirs, ours) in enumerate(zip(reference, tokens, strict=False)):
        if theirs != ours:
            return position
    return None if len(reference) == len(tokens) else min(len(reference), len(tokens))


def worst(parities: Sequence[Parity]) -> Parity:
    """The verdict of a whole benchmark: that of its worst run."""
    return min(parities, key=lambda one: WORST_FIRST.index(one.verdict), default=NOT_TESTED)
