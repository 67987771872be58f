"""Decides which requests join the batch: admission, memory and prompt caches, as plans. Rank 0 only, no I/O.

The engine calls `plan` before a step that needs one and `take` after each step, under its lock. Sizes are in
tokens.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaccl_kernel.inference.batch import Batch, CachedPrompt
from jaccl_kernel.inference.plan import AddSequence, Plan
from jaccl_kernel.inference.prompt_cache import CacheIndex
from jaccl_kernel.inference.request import Prefill, RequestError, Token
from jaccl_kernel.inference.stream import Item, Stream

RESERVE = 2048  # tokens of memory reserved for an answer; few answers are longer
RATE_WINDOW_S = 5.0
SOON = 3  # steps until a plan that is wanted now
AHEAD = 8  # steps for which a plan frees the memory of cached prompts


@dataclass(frozen=True)
class Limits:
    """The engine's admission limits.

    Args:
        max_sequences: the maximum number of sequences in the batch.
        max_queue: the maximum number of waiting requests; further ones are rejected.
        capacity: tokens that fit into the memory of every rank, including prompt caches. Each row of a batch
            takes as many as the longest sequence: mlx-lm pads the others.
        cache: the maximum tokens of prompt caches.
        token_bytes: bytes per token on rank 0, for reports.
    """

    max_sequences: int = 32
    max_queue: int = 128
    capacity: int = 1 << 40
    cache: int = 1 << 16
    token_bytes: float = 0.0


@dataclass
class Running:
    """A request in the batch."""

    stream: Stream
    add: AddSequence
    reserved: int  # tokens of reserved memory, at least its length
    length: int  # its tokens, including the prompt
    cancelled: bool = False


class Scheduler:
    """The queue, the running sequences and the prompt caches.

    Args:
        limits: the admission limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cache = CacheIndex(limits.cache)
        self.waiting: deque[Stream] = deque()
        self.running: dict[int, Running] = {}
        self.tokens = self.prompt_tokens = self.hits = self.lookups = 0
        self._cancelled: set[Stream] = set()
        self._settling: list[
            tuple[int, CachedPrompt, bool]
        ] = []  # (sequence, its cache, whether at its boundary)
        self._settled: set[tuple[int, bool]] = set()  # whose caches have been seen since the last plan
        self._uncached: set[int] = set()  # running sequences that do not use the prompt cache
        self._sequences = itertools.count()
        self._recent: deque[tuple[float, int]] = deque()

    def submit(self, stream: Stream) -> None:
        """Queue a request.

        Raises:
            RequestError: it cannot fit into memory, or the queue is full.
        """
        need, capacity = _need(stream), self.limits.capacity
        if need > capacity:
            raise RequestError(
                "too_long",
                f"{need} tokens do not fit into the memory of these ranks, whose capacity is {capacity}",
                field="max_tokens" if len(stream.request.prompt) < capacity else "prompt",
            )
        if len(self.waiting) >= self.limits.max_queue:
            message = f"the queue is full: {len(self.waiting)} requests are waiting"
            raise RequestError("queue_full", message, retry_after=5)
        self.waiting.append(stream)

    def cancel(self, stream: Stream) -> bool:
        """Remove a request from the queue now, or from the batch at the next step (returns True)."""
        if stream in self.waiting:
            self.waiting.remove(stream)
        elif any(one.stream is stream for one in self.running.values()):
            self._cancelled.add(stream)
            return True
        return False

    def cancel_all(self) -> list[Stream]:
        """Empty the queue now, and the batch at the next step. Returns the open streams."""
        streams = [*self.waiting, *(one.stream for one in self.running.values() if not one.cancelled)]
        self.waiting.clear()
        for one in self.running.values():
            one.cancelled = True
        return streams

    def has_work(self) -> bool:
        """Whether there is anything to plan."""
        return bool(self.waiting or self.running or self._settling)

    def wants_plan(self) -> bool:
        """Whether a plan would change the batch or the prompt caches."""
        if self._cancelled or self._settling or any(one.cancelled for one in self.running.values()):
            return True
        full = self._length(SOON) + self.cache.tokens > self.limits.capacity
        return full or self._can_admit()

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.limits.max_sequences:
            return False
        return self._memory_with(self.waiting[0]) <= self.limits.capacity

    def _length(self, steps: int = 0) -> int:
        """The tokens of the batch after some more steps."""
        return _padded(one.length + steps for one in self.running.values())

    def _memory_with(self, stream: Stream) -> int:
        """The tokens of memory of the batch with one more request."""
        return _padded([_need(stream), *(one.reserved for one in self.running.values())])

    def plan(self) -> tuple[Plan, list[tuple[Stream, Item]]]:
        """Return the next plan, and the errors of the streams that it ends."""
        plan = Plan()
        for sequence, one in list(self.running.items()):
            if one.cancelled or one.stream in self._cancelled:
                self._remove(plan, sequence)
        self._cancelled.clear()
        self._settle(plan)
        errors = self._make_room(plan)
        while self._can_admit():
            self._admit(plan)
        plan.step = bool(self.running)
        return plan, errors

    def refuse(self, plan: Plan, add: AddSequence) -> None:
        """Remove an admitted sequence from the plan."""
        del self.running[add.sequence]
        plan.add.remove(add)
        plan.step = bool(self.running)

    def take(self, tokens: Sequence[Token], batch: Batch) -> list[tuple[Stream, Item]]:
        """Record a step's tokens and caches. Returns the items for each stream."""
        items: list[tuple[Stream, Item]] = []
        for sequence, (done, total) in batch.prefilled.items():
            one = self.running.get(sequence)
            if one and one.stream.request.progress:
                items.append((one.stream, Prefill(done, total)))
        for sequence, cached in batch.at_boundary.items():
            # a trimmable cache of the whole sequence is more useful
            if not cached.trimmable:
                self._keep(sequence, cached, boundary=True)
        for sequence, cached in batch.ended.items():
            self._keep(sequence, cached, boundary=False)
        for token in tokens:
            one = self.running[token.sequence]
            if not one.cancelled:
                items.append((one.stream, token))
            one.length += 1
            one.reserved = max(one.reserved, one.length)
            if token.finish:
                del self.running[token.sequence]
        self.tokens += len(tokens)
        if tokens:
            now = time.monotonic()
            self._recent.append((now, len(tokens)))
            while now - self._recent[0][0] > RATE_WINDOW_S:
                self._recent.popleft()
        return items

    def tokens_per_s(self) -> float:
        """Return the rate over the last seconds."""
        now = time.monotonic()
        recent = [(at, count) for at, count in self._recent if now - at <= RATE_WINDOW_S]
        span = now - recent[0][0] if recent else 0.0
        return round(sum(count for _, count in recent) / max(span, 1e-3), 2) if span else 0.0

    def used(self) -> int:
        """Return the tokens of memory that the batch and the prompt caches use."""
        return self.cache.tokens + _padded(one.reserved for one in list(self.running.values()))

    def _remove(self, plan: Plan, sequence: int) -> None:
        """Remove a running sequence; its cache may be useful for the conversation's next turn."""
        plan.remove.append(sequence)
        del self.running[sequence]

    def _keep(self, sequence: int, cached: CachedPrompt, *, boundary: bool) -> None:
        """Keep a cache with the next plan; the batch has it until then."""
        if (sequence, boundary) in self._settled:
            return
        self._settled.add((sequence, boundary))
        if sequence not in self._uncached:
            self._settling.append((sequence, cached, boundary))
        elif not boundary:
            self._uncached.remove(sequence)

    def _settle(self, plan: Plan) -> None:
        """Add the caches of the last step to the prompt cache."""
        for sequence, cached, boundary in self._settling:
            number, dropped = self.cache.add(cached.tokens, trimmable=cached.trimmable)
            plan.drop += dropped
            if number is not None:
                plan.keep.append((sequence, number, boundary))
        self._settling.clear()
        self._settled.clear()

    def _make_room(self, plan: Plan) -> list[tuple[Stream, Item]]:
        """If the answers exceed the memory, drop cached prompts, then end the newest answers."""
        capacity = self.limits.capacity
        errors: list[tuple[Stream, Item]] = []
        while (need := self._length()) > capacity:
            sequence = max(self.running)
            error = RequestError(
                "memory_full",
                f"KV-cache memory ran out: {len(self.running)} sequences, each as long as the longest, need "
                f"{need} tokens of memory, but the capacity of these ranks is {capacity}",
                retry_after=10,
            )
            errors.append((self.running[sequence].stream, error))
            self._remove(plan, sequence)
        plan.drop += self.cache.shrink(max(0, capacity - self._length(AHEAD)))
        return errors

    def _admit(self, plan: Plan) -> None:
        """Admit the oldest waiting request."""
        stream = self.waiting.popleft()
        request, need, together = stream.request, _need(stream), self._memory_with(stream)
        match = self.cache.find(request.prompt) if request.use_cache else None
        plan.drop += self.cache.shrink(self.limits.capacity - together)
        used = match.length if match else 0
        add = AddSequence(
            next(self._sequences),
            list(request.prompt[used:]),
            request.max_tokens,
            (match.number, match.length, match.trim) if match else None,
            max(0, request.boundary - used),
            request.ignore_eos,
        )
        if not request.use_cache:
            self._uncached.add(add.sequence)
        stream.cached_tokens = used
        stream.admitted = time.perf_counter()
        self.running[add.sequence] = Running(stream, add, need, len(request.prompt))
        self.hits += used
        self.lookups += len(request.prompt)
        self.prompt_tokens += len(add.prompt)
        plan.add.append(add)


def _need(stream: Stream) -> int:
    return len(stream.request.prompt) + min(stream.request.max_tokens, RESERVE)


def _padded(lengths: Iterable[int]) -> int:
    """Return the tokens of a batch of sequences: mlx-lm pads each to the longest."""
    rows = list(lengths)
    return len(rows) * max(rows, default=0)
