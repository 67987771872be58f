"""Choosing the next token of every sequence in the batch: on rank 0 only, and agreed by one small collective.

Ranks hold the same logits only up to the last bits, so none but rank 0 may choose; the others add zeros to
its choice in an all_sum of one integer a row. Each row has its own settings and its own random numbers, a
function of its seed and its position alone: who else is in the batch changes nothing about them.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from jaccl_kernel.server.generation import Sampling

MASK64 = (1 << 64) - 1
WIDE_TOP_K = 1024  # a larger top_k is found by sorting the whole row
# ring takes a slow way for fewer elements than ranks: with two, it cost as much as five collectives
LEAST_AGREED = 16

Mask = Callable[[Sequence[int]], mx.array | None]


@dataclass
class Row:
    """What one sequence's choices depend on.

    Args:
        sampling: its settings.
        prompt: its prompt's token ids, for the repetition penalty.
        top_logprobs: how many log-probabilities to report, or None.
        mask: given the tokens since the last call, what may come next (boolean, vocabulary), or None for
            anything; see grammar.py.
    """

    sampling: Sampling
    prompt: Sequence[int] = ()
    top_logprobs: int | None = None
    mask: Mask | None = None
    position: int = 0
    seed: int = field(init=False)
    counts: Any = None  # float32 (vocabulary): how often each token was generated
    recent: Any = None  # int32: the last tokens, for the repetition penalty

    def __post_init__(self) -> None:
        """Draw a seed where none was given."""
        given = self.sampling.seed
        self.seed = secrets.randbits(64) if given is None else given & MASK64


@dataclass(frozen=True)
class Report:
    """Log-probabilities of one choice, as arrays that are still being computed."""

    chosen: mx.array  # float32 scalar
    ids: mx.array | None  # (k,), likeliest first
    values: mx.array | None  # (k,)

    def arrays(self) -> list[mx.array]:
        """What has to be evaluated."""
        return [one for one in (self.chosen, self.ids, self.values) if one is not None]

    def read(self) -> tuple[float, tuple[tuple[int, float], ...]]:
        """(log-probability of the chosen token, the likeliest tokens with theirs)."""
        if self.ids is None or self.values is None:
            return float(self.chosen.item()), ()
        return float(self.chosen.item()), tuple(zip(self.ids.tolist(), self.values.tolist(), strict=True))


class Chooser:
    """Chooses a token for each row of logits, the same on every rank.

    Args:
        group: the mx.distributed.Group, or None for one rank alone.
        special: token ids that XTC never takes out (end of text, newline).
    """

    def __init__(self, group: Any = None, special: Sequence[int] = ()) -> None:
        self.rows: dict[int, Row] = {}
        self.vocabulary = 0  # the width of the logits, once there were any
        self._group = group
        self._leads = group is None or group.rank() == 0
        self._special = list(special)
        self.wants_stop: Callable[[], bool] = lambda: False  # this rank's wish, asked at each choice
        self._agreed: tuple[mx.array | None, mx.array | None] = (None, None)  # the last two choices

    def __call__(
        self, uids: Sequence[int], inputs: mx.array, logits: mx.array
    ) -> tuple[mx.array, list[Report | None]]:
        """Choose.

        Args:
            uids: which sequence each row is.
            inputs: (rows,) the tokens that these logits follow.
            logits: (rows, vocabulary).

        Returns (rows,) uint32 token ids, and each row's report, on rank 0.
        """
        self.vocabulary = logits.shape[-1]
        if not self._leads:
            # the choice must wait for this rank's own collectives of the forward pass, as on rank 0
            zeros = mx.depends([mx.zeros((len(uids),), dtype=mx.uint32)], [logits])[0]
            return self._agree(zeros), [None] * len(uids)
        rows = [self.rows[uid] for uid in uids]
        tokens = self._choose(rows, self._adjust(rows, inputs, logits)).astype(mx.uint32)
        if self._group is not None:
            tokens = self._agree(tokens)
        reports = [
            None if row.top_logprobs is None else _report(logits[at], tokens[at], row.top_logprobs)
            for at, row in enumerate(rows)
        ]
        for row in rows:
            row.position += 1
        return tokens, reports

    def _agree(self, tokens: mx.array) -> mx.array:
        """Rank 0's tokens, on every rank: the others hand in zeros. Any rank's wish to stop rides along."""
        rows = len(tokens)
        beside = [0] * (max(LEAST_AGREED - rows, 1) - 1) + [int(self.wants_stop())]
        both = mx.concatenate([tokens, mx.array(beside, dtype=mx.uint32)])
        self._agreed = (self._agreed[1], mx.distributed.all_sum(both, group=self._group))
        return self._agreed[1][:rows]

    def stop_agreed(self) -> bool:
        """Whether some rank wanted to stop; the same answer on every rank after the same step.

        Looks at the choice before the last one, which has been read already: waits for nothing.
        """
        if self._group is None:
            return self.wants_stop()
        before = self._agreed[0]
        return before is not None and before.tolist()[-1] > 0

    def _adjust(self, rows: Sequence[Row], inputs: mx.array, logits: mx.array) -> mx.array:
        """The logits after penalties, bias and grammar; untouched where no row has any."""
        if not any(_adjusts(row) for row in rows):
            return logits
        if any(
            row.mask for row in rows
        ):  # reading the last tokens waits for them: let the GPU go on meanwhile
            mx.async_eval(logits)
        adjusted = []
        for at, row in enumerate(rows):
            one = logits[at]
            if _adjusts(row):
                one = _adjust_row(row, inputs[at : at + 1], one.astype(mx.float32)).astype(logits.dtype)
            adjusted.append(one)
        return mx.stack(adjusted)

    def _choose(self, rows: Sequence[Row], logits: mx.array) -> mx.array:
        sampled = [at for at, row in enumerate(rows) if row.sampling.temperature > 0]
        if not sampled:
            return mx.argmax(logits, axis=-1)
        if len(sampled) == len(rows):
            return self._sample(rows, logits)
        tokens = mx.argmax(logits, axis=-1)
        index = mx.array(sampled)
        return mx.put_along_axis(
            tokens, index, self._sample([rows[at] for at in sampled], logits[index]).astype(tokens.dtype), 0
        )

    def _sample(self, rows: Sequence[Row], logits: mx.array) -> mx.array:
        """One token a row, by the inverse of the cumulative distribution at the row's random number."""
        settings = [row.sampling for row in rows]
        scaled = logits.astype(mx.float32) / mx.array([[one.temperature] for one in settings])
        if any(0 < one.top_k < logits.shape[-1] for one in settings):
            scaled = _keep_top_k(scaled, [one.top_k for one in settings])
        chances = mx.softmax(scaled, axis=-1)
        if any(one.top_p < 1 for one in settings):
            chances = _keep_top_p(chances, [one.top_p for one in settings])
        if any(one.min_p > 0 for one in settings):
            floor = mx.array([[one.min_p] for one in settings]) * chances.max(axis=-1, keepdims=True)
            chances = mx.where(chances < floor, 0.0, chances)
        for at, row in enumerate(rows):
            if row.sampling.xtc_probability > uniform(row.seed, row.position, 1):
                chances[at] = self._exclude_top_choices(chances[at], row.sampling.xtc_threshold)
        total = mx.cumsum(chances, axis=-1)
        at = mx.array([[uniform(row.seed, row.position, 0)] for row in rows]) * total[:, -1:]
        tokens = mx.minimum(mx.sum(total <= at, axis=-1), chances.shape[-1] - 1)
        # a parallel sum is not quite monotonic: never let its rounding choose what was ruled out
        possible = mx.take_along_axis(chances, tokens[:, None], axis=-1)[:, 0] > 0
        return mx.where(possible, tokens, mx.argmax(chances, axis=-1))

    def _exclude_top_choices(self, chances: mx.array, threshold: float) -> mx.array:
        above = chances > threshold * chances.sum()
        least = mx.where(above, chances, mx.inf).min()
        out = above & (chances > least)
        if self._special:
            out[mx.array(self._special)] = False
        return mx.where(out, 0.0, chances)


def uniform(seed: int, position: int, draw: int) -> float:
    """A number in [0, 1) that depends on these three alone: splitmix64's finaliser, its top 24 bits.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = (seed + (2 * position + draw + 1) * 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((state ^ (state >> 31)) >> 40) / (1 << 24)


def _adjusts(row: Row) -> bool:
    one = row.sampling
    penalised = one.presence_penalty or one.frequency_penalty or one.repetition_penalty != 1
    return bool(penalised or one.logit_bias or row.mask)


def _adjust_row(row: Row, token: mx.array, logits: mx.array) -> mx.array:
    """One row's logits (vocabulary) after what applies to it; `token` (1,) is the one before."""
    one = row.sampling
    if one.repetition_penalty != 1:
        recent = mx.array(list(row.prompt)[-one.repetition_context_size :], dtype=mx.int32)
        if row.position:
            recent = mx.concatenate([row.recent, token.astype(mx.int32)])
        row.recent = recent[-one.repetition_context_size :]
        held = logits[row.recent]
        penalty = one.repetition_penalty
        logits[row.recent] = mx.where(held < 0, held * penalty, held / penalty)
    if one.presence_penalty or one.frequency_penalty:
        if row.position == 0:
            row.counts = mx.zeros(logits.shape, dtype=mx.float32)
        else:
            row.counts = row.counts.at[token].add(1.0)
        logits = logits - one.frequency_penalty * row.counts - one.presence_penalty * (row.counts > 0)
    if one.logit_bias:
        ids = mx.array(list(one.logit_bias))
        logits = logits.at[ids].add(mx.array(list(one.logit_bias.values()), dtype=mx.float32))
    if row.mask:
        allowed = row.mask(token.tolist() if row.position else [])
        if allowed is not None:
            logits = mx.where(allowed, logits, -mx.inf)
    return logits


def _keep_top_k(scaled: mx.array, ks: Sequence[int]) -> mx.array:
    vocabulary = scaled.shape[-1]
    ks = [k if 0 < k < vocabulary else vocabulary for k in ks]
    limited = [k for k in ks if k < vocabulary]
    widest = max(limited)
    largest = mx.topk(scaled, widest, axis=-1) if widest <= WIDE_TOP_K else scaled
    largest = -mx.sort(-largest, axis=-1)
    at = mx.array([[min(k, largest.shape[-1]) - 1] for k in ks])
    floor = mx.take_along_axis(largest, at, axis=-1)
    unlimited = mx.array([[k == vocabulary] for k in ks])
    return mx.where(unlimited | (scaled >= floor), scaled, -mx.inf)


def _keep_top_p(chances: mx.array, ps: Sequence[float]) -> mx.array:
    falling = -mx.sort(-chances, axis=-1)
    before = mx.cumsum(falling, axis=-1) - falling  # the mass of all likelier tokens
    wanted = mx.array([[p] for p in ps]) * falling.sum(axis=-1, keepdims=True)
    kept = mx.maximum(mx.sum(before < wanted, axis=-1, keepdims=True), 1)
    floor = mx.take_along_axis(falling, kept - 1, axis=-1)
    everything = mx.array([[p >= 1] for p in ps])
    return mx.where(everything | (chances >= floor), chances, 0.0)


def _report(logits: mx.array, token: mx.array, count: int) -> Report:
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits)
    if not count:
        return Report(logprobs[token], None, None)
    ids = (
        mx.argpartition(-logprobs, kth=count - 1)[:count]
        if count < logprobs.size
        else mx.arange(logprobs.size)
    )
    ids = ids[mx.argsort(-logprobs[ids])]
    return Report(logprobs[token], ids, logprobs[ids])
