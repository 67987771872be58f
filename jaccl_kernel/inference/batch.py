"""The adapter to the internals of mlx-lm's BatchGenerator (0.32), for sampling the whole batch at once.

mlx-lm creates its GenerationBatch internally; `_Rows` replaces that class and overrides `_step`, so that one
call samples the whole batch with the rows' sequence numbers, and computes only requested log-probabilities.
tests/inference/test_batch_contract.py fails when upstream changes. Identifies sequences by the caller's
numbers; knows no requests, no text and no other ranks.
"""

import copy
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from jaccl_kernel.inference.request import Token
from jaccl_kernel.inference.sampling import LogProbs

# `mlx_lm.generate` is a function of that package, and hides the module of the same name
upstream = importlib.import_module("mlx_lm.generate")

SampleBatch = Callable[[Sequence[int], mx.array, mx.array], tuple[mx.array, list[LogProbs | None]]]


class _Rows(upstream.GenerationBatch):  # type: ignore[name-defined]
    """A GenerationBatch whose tokens are sampled by `fallback_sampler(uids, inputs, logits)`."""

    _next_tokens: Any
    _next_logprobs: Any

    def _step(self) -> tuple[list[int], list[Any]]:
        self._current_tokens, self._current_logprobs = self._next_tokens, self._next_logprobs
        inputs = self._current_tokens
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_logprobs = self.fallback_sampler(self.uids, inputs, logits)
        reports = [array for one in self._next_logprobs if one for array in one.arrays()]
        mx.async_eval(self._next_tokens, *reports)
        # this step computes while the previous one's tokens are read
        tokens: list[int] = inputs.tolist()
        for known, token in zip(self.tokens, tokens, strict=True):
            known.append(token)
        return tokens, self._current_logprobs or [None] * len(tokens)


upstream.GenerationBatch = _Rows  # type: ignore[attr-defined]


@dataclass(frozen=True)
class CachedPrompt:
    """A sequence's prompt cache on this rank, and its tokens (empty if unknown on this rank)."""

    cache: list[Any]
    tokens: list[int]

    @classmethod
    def of(cls, cache: list[Any], tokens: Sequence[int]) -> "CachedPrompt":
        """Evaluate a cache that was just extracted from a batch.

        A lazy cache keeps the whole batch's arrays alive, many times its own size.
        """
        mx.async_eval(_arrays(cache))
        return cls(cache, list(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def trimmable(self) -> bool:
        """Whether a prefix of it is usable."""
        return bool(can_trim_prompt_cache(self.cache))

    def copied(self, trim: int = 0) -> list[Any]:
        """Return a copy without its last `trim` tokens (0 if it is not trimmable)."""
        cache = copy.deepcopy(self.cache)
        if trim:
            trim_prompt_cache(cache, trim)
        return cache


class Batch:
    """All running sequences, stepped together.

    Args:
        model: the model, or this rank's shard of it.
        sample: samples a token for each row, see sampling.Sampler.
        eos: token ids that end a sequence.
        max_sequences: the maximum number of sequences.
        prefill_step: prompt tokens per step; between two such chunks every other sequence gets a token.
    """

    def __init__(
        self,
        model: Any,
        sample: SampleBatch,
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
            sampler=lambda numbers, inputs, logits: sample(
                [self._sequence[number] for number in numbers], inputs, logits
            ),
            completion_batch_size=max_sequences,
            prefill_batch_size=min(8, max_sequences),
            prefill_step_size=prefill_step,
        )
        self.ended: dict[int, CachedPrompt] = {}  # of ended sequences, until the next plan
        self.at_boundary: dict[int, CachedPrompt] = {}  # of prompts at their boundary, until the next plan
        self.prefilled: dict[int, tuple[int, int]] = {}  # (done, total) prompt tokens, of the last step

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
        ignore_eos: bool = False,
    ) -> None:
        """Add a sequence; it starts with the next step.

        Args:
            sequence: the caller's number for it.
            prompt: the token ids that are not in `cache`, at least one.
            max_tokens: the limit of generated tokens.
            known: the token ids in `cache`.
            cache: the cached part of the prompt, from CachedPrompt.copied; owned by the batch from now on.
            boundary: keep a copy of the cache (in `at_boundary`) after this many prompt tokens; 0: none.
            ignore_eos: continue after an end-of-text token.
        """
        parts = [list(prompt)]
        if 0 < boundary < len(prompt) - 1:
            parts = [list(prompt[:boundary]), list(prompt[boundary:])]
        [number] = self._generator.insert_segments(
            [parts],
            [max_tokens],
            [cache if cache is not None else make_prompt_cache(self._model)],
            [list(known)],
            stop_sequences=[upstream.StopSequences()] if ignore_eos else None,
        )
        self._sequence[number], self._number[sequence] = sequence, number

    def remove(self, sequence: int) -> None:
        """Remove a sequence before its end; its cache moves to `ended`."""
        number = self._number.pop(sequence)
        [(cache, tokens)] = self._generator.remove([number], return_prompt_caches=True).values()
        del self._sequence[number]
        self.ended[sequence] = CachedPrompt.of(cache, tokens)

    def step(self) -> list[Token]:
        """Run one step: a token for each sequence in decode, and a chunk for each in prefill."""
        prompts, generated = self._generator.next()
        at = time.perf_counter()
        for one in prompts:
            if one.end_of_segment and not one.end_of_prompt:
                self._keep_boundary(one)
        self.prefilled = {self._sequence[one.uid]: one.progress for one in prompts}
        tokens = []
        for one in generated:
            sequence = self._sequence[one.uid]
            logprob, top = one.logprobs.read() if one.logprobs else (None, ())
            tokens.append(Token(sequence, one.token, one.finish_reason, logprob, top, at))
            if one.finish_reason is not None:
                self.ended[sequence] = CachedPrompt.of(one.prompt_cache, one.all_tokens)
                del self._sequence[one.uid], self._number[sequence]
        return tokens

    def _keep_boundary(self, response: Any) -> None:
        """Keep the cache of a completed part of a prompt, unless only the last token remains."""
        ((cache, tokens),) = self._generator.extract_cache([response.uid]).values()
        sequence = self._sequence[response.uid]
        if response.progress[0] < response.progress[1] - 1 and sequence not in self.at_boundary:
            self.at_boundary[sequence] = CachedPrompt.of(cache, tokens)

    @property
    def prefill_step(self) -> int:
        """The maximum tokens of each prompt per step; the same on every rank."""
        return int(self._generator.prefill_step_size)

    @prefill_step.setter
    def prefill_step(self, tokens: int) -> None:
        self._generator.prefill_step_size = tokens
        self._generator._prompt_batch.prefill_step_size = tokens

    def sequences(self) -> list[int]:
        """Return the callers' numbers of all sequences."""
        return list(self._number)

    def close(self) -> None:
        """Restore the wired memory limit."""
        self._generator.close()


def token_bytes(cached: CachedPrompt) -> float:
    """Return the cache bytes per token, of the layers that grow with the sequence."""
    growing = [layer for layer in cached.cache if getattr(layer, "keys", None) is not None]
    return sum(array.nbytes for array in _arrays(growing)) / max(1, len(cached))


def _arrays(cache: Sequence[Any]) -> list[mx.array]:
    states = [layer.state for layer in cache if not layer.empty()]
    return [array for _, array in tree_flatten(states) if isinstance(array, mx.array)]
