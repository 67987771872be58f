"""Samples the next token of every sequence in the batch: on rank 0 only, shared by one small collective.

The ranks' logits differ in the last bits, so only rank 0 samples; the others receive its tokens
(agreement.from_rank_0), and with them whether a plan follows. Each row has its own settings and its own
random numbers, which depend only on its seed and position, not on other sequences in the batch.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from jaccl_kernel.inference import agreement
from jaccl_kernel.inference.request import Sampling

MASK64 = (1 << 64) - 1
WIDE_TOP_K = 1024  # a larger top_k sorts the whole row

Mask = Callable[[Sequence[int]], mx.array | None]


@dataclass
class Row:
    """The sampling state of one sequence.

    Args:
        sampling: its settings.
        prompt: its prompt's token ids, for the repetition penalty.
        top_logprobs: how many log-probabilities to report, or None.
        mask: maps the tokens since the last call to the allowed next ones (boolean, vocabulary), or None for
            all; see grammar.py.
    """

    sampling: Sampling
    prompt: Sequence[int] = ()
    top_logprobs: int | None = None
    mask: Mask | None = None
    position: int = 0
    seed: int = field(init=False)
    counts: Any = None  # float32 (vocabulary): the count of each generated token
    recent: Any = None  # int32: the last tokens, for the repetition penalty

    def __post_init__(self) -> None:
        """Draw a seed if none was given."""
        given = self.sampling.seed
        self.seed = secrets.randbits(64) if given is None else given & MASK64


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of one token, as lazy arrays."""

    chosen: mx.array  # float32 scalar
    ids: mx.array | None  # (k,), most likely first
    values: mx.array | None  # (k,)

    def arrays(self) -> list[mx.array]:
        """Return the arrays to evaluate."""
        return [one for one in (self.chosen, self.ids, self.values) if one is not None]

    def read(self) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Return the log-probability of the sampled token, and the most likely tokens with theirs."""
        if self.ids is None or self.values is None:
            return float(self.chosen.item()), ()
        return float(self.chosen.item()), tuple(zip(self.ids.tolist(), self.values.tolist(), strict=True))


class Sampler:
    """Samples a token for each row of logits, the same on every rank.

    Args:
        group: the mx.distributed.Group, or None for one rank alone.
        special: token ids that XTC never excludes (end of text, newline).
    """

    def __init__(self, group: Any = None, special: Sequence[int] = ()) -> None:
        self.rows: dict[int, Row] = {}
        self.vocabulary = 0  # the width of the logits; 0 before the first step
        self.announce = True  # on rank 0: whether a plan precedes the step after next
        self._announced: mx.array | None = None  # of the current step, and of the previous one
        self._previous: mx.array | None = None
        self._group = group
        self._leads = group is None or group.rank() == 0
        self._special = list(special)

    def __call__(
        self, uids: Sequence[int], inputs: mx.array, logits: mx.array
    ) -> tuple[mx.array, list[LogProbs | None]]:
        """Sample.

        Args:
            uids: the sequence of each row.
            inputs: (rows,) the tokens before these logits.
            logits: (rows, vocabulary).

        Returns (rows,) uint32 token ids, and each row's log-probabilities if requested, on rank 0.
        """
        self.vocabulary = logits.shape[-1]
        if not self._leads:
            # the tokens must depend on this rank's own collectives of the forward pass, as on rank 0
            zeros = mx.depends([mx.zeros((len(uids),), dtype=mx.uint32)], [logits])[0]
            return self._share(zeros), [None] * len(uids)
        rows = [self.rows[uid] for uid in uids]
        tokens = self._share(self._choose(rows, self._adjust(rows, inputs, logits)).astype(mx.uint32))
        logprobs = [
            None if row.top_logprobs is None else _logprobs(logits[at], tokens[at], row.top_logprobs)
            for at, row in enumerate(rows)
        ]
        for row in rows:
            row.position += 1
        return tokens, logprobs

    def announced(self) -> bool:
        """Return what rank 0 announced with the previous step's tokens, on every rank; True without any.

        Call it once after each step: those tokens are known by then, so that it waits for nothing.
        """
        previous, self._previous, self._announced = self._previous, self._announced, None
        return previous is None or bool(previous.item())

    def _share(self, tokens: mx.array) -> mx.array:
        if self._group is None:
            return tokens
        announce = mx.array([int(self.announce and self._leads)], dtype=mx.uint32)
        shared = agreement.from_rank_0(self._group, mx.concatenate([tokens, announce]))
        tokens, self._announced = shared[:-1], shared[-1]
        mx.async_eval(tokens, self._announced)
        return tokens

    def _adjust(self, rows: Sequence[Row], inputs: mx.array, logits: mx.array) -> mx.array:
        """Return the logits after penalties, bias and grammar."""
        if not any(_adjusts(row) for row in rows):
            return logits
        if any(row.mask for row in rows):
            mx.async_eval(logits)  # the GPU computes while a mask reads the last tokens
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
        """Sample one token per row, by inverse transform sampling with the row's random number."""
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
        # a parallel sum is not quite monotonic: its rounding must not select an excluded token
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
    """Return a number in [0, 1) that depends only on these three: the top 24 bits of splitmix64's finalizer.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = (seed + (2 * position + draw + 1) * 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((state ^ (state >> 31)) >> 40) / (1 << 24)


def _adjusts(row: Row) -> bool:
    one = row.sampling
    penalized = one.presence_penalty or one.frequency_penalty or one.repetition_penalty != 1
    return bool(penalized or one.logit_bias or row.mask)


def _adjust_row(row: Row, token: mx.array, logits: mx.array) -> mx.array:
    """Return one row's adjusted logits (vocabulary); `token` (1,) is the previous token."""
    one = row.sampling
    if one.repetition_penalty != 1:
        recent = mx.array(list(row.prompt)[-one.repetition_context_size :], dtype=mx.int32)
        if row.position:
            recent = mx.concatenate([row.recent, token.astype(mx.int32)])
        row.recent = recent[-one.repetition_context_size :]
        recent = logits[row.recent]
        penalty = one.repetition_penalty
        logits[row.recent] = mx.where(recent < 0, recent * penalty, recent / penalty)
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
    before = mx.cumsum(falling, axis=-1) - falling  # the mass of all more likely tokens
    mass = mx.array([[p] for p in ps]) * falling.sum(axis=-1, keepdims=True)
    count = mx.maximum(mx.sum(before < mass, axis=-1, keepdims=True), 1)
    floor = mx.take_along_axis(falling, count - 1, axis=-1)
    unlimited = mx.array([[p >= 1] for p in ps])
    return mx.where(unlimited | (chances >= floor), chances, 0.0)


def _logprobs(logits: mx.array, token: mx.array, count: int) -> LogProbs:
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits)
    if not count:
        return LogProbs(logprobs[token], None, None)
    ids = (
        mx.argpartition(-logprobs, kth=count - 1)[:count]
        if count < logprobs.size
        else mx.arange(logprobs.size)
    )
    ids = ids[mx.argsort(-logprobs[ids])]
    return LogProbs(logprobs[token], ids, logprobs[ids])
