"""The one place that touches the inside of mlx-lm's BatchGenerator (0.32): our seam for choosing tokens.

mlx-lm builds its GenerationBatch deep inside; `_Rows` takes its place there and replaces `_step`, so that the
whole batch is chosen in one call that knows which row is whose, and no log-probabilities are computed that
nobody asked for. tests/server/test_batch_contract.py fails when upstream changes under us.
Knows sequences by the caller's numbers; knows no requests, no text and no other ranks.
"""

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from jaccl_kernel.server.sampling import Report

# `mlx_lm.generate` is a function of that package; the module of the same name is behind it
upstream = importlib.import_module("mlx_lm.generate")

Choose = Callable[[Sequence[int], mx.array, mx.array], tuple[mx.array, list[Report | None]]]

UNBOUNDED = 1 << 40


class _Rows(upstream.GenerationBatch):  # type: ignore[name-defined]
    """A GenerationBatch whose tokens are chosen by `fallback_sampler(uids, inputs, logits)`."""

    _next_tokens: Any
    _next_logprobs: Any

    def _step(self) -> tuple[list[int], list[Any]]:
        self._current_tokens, self._current_logprobs = self._next_tokens, self._next_logprobs
        inputs = self._current_tokens
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_logprobs = self.fallback_sampler(self.uids, inputs, logits)
        reports = [array for one in self._next_logprobs if one for array in one.arrays()]
        mx.async_eval(self._next_tokens, *reports)
        # this step computes while the last one's tokens are read
        tokens: list[int] = inputs.tolist()
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, self._current_logprobs or [None] * len(tokens)


upstream.GenerationBatch = _Rows  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Token:
    """One sequence's next token.

    Args:
        sequence: the caller's number.
        token: its id.
        report: its log-probabilities, where asked for.
        finish: None, "stop" (an end-of-text token) or "length".
    """

    sequence: int
    token: int
    report: Report | None
    finish: str | None


@dataclass(frozen=True)
class Held:
    """A sequence's prompt cache on this rank, and (where the prompt was told in full) the tokens in it."""

    cache: list[Any]
    tokens: list[int]

    @classmethod
    def of(cls, cache: list[Any], tokens: Sequence[int]) -> "Held":
        """Hold a cache that was just cut out of a batch.

        Until it is evaluated it is a promise that keeps the whole batch's arrays: many times its own size.
        """
        mx.async_eval(_arrays(cache))
        return cls(cache, list(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(layer.nbytes for layer in self.cache)

    @property
    def trimmable(self) -> bool:
        """Whether a prefix of it can be used too."""
        return bool(can_trim_prompt_cache(self.cache))

    def copied(self, trim: int = 0) -> list[Any]:
        """A copy without its last `trim` tokens (0 where it is not trimmable)."""
        cache = copy.deepcopy(self.cache)
        if trim:
            trim_prompt_cache(cache, trim)
        return cache


class Batch:
    """All sequences that are being generated, stepped together.

    Args:
        model: the model, or this rank's share of it.
        choose: picks the tokens, see sampling.Chooser.
        eos: token ids that end a sequence.
        max_sequences: at most so many at once.
        prefill_step: prompt tokens a step; between two such chunks every other sequence gets a token.
    """

    def __init__(
        self,
        model: Any,
        choose: Choose,
        eos: Sequence[int],
        *,
        max_sequences: int = 32,
        prefill_step: int = 512,
    ) -> None:
        self._model = model
        self._sequence: dict[int, int] = {}  # the generator's number -> the caller's
        self._number: dict[int, int] = {}
        self._generator = upstream.BatchGenerator(
            model,
            stop_tokens=[[token] for token in eos],
            sampler=lambda numbers, inputs, logits: choose(
                [self._sequence[number] for number in numbers], inputs, logits
            ),
            completion_batch_size=max_sequences,
            prefill_batch_size=min(8, max_sequences),
            prefill_step_size=prefill_step,
        )
        self.held: dict[int, Held] = {}  # of sequences that have just ended, until the caller settles them
        self.passed: dict[int, Held] = {}  # of prompts at their boundary, likewise

    def __len__(self) -> int:
        return len(self._number)

    def add(
        self,
        sequence: int,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        known: Sequence[int] = (),
        cache: list[Any] | None = None,
        boundary: int = 0,
    ) -> None:
        """Add a sequence; it starts with the next step.

        Args:
            sequence: the caller's number for it.
            prompt: the token ids that are not in `cache`, at least one.
            max_tokens: it ends after so many.
            known: the token ids in `cache`.
            cache: what is known already of the prompt, from Held.copied; the batch takes it over.
            boundary: keep a copy of the cache (in `passed`) after so many tokens of `prompt`; 0 for none.
        """
        parts = [list(prompt)]
        if 0 < boundary < len(prompt) - 1:
            parts = [list(prompt[:boundary]), list(prompt[boundary:])]
        [number] = self._generator.insert_segments(
            [parts],
            [max_tokens],
            [cache if cache is not None else make_prompt_cache(self._model)],
            [list(known)],
        )
        self._sequence[number], self._number[sequence] = sequence, number

    def remove(self, sequence: int) -> None:
        """Take a sequence out before its end; what it had computed goes to `held`."""
        number = self._number.pop(sequence)
        [(cache, tokens)] = self._generator.remove([number], return_prompt_caches=True).values()
        del self._sequence[number]
        self.held[sequence] = Held.of(cache, tokens)

    def step(self) -> list[Token]:
        """One step of all: a token for each that generates, and a chunk of the prompts that wait."""
        prompts, generated = self._generator.next()
        for one in prompts:
            if one.end_of_segment and not one.end_of_prompt:
                self._pass(one)
        tokens = []
        for one in generated:
            sequence = self._sequence[one.uid]
            tokens.append(Token(sequence, one.token, one.logprobs, one.finish_reason))
            if one.finish_reason is not None:
                self.held[sequence] = Held.of(one.prompt_cache, one.all_tokens)
                del self._sequence[one.uid], self._number[sequence]
        return tokens

    def _pass(self, response: Any) -> None:
        """A part of a prompt is through: keep its cache, unless only the last token is left."""
        ((cache, tokens),) = self._generator.extract_cache([response.uid]).values()
        sequence = self._sequence[response.uid]
        if response.progress[0] < response.progress[1] - 1 and sequence not in self.passed:
            self.passed[sequence] = Held.of(cache, tokens)

    def sequences(self) -> list[int]:
        """The callers' numbers of all that are in it."""
        return list(self._number)

    @property
    def nbytes(self) -> int:
        """Bytes of all running sequences' caches."""
        return int(self._generator.prompt_cache_nbytes)

    def close(self) -> None:
        """Give the wired memory limit back."""
        self._generator.close()


def token_bytes(held: Held) -> float:
    """Bytes of cache a token, of the layers that grow with the sequence."""
    growing = [layer for layer in held.cache if getattr(layer, "keys", None) is not None]
    return sum(array.nbytes for array in _arrays(growing)) / max(1, len(held))


def _arrays(cache: Sequence[Any]) -> list[mx.array]:
    states = [layer.state for layer in cache if not layer.empty()]
    return [array for _, array in tree_flatten(states) if isinstance(array, mx.array)]
