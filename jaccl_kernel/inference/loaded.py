"""A loaded model, ready for the engine: its batch, its sampler, and the tokens that fit on all ranks.

The warm-up is an ordinary request to an engine, which every rank runs by itself at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import KVCache

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.inference import agreement, capacity
from jaccl_kernel.inference.batch import Batch, token_bytes
from jaccl_kernel.inference.control import Leader
from jaccl_kernel.inference.engine import Engine
from jaccl_kernel.inference.grammar import Grammars
from jaccl_kernel.inference.plan import Executor
from jaccl_kernel.inference.request import Request, Sampling
from jaccl_kernel.inference.sampling import Sampler
from jaccl_kernel.inference.scheduler import Limits

WARMUP_PROMPT = 64  # tokens
WARMUP_TOKENS = 4
CACHE_FRACTION = 0.25  # of the free memory, for prompt caches


@dataclass(frozen=True)
class LoadedModel:
    """A model on this rank, warmed up, and its memory cost.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        executor: this rank's batch and prompt caches.
        sampler: the batch's sampler.
        token_bytes: bytes of KV cache per token, on this rank.
        capacity: tokens that fit, on the rank with the least memory.
        needs_boundary: a prefix of a prompt cache is not usable, because some layer's state cannot be
            trimmed.
        vocabulary: the width of the logits.
        max_sequences: the maximum number of sequences in the batch.
    """

    tokenizer: Any
    executor: Executor
    sampler: Sampler
    token_bytes: float
    capacity: int
    needs_boundary: bool
    vocabulary: int
    max_sequences: int

    def engine(
        self,
        control: Leader | None = None,
        *,
        max_queue: int = 128,
        cache_bytes: float | None = None,
        names: Sequence[str] = ("",),
    ) -> Engine:
        """Return rank 0's engine; `cache_bytes` limits the prompt caches (a quarter of the free memory)."""
        cache = int(self.capacity * CACHE_FRACTION)
        if cache_bytes is not None:
            cache = min(self.capacity, int(cache_bytes / max(1.0, self.token_bytes)))
        return Engine(
            self.executor,
            self.sampler,
            self.tokenizer,
            Grammars(self.tokenizer, self.vocabulary),
            control=control,
            limits=Limits(self.max_sequences, max_queue, self.capacity, cache, self.token_bytes),
            names=names,
        )


def prepare(
    model: Any,
    tokenizer: Any,
    group: Any,
    *,
    max_sequences: int = 32,
    prefill_step: int = 512,
    memory_bytes: int | None = None,
) -> LoadedModel:
    """Make a model ready and warm it up; on every rank at the same time.

    Args:
        model: the model, or this rank's shard of it.
        tokenizer: its tokenizer.
        group: the mx.distributed.Group, or None for one rank alone.
        max_sequences: in the batch at once.
        prefill_step: prompt tokens a step.
        memory_bytes: memory of this process; None for what the system allows.

    Raises:
        JobError: mlx-lm cannot run this architecture in a batch.
    """
    special = [*tokenizer.eos_token_ids, *tokenizer.encode("\n", add_special_tokens=False)]
    sampler = Sampler(group, special)
    eos = sorted(tokenizer.eos_token_ids)
    batch = Batch(model, sampler, eos, max_sequences=max_sequences, prefill_step=prefill_step)
    executor = Executor(batch, sampler.announced)
    token = next(iter(tokenizer.encode("a", add_special_tokens=False)), 0)
    warm_up = Request([token] * WARMUP_PROMPT, WARMUP_TOKENS, Sampling(temperature=0.0))
    with mx.stream(generation_stream):
        try:
            for _ in Engine(executor, sampler).generate(warm_up):
                pass
        except ValueError as error:
            raise JobError(
                f"mlx-lm cannot run this model in a batch: {error}", fix="Use another model."
            ) from error
        [cached] = executor.cached.values()
        cost = token_bytes(cached)
        limit = capacity.memory_limit() if memory_bytes is None else memory_bytes
        needs_boundary = any(type(layer) is not KVCache for layer in cached.cache)
        executor.clear()
        fits = agreement.minimum(group, capacity.capacity(limit, cost))
    return LoadedModel(
        tokenizer, executor, sampler, cost, fits, needs_boundary, sampler.vocabulary, max_sequences
    )
