"""The engine: one batch on all ranks, stepped together by rank 0's plans.

Rank 0 (`Engine`) takes generations from the API, decides who is in the batch, which prompt cache serves whom
and which is dropped, tells the workers so before each step, and hands the tokens on. A worker (`follow`)
applies what it is told. Both drive the same `Share`, so a plan does the same everywhere. With nothing to do
both wait without using the CPU. Knows no HTTP and no text.
"""

import asyncio
import itertools
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from jaccl_kernel.server.batch import Batch, Held, Token
from jaccl_kernel.server.cache import CacheIndex
from jaccl_kernel.server.channel import Message
from jaccl_kernel.server.control import Follower, Leader
from jaccl_kernel.server.generation import Generation, ServerError, Step, Stream
from jaccl_kernel.server.grammar import Grammars
from jaccl_kernel.server.sampling import Chooser, Row

RESERVE = 2048  # tokens of an answer that memory is set aside for; few answers are longer
RATE_WINDOW_S = 5.0
STEP_WEIGHT = 0.1  # of the newest step in the running mean of step times
BLAME_S = 1.0  # how long a failed step waits for the news that another rank is gone, before blaming rank 0
DIGESTS = 512  # steps for which rank 0 remembers its digest, to compare a worker's


@dataclass(frozen=True)
class Add:
    """A sequence that joins the batch."""

    sequence: int
    prompt: list[int]  # what is not in the cache
    max_tokens: int
    cache: tuple[int, int, int] | None = None  # (number, tokens used, tokens to trim)
    boundary: int = 0


@dataclass
class Plan:
    """What every rank does before its next step, in this order: keep, remove, add, drop; then step or not."""

    remove: list[int] = field(default_factory=list)
    keep: list[tuple[int, int, bool]] = field(default_factory=list)  # (sequence, as number, from a boundary)
    drop: list[int] = field(default_factory=list)
    add: list[Add] = field(default_factory=list)
    step: bool = True

    def to_json(self) -> Message:
        """As it goes over the control plane."""
        return {
            "remove": self.remove,
            "keep": self.keep,
            "drop": self.drop,
            "add": [[one.sequence, one.prompt, one.max_tokens, one.cache, one.boundary] for one in self.add],
            "step": self.step,
        }

    @classmethod
    def from_json(cls, message: Message) -> "Plan":
        """The same plan on the other side."""
        return cls(
            message["remove"],
            [(sequence, number, boundary) for sequence, number, boundary in message["keep"]],
            message["drop"],
            [
                Add(sequence, prompt, limit, tuple(cache) if cache else None, boundary)
                for sequence, prompt, limit, cache, boundary in message["add"]
            ],
            message["step"],
        )


class Share:
    """One rank's part: its batch, its share of the kept caches, and a digest of all tokens so far."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.kept: dict[int, Held] = {}
        self.mark = (0, 0)  # steps so far, and a digest of all their tokens
        self.step_ms = 0.0

    def apply(self, plan: Plan, known: Callable[[Add], Sequence[int]] = lambda add: ()) -> list[Token]:
        """Do what the plan says; the tokens of its step. `known` tells which tokens an Add's cache holds."""
        for sequence, number, boundary in plan.keep:
            self.kept[number] = (self.batch.passed if boundary else self.batch.held)[sequence]
        # what no plan kept is let go
        self.batch.held.clear()
        self.batch.passed.clear()
        for sequence in plan.remove:
            self.batch.remove(sequence)
        for add in plan.add:
            cache = None
            if add.cache:
                number, _, trim = add.cache
                cache = self.kept[number].copied(trim)
            self.batch.add(
                add.sequence, add.prompt, add.max_tokens, known=known(add), cache=cache, boundary=add.boundary
            )
        for number in plan.drop:  # after the adds: one of them may still have begun with it
            del self.kept[number]
        return self._step() if plan.step else []

    def _step(self) -> list[Token]:
        began = time.perf_counter()
        tokens = self.batch.step()
        steps, digest = self.mark
        for one in tokens:
            digest = zlib.crc32(b"%d %d " % (one.sequence, one.token), digest)
        self.mark = (steps + 1, digest)
        took = (time.perf_counter() - began) * 1e3
        self.step_ms += STEP_WEIGHT * (took - self.step_ms) if self.step_ms else took
        return tokens

    def clear(self) -> None:
        """Let go of every sequence and kept cache; the model stays."""
        self.apply(Plan(remove=self.batch.sequences(), step=False))
        self.kept.clear()
        self.batch.held.clear()
        self.mark = (0, 0)

    def status(self) -> Message:
        """What a heartbeat says of this rank."""
        return {
            "mark": self.mark,
            "step_ms": round(self.step_ms, 3),
            "memory_bytes": mx.get_active_memory(),
            "peak_memory_bytes": mx.get_peak_memory(),
        }


def follow(share: Share, control: Follower) -> None:
    """A worker's life: apply plans until told to stop. An error of its own is told to rank 0, and raised."""
    while "stop" not in (message := control.receive()):
        try:
            share.apply(Plan.from_json(message))
        except Exception as error:
            control.send({"error": f"{type(error).__name__}: {error}"})
            raise


@dataclass
class Running:
    """A generation in the batch."""

    stream: Stream
    add: Add
    reserved: int  # tokens that memory is set aside for, at the least what it has
    length: int  # tokens that it has, its prompt's included
    cancelled: bool = False


@dataclass(frozen=True)
class Limits:
    """What the engine takes on.

    Args:
        max_sequences: in the batch at once.
        max_queue: waiting for a place in it; more are refused with 429.
        capacity: tokens that fit the memory of every rank, prompt caches included. A batch takes as many as
            its longest sequence for each of its rows: mlx-lm pads the others.
        cache: tokens of prompt caches to keep at most.
        token_bytes: what a token costs on rank 0, for reports.
    """

    max_sequences: int = 32
    max_queue: int = 128
    capacity: int = 1 << 40
    cache: int = 1 << 16
    token_bytes: float = 0.0


class Engine:
    """Rank 0's engine. `run` belongs to the thread that loaded the model; the rest to the event loop's.

    Args:
        share: this rank's part.
        chooser: what its batch chooses tokens with.
        grammars: makes masks for grammars.
        control: the way to the workers, or None for one rank alone.
        limits: what it takes on.
        names: the ranks' nodes, for reports.
    """

    def __init__(
        self,
        share: Share,
        chooser: Chooser,
        grammars: Grammars,
        *,
        control: Leader | None = None,
        limits: Limits | None = None,
        names: Sequence[str] = ("",),
    ) -> None:
        self.limits = limits or Limits()
        self.cache = CacheIndex(self.limits.cache)
        self.failed: dict[int, str] = {}  # rank -> why it is not with us
        self.on_failed: Callable[[int, str], None] = lambda rank, why: None
        self.on_found: Callable[[int], None] = lambda rank: None
        self.state = "starting"
        self.busy_since: float | None = None  # when the present step was begun, by time.monotonic
        self._share = share
        self._chooser = chooser
        self._grammars = grammars
        self._control = control
        self._names = list(names)
        self._wake = threading.Condition()
        self._waiting: deque[Stream] = deque()
        self._cancelled: set[Stream] = set()
        self._running: dict[int, Running] = {}
        self._settling: list[tuple[int, Held, bool]] = []  # (sequence, its cache, at its boundary?)
        self._sequences = itertools.count()
        self._stopping = False
        self._tokens = self._prompt_tokens = self._hits = self._lookups = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._digests: dict[int, int] = {0: 0}
        if control:
            control.on_lost = self._lost
            control.on_found = self._found
            control.on_message = self._told

    # what the API calls

    def submit(self, generation: Generation) -> Stream:
        """Queue a generation (see generation.Engine)."""
        stream = Stream(generation)
        need = len(generation.prompt) + min(generation.max_tokens, RESERVE)
        if need > self.limits.capacity:
            raise ServerError(
                400,
                f"{need} tokens would not fit the memory of these ranks, which holds {self.limits.capacity}",
                code="context_length_exceeded",
                param="max_tokens" if len(generation.prompt) < self.limits.capacity else "messages",
            )
        with self._wake:
            self._refuse_if_down()
            if len(self._waiting) >= self.limits.max_queue:
                raise ServerError(
                    429,
                    f"{len(self._waiting)} requests are waiting already",
                    kind="rate_limit_error",
                    code="queue_full",
                    retry_after=5,
                )
            self._waiting.append(stream)
            self._wake.notify()
        return stream

    def cancel(self, stream: Stream) -> None:
        """Leave the queue now, or the batch at the next step."""
        with self._wake:
            if stream in self._waiting:
                self._waiting.remove(stream)
            elif any(one.stream is stream for one in self._running.values()):
                self._cancelled.add(stream)
                self._wake.notify()

    def status(self) -> dict[str, Any]:
        """What is going on (see generation.Engine)."""
        now = time.monotonic()
        with self._wake:
            recent = [(at, count) for at, count in self._recent if now - at <= RATE_WINDOW_S]
        span = now - recent[0][0] if recent else 0.0
        return {
            "state": self.state,
            "stage": self._stage(),
            "running": len(self._running),
            "queued": len(self._waiting),
            "steps": self._share.mark[0],
            "tokens": self._tokens,
            "prompt_tokens": self._prompt_tokens,
            "tokens_per_s": round(sum(count for _, count in recent) / max(span, 1e-3), 2) if span else 0.0,
            "cache": {
                "entries": len(self.cache),
                "bytes": int(self.cache.tokens * self.limits.token_bytes),
                "limit_bytes": int(self.cache.limit * self.limits.token_bytes),
                "hit_tokens": self._hits,
                "lookup_tokens": self._lookups,
            },
            "memory": {
                "limit_bytes": int(self.limits.capacity * self.limits.token_bytes),
                "active_bytes": int(self._used() * self.limits.token_bytes),
            },
            "busy_s": round(now - self.busy_since, 3) if self.busy_since else 0.0,
            "ranks": self._ranks(),
        }

    # the engine's own thread

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Step the batch until `stop`; an error of a step fails every stream and is raised.

        `on_ready` is called once requests are taken.
        """
        with self._wake:
            if not self.failed:
                self.state = "ready"
        on_ready()
        try:
            while self._wait_for_work():
                self._round()
        except Exception as error:
            if not self._another_failed():
                self.fail(0, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.busy_since = None

    def _another_failed(self) -> bool:
        """Whether a step failed as another rank is gone: the step may know it before the control."""
        with self._wake:
            return self._wake.wait_for(lambda: bool(self.failed), BLAME_S if self._control else 0)

    def stop(self, why: str = "the server is stopping") -> None:
        """End every stream with an error and let `run` return after its present step. From any thread."""
        self._fail_streams(why)
        with self._wake:
            self._stopping = True
            self.state = "failed" if self.failed else "stopping"
            self._wake.notify()

    def fail(self, rank: int, why: str) -> None:
        """A rank is not with us any more: open streams end, no request is taken. From any thread."""
        with self._wake:
            known = rank in self.failed
            self.failed[rank] = why
            self.state = "failed"
        self._fail_streams(f"{self._name(rank)} failed: {why}")
        if not known:
            self.on_failed(rank, why)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when it is time to stop."""
        with self._wake:
            # a step with a rank missing would not end, or end badly
            while not self._stopping and (self.failed or not self._has_work()):
                self.busy_since = None
                self._wake.wait()
            return not self._stopping

    def _has_work(self) -> bool:
        return bool(self._waiting or self._running or self._settling)

    def _round(self) -> None:
        """One plan: told to the workers, applied here, its tokens handed on."""
        self.busy_since = time.monotonic()
        with self._wake:
            plan = self._plan()
        self._seat(plan)
        plan.step = bool(self._running)
        if self._control:
            self._control.send(plan.to_json())
        tokens = self._share.apply(plan, lambda add: self._known(add))
        steps, digest = self._share.mark
        self._digests[steps] = digest
        self._digests.pop(steps - DIGESTS, None)
        with self._wake:
            items = self._take(plan, tokens)
        self._feed(items)

    def _known(self, add: Add) -> Sequence[int]:
        stream = self._running[add.sequence].stream
        return stream.generation.prompt[: add.cache[1]] if add.cache else ()

    def _plan(self) -> Plan:
        plan = Plan()
        for sequence, one in list(self._running.items()):
            if one.stream in self._cancelled or one.cancelled:
                self._leave(plan, sequence)
        self._cancelled.clear()
        for sequence, held, boundary in self._settling:
            number, dropped = self.cache.add(held.tokens, trimmable=held.trimmable)
            plan.drop += dropped
            if number is not None:
                plan.keep.append((sequence, number, boundary))
        self._settling.clear()
        self._make_room(plan)
        while self._waiting and len(self._running) < self.limits.max_sequences:
            if not self._admit(plan):
                break
        return plan

    def _leave(self, plan: Plan, sequence: int) -> None:
        """Take a running sequence out; its cache may serve the conversation's next turn."""
        plan.remove.append(sequence)
        del self._running[sequence]
        self._chooser.rows.pop(sequence, None)

    def _make_room(self, plan: Plan) -> None:
        """Answers may outgrow what was set aside: drop kept caches for them, then the youngest of them."""
        capacity = self.limits.capacity
        while (need := _padded(one.length for one in self._running.values())) > capacity:
            sequence = max(self._running)
            error = ServerError(
                503,
                f"this answer was ended: {len(self._running)} sequences as long as the longest take {need} "
                f"tokens of memory, and these ranks hold {capacity}",
                kind="server_error",
                code="memory_full",
                retry_after=10,
            )
            self._feed([(self._running[sequence].stream, error)])
            self._leave(plan, sequence)
        plan.drop += self.cache.shrink(capacity - need)

    def _admit(self, plan: Plan) -> bool:
        """Let the longest waiting one in, if its memory is there."""
        generation = self._waiting[0].generation
        need = len(generation.prompt) + min(generation.max_tokens, RESERVE)
        together = _padded([need, *(one.reserved for one in self._running.values())])
        if together > self.limits.capacity:
            return False
        found = self.cache.find(generation.prompt)
        plan.drop += self.cache.shrink(self.limits.capacity - together)
        stream = self._waiting.popleft()
        sequence = next(self._sequences)
        used = found.length if found else 0
        add = Add(
            sequence,
            list(generation.prompt[used:]),
            generation.max_tokens,
            (found.number, found.length, found.trim) if found else None,
            max(0, generation.boundary - used),
        )
        stream.cached_tokens = used
        stream.admitted = time.perf_counter()
        self._running[sequence] = Running(stream, add, need, len(generation.prompt))
        self._hits += used
        self._lookups += len(generation.prompt)
        self._prompt_tokens += len(add.prompt)
        plan.add.append(add)
        return True

    def _seat(self, plan: Plan) -> None:
        """Give the newcomers their rows; not under the lock, as a grammar can take a while to make."""
        for add in list(plan.add):
            stream = self._running[add.sequence].stream
            try:
                self._chooser.rows[add.sequence] = self._row(stream.generation)
            except ServerError as error:
                self._feed([(stream, error)])
                with self._wake:
                    del self._running[add.sequence]
                plan.add.remove(add)

    def _row(self, generation: Generation) -> Row:
        mask = self._grammars.mask(generation.grammar) if generation.grammar else None
        return Row(generation.sampling, generation.prompt, generation.top_logprobs, mask)

    def _take(self, plan: Plan, tokens: Sequence[Token]) -> list[tuple[Stream, Step | ServerError]]:
        """Book a step's tokens, and which caches it left to be kept; what to hand on."""
        items: list[tuple[Stream, Step | ServerError]] = []
        for one in tokens:
            running = self._running[one.sequence]
            logprob, top = one.report.read() if one.report else (None, ())
            if not running.cancelled:
                items.append((running.stream, Step(one.token, one.finish, logprob, top)))
            running.length += 1
            running.reserved = max(running.reserved, running.length)
            if one.finish:
                del self._running[one.sequence]
                self._chooser.rows.pop(one.sequence, None)
        batch = self._share.batch
        self._settling += [(sequence, held, False) for sequence, held in batch.held.items()]
        # where a prefix can be cut from the whole, that serves better
        self._settling += [(number, one, True) for number, one in batch.passed.items() if not one.trimmable]
        self._tokens += len(tokens)
        if tokens:
            now = time.monotonic()
            self._recent.append((now, len(tokens)))
            while now - self._recent[0][0] > RATE_WINDOW_S:
                self._recent.popleft()
        return items

    # failing, and telling

    def _feed(self, items: Sequence[tuple[Stream, Step | ServerError]]) -> None:
        """Hand items to their streams, on their event loops: one call for all of a step."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Step | ServerError]]] = {}
        for stream, item in items:
            loops.setdefault(stream.loop, []).append((stream, item))
        for loop, mine in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_feed_all, mine)

    def _fail_streams(self, why: str) -> None:
        error = ServerError(503, why, kind="server_error", code="engine_failed", retry_after=10)
        with self._wake:
            streams = [*self._waiting, *(one.stream for one in self._running.values())]
            self._waiting.clear()
            for one in self._running.values():
                one.cancelled = True
            self._wake.notify()
        self._feed([(stream, error) for stream in streams])

    def _refuse_if_down(self) -> None:
        if self.state == "ready":
            return
        raise ServerError(
            503,
            f"the server is not ready: {self._stage()}",
            kind="server_error",
            code="not_ready",
            retry_after=10,
        )

    def _lost(self, rank: int, why: str, for_good: bool) -> None:
        del for_good  # who comes back is told by `_found`; who is gone for good never is
        self.fail(rank, why)

    def _found(self, rank: int) -> None:
        """A silent rank speaks again: go on, unless it or another is gone for good."""
        with self._wake:
            self.failed.pop(rank, None)
            if not self.failed and not self._stopping:
                self.state = "ready"
                self._wake.notify()
                self.on_found(rank)

    def _told(self, rank: int, message: Message) -> None:
        if "error" in message:
            self.fail(rank, str(message["error"]))
        elif "beat" in message:
            steps, digest = message["beat"]["mark"]
            if self._digests.get(steps, digest) != digest:
                self.fail(rank, f"its tokens differ from rank 0's since step {steps} or before")

    def _ranks(self) -> list[dict[str, Any]]:
        beats = {0: self._share.status()}
        if self._control:
            beats |= {rank: worker.beat for rank, worker in self._control.workers.items()}
        return [
            {
                "rank": rank,
                "name": self._names[rank],
                "alive": rank not in self.failed,
                **{key: beat.get(key, 0) for key in ("step_ms", "memory_bytes", "peak_memory_bytes")},
                "mark": beat.get("mark"),
            }
            for rank, beat in sorted(beats.items())
        ]

    def _stage(self) -> str:
        if self.failed:
            return "; ".join(f"{self._name(rank)} failed: {why}" for rank, why in sorted(self.failed.items()))
        return {"ready": "serving", "stopping": "stopping"}.get(self.state, "starting")

    def _name(self, rank: int) -> str:
        name = self._names[rank] if rank < len(self._names) else ""
        return f"rank {rank} ({name})" if name else f"rank {rank}"

    def _used(self) -> int:
        return self.cache.tokens + _padded(one.reserved for one in list(self._running.values()))


def _padded(lengths: Iterable[int]) -> int:
    """Tokens that a batch of sequences takes: mlx-lm pads each to the longest."""
    every = list(lengths)
    return len(every) * max(every, default=0)


def _feed_all(items: Sequence[tuple[Stream, Step | ServerError]]) -> None:
    for stream, item in items:
        stream.feed(item)
