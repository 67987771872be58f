"""The engine on rank 0: the only module that steps a model to generate text.

Callers pass requests to `submit` (from an event loop, while `run` steps on the model's thread) or to
`generate` (on the model's thread, which steps until they have ended); each has one stream of typed chunks.
The engine sends plans to the workers, applies them here and feeds the tokens to their streams; without
changes all ranks step on without a plan. It uses no CPU while idle. Knows no protocol.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaccl_kernel.inference.channel import Message
from jaccl_kernel.inference.control import Leader
from jaccl_kernel.inference.grammar import Grammars
from jaccl_kernel.inference.plan import AddSequence, Executor, Plan
from jaccl_kernel.inference.request import Chunk, Request, RequestError
from jaccl_kernel.inference.sampling import Row, Sampler
from jaccl_kernel.inference.scheduler import Limits, Scheduler
from jaccl_kernel.inference.stream import Item, Stream
from jaccl_kernel.inference.text import Assembler

BLAME_S = 1.0  # a failed step waits this long for another rank's failure, before it is rank 0's own
DIGESTS = 512  # steps whose digest rank 0 keeps, to compare with a worker's


class Engine:
    """Rank 0's engine. `run`, `step` and `generate` belong to the thread that loaded the model.

    Args:
        executor: this rank's batch.
        sampler: the batch's sampler.
        tokenizer: mlx-lm's TokenizerWrapper, for requests with TextOptions; None if there are none.
        grammars: creates masks for grammars; None if no request has one.
        control: the control plane to the workers, or None for one rank alone.
        limits: the admission limits.
        names: the ranks' nodes, for reports.
    """

    def __init__(
        self,
        executor: Executor,
        sampler: Sampler,
        tokenizer: Any = None,
        grammars: Grammars | None = None,
        *,
        control: Leader | None = None,
        limits: Limits | None = None,
        names: Sequence[str] = ("",),
    ) -> None:
        self.scheduler = Scheduler(limits or Limits())
        self.failed: dict[int, str] = {}  # rank -> why it is down
        self.on_failed: Callable[[int, str], None] = lambda rank, why: None
        self.on_recovered: Callable[[int], None] = lambda rank: None
        self.state = "starting"
        self.busy_since: float | None = None  # when the current step started, by time.monotonic
        self._executor = executor
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._control: Leader | None = None
        self._names = list(names)
        self._wake = threading.Condition()
        self._stopping = False
        self._digests: dict[int, int] = {0: 0}
        self.attach(control)

    def attach(self, control: Leader | None) -> None:
        """Use this control plane from now on; None for one rank alone."""
        self._control = control
        self.failed.clear()
        if control:
            control.on_lost = self._lost
            control.on_found = self._recovered
            control.on_message = self._received

    # requests

    def submit(self, request: Request) -> Stream:
        """Queue a request; on the event loop that reads its stream, while `run` steps on its own thread.

        Raises:
            RequestError: it cannot fit into memory, the queue is full, or the engine is not ready.
        """
        with self._wake:
            if self.state != "ready":
                raise RequestError("not_ready", f"the server is not ready: {self._stage()}", retry_after=10)
            stream = self._queue(request, asyncio.get_running_loop())
            self._wake.notify()
            return stream

    def cancel(self, stream: Stream) -> None:
        """Remove a request from the queue now, or from the batch at the next step. Harmless after its end."""
        with self._wake:
            if self.scheduler.cancel(stream):
                self._wake.notify()

    def generate(
        self, *requests: Request, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Chunk]]:
        """Step until all these requests have ended, on this thread: each chunk with its request's number.

        Args:
            requests: run together in one batch.
            stopping: called after each step; when it is true, every stream ends with the reason "stopped".

        Raises:
            RequestError: a request cannot be served, or a rank failed.
        """
        reading: dict[int, Stream] = {}
        try:
            for number, request in enumerate(requests):
                reading[number] = self._queue(request, None)
            while reading:
                if not self.failed:
                    self._step_or_fail()
                stop = stopping()
                for number, stream in list(reading.items()):
                    for chunk in stream.stop() if stop else stream.read():
                        yield number, chunk
                    if stream.finished:
                        del reading[number]
        finally:
            for stream in reading.values():
                self.cancel(stream)
            while self.scheduler.has_work() and not self.failed:  # settle their caches
                self._step_or_fail()
            self.busy_since = None

    def _queue(self, request: Request, loop: asyncio.AbstractEventLoop | None) -> Stream:
        assembler = Assembler(self._tokenizer, request.text) if request.text else None
        stream = Stream(request, assembler, self.cancel, loop)
        with self._wake:
            if self.failed:
                raise RequestError("failed", self._stage())
            self.scheduler.submit(stream)
        return stream

    # stepping

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Step the batch until `stop`; an error of a step fails every stream and is raised.

        `on_ready` is called once requests are accepted.
        """
        with self._wake:
            if not self.failed:
                self.state = "ready"
        on_ready()
        try:
            while self._wait_for_work():
                self._step_or_fail()
            while not (self._executor.needs_plan or self.failed):  # the workers step on until then
                self._step_or_fail()
        finally:
            self.busy_since = None

    def _step_or_fail(self) -> None:
        """Run one step; an error fails the engine, so that no later step enters a broken collective."""
        try:
            self.step()
        except Exception as error:
            if not self._another_failed():
                self.fail(0, f"{type(error).__name__}: {error}")
            raise

    def step(self) -> None:
        """Step once, after a plan if one was announced or needed, and feed the tokens to their streams."""
        self.busy_since = time.monotonic()
        planned = self._executor.needs_plan or not self._control
        plan = self._plan() if planned else None
        with self._wake:
            pending = self._sampler.announce and not planned  # that plan follows, with all that waits now
            wanted = self._stopping or self.scheduler.wants_plan()
            self._sampler.announce = not self._control or (wanted and not pending)
        tokens = self._executor.apply(plan, self._known) if plan else self._executor.step()
        steps, digest = self._executor.mark
        self._digests[steps] = digest
        self._digests.pop(steps - DIGESTS, None)
        for token in tokens:
            if token.finish:
                self._sampler.rows.pop(token.sequence, None)
        with self._wake:
            items = self.scheduler.take(tokens, self._executor.batch)
        self._feed(items)

    def _plan(self) -> Plan:
        """Create the next plan and send it to the workers."""
        with self._wake:
            plan, errors = self.scheduler.plan()
        for sequence in plan.remove:
            self._sampler.rows.pop(sequence, None)
        self._feed([*errors, *self._add_rows(plan)])
        if self._control:
            self._control.send(plan.to_json())
        return plan

    def _known(self, add: AddSequence) -> Sequence[int]:
        request = self.scheduler.running[add.sequence].stream.request
        return request.prompt[: add.cache[1]] if add.cache else ()

    def _add_rows(self, plan: Plan) -> list[tuple[Stream, Item]]:
        """Create the rows of the additions, outside the lock: a grammar can be slow. Returns failures."""
        errors: list[tuple[Stream, Item]] = []
        for add in list(plan.add):
            stream = self.scheduler.running[add.sequence].stream
            try:
                self._sampler.rows[add.sequence] = self._row(stream.request)
            except RequestError as error:
                errors.append((stream, error))
                with self._wake:
                    self.scheduler.refuse(plan, add)
        return errors

    def _row(self, request: Request) -> Row:
        mask = None
        if request.grammar:
            if self._grammars is None:
                raise RequestError("invalid", "this engine does not support grammars", field="grammar")
            mask = self._grammars.mask(request.grammar)
        return Row(request.sampling, request.prompt, request.top_logprobs, mask)

    def _feed(self, items: Sequence[tuple[Stream, Item]]) -> None:
        """Feed items to their streams, on their event loops: one call per step and loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = {}
        for stream, item in items:
            if stream.loop is None:
                stream.feed(item)
            else:
                loops.setdefault(stream.loop, []).append((stream, item))
        for loop, some in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_feed_all, some)

    def _wait_for_work(self) -> bool:
        """Wait for work; returns False to stop."""
        with self._wake:
            # a step without one of the ranks would hang or fail
            while not self._stopping and (self.failed or not self.scheduler.has_work()):
                self.busy_since = None
                self._wake.wait()
            return not self._stopping

    # stopping and failing

    def stop(self, why: str = "the server is stopping") -> None:
        """End every stream with an error, and `run` after its current step. From any thread."""
        self._fail_streams(why)
        with self._wake:
            self._stopping = True
            self.state = "failed" if self.failed else "stopping"
            self._wake.notify()

    def fail(self, rank: int, why: str) -> None:
        """Mark a rank as down: open streams end, and new requests are rejected. From any thread."""
        with self._wake:
            known = rank in self.failed
            self.failed[rank] = why
            self.state = "failed"
        self._fail_streams(f"{self._name(rank)} failed: {why}")
        if not known:
            self.on_failed(rank, why)

    def _another_failed(self) -> bool:
        """Return whether another rank's failure caused this one; the control plane may report it later."""
        with self._wake:
            return self._wake.wait_for(lambda: bool(self.failed), BLAME_S if self._control else 0)

    def _fail_streams(self, why: str) -> None:
        error = RequestError("failed", why, retry_after=10)
        with self._wake:
            streams = self.scheduler.cancel_all()
            self._wake.notify()
        self._feed([(stream, error) for stream in streams])

    def _lost(self, rank: int, why: str, for_good: bool) -> None:
        del for_good  # a rank that recovers is reported to `_recovered`
        self.fail(rank, why)

    def _recovered(self, rank: int) -> None:
        """Continue after a rank sends heartbeats again, unless another rank is down."""
        with self._wake:
            self.failed.pop(rank, None)
            if not self.failed and not self._stopping:
                self.state = "ready"
                self._wake.notify()
                self.on_recovered(rank)

    def _received(self, rank: int, message: Message) -> None:
        if "error" in message:
            self.fail(rank, str(message["error"]))
        elif "beat" in message:
            steps, digest = message["beat"]["mark"]
            if self._digests.get(steps, digest) != digest:
                self.fail(rank, f"its tokens differ from rank 0's since step {steps} or before")

    # status

    def status(self) -> dict[str, Any]:
        """Return the engine's state as JSON types.

        Keys: `state` ("starting", "ready", "failed", "stopping"), `stage` (text: the current activity or the
        failure), `running`, `queued`, `steps` (since the start), `tokens` (generated), `prompt_tokens`,
        `tokens_per_s` (of the last seconds), `cache` {`entries`, `bytes`, `limit_bytes`, `hit_tokens`,
        `lookup_tokens`}, `memory` {`limit_bytes`, `active_bytes`}, `busy_s`, `ranks`: a list of {`rank`,
        `name`, `alive`, `step_ms`, `memory_bytes`, `peak_memory_bytes`, `mark`}.
        """
        scheduler, limits = self.scheduler, self.scheduler.limits
        with self._wake:
            tokens_per_s = scheduler.tokens_per_s()
        return {
            "state": self.state,
            "stage": self._stage(),
            "running": len(scheduler.running),
            "queued": len(scheduler.waiting),
            "steps": self._executor.mark[0],
            "tokens": scheduler.tokens,
            "prompt_tokens": scheduler.prompt_tokens,
            "tokens_per_s": tokens_per_s,
            "cache": {
                "entries": len(scheduler.cache),
                "bytes": int(scheduler.cache.tokens * limits.token_bytes),
                "limit_bytes": int(scheduler.cache.limit * limits.token_bytes),
                "hit_tokens": scheduler.hits,
                "lookup_tokens": scheduler.lookups,
            },
            "memory": {
                "limit_bytes": int(limits.capacity * limits.token_bytes),
                "active_bytes": int(scheduler.used() * limits.token_bytes),
            },
            "busy_s": round(time.monotonic() - self.busy_since, 3) if self.busy_since else 0.0,
            "ranks": self._ranks(),
        }

    def _ranks(self) -> list[dict[str, Any]]:
        beats = {0: self._executor.status()}
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


def _feed_all(items: Sequence[tuple[Stream, Item]]) -> None:
    for stream, item in items:
        stream.feed(item)
