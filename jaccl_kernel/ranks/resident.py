"""A resident rank: an ipyparallel engine; cells, prompts, benchmarks and a server share one loaded model.

It joins and proves the group like any rank, then connects to the controller. Cells run in the main thread,
one after another; the host's calls (`core/messages.py`) run there too, on all ranks at once. Prompts and
benchmarks are requests to the inference engine: rank 0 steps it, the other ranks follow its plans. Stages and
chunks of an answer are sent to the host as events, in order; ipyparallel carries what a call returns.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

import ipyparallel.engine.app as engines
import mlx.core as mx

from jaccl_kernel.core import messages
from jaccl_kernel.core.codec import decode
from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import AnswerChunk, AnswerEnd, BenchResult, Done
from jaccl_kernel.core.options import BenchProgram, ResidentProgram, ServeProgram
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.core.results import (
    BatchResult,
    BatchTimes,
    CollectivesResult,
    LoadResult,
    NeedleResult,
    Reference,
)
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.host_channel import Link

CONNECT_S = 60.0  # from the join until the host sends the controller's address


def run(options: ResidentProgram, *, world: World, group: Any, link: Link, payload: messages.Payload) -> int:
    """Run an engine until the host ends it; exits the process itself."""
    if not link.wired:
        raise JobError("resident ranks need a host", fix="Start them from a notebook: Ranks.start().")
    del options, payload
    connection = link.receive(messages.Connect, deadline=CONNECT_S).connection
    resident = Resident(world, group, link)
    threading.Thread(target=resident.handle_messages, name="jaccl-messages", daemon=True).start()
    # not in the environment of the command line, where other processes could read it
    os.environ["IPP_CONNECTION_INFO"] = json.dumps(connection)
    os.environ.setdefault("IPYTHONDIR", str(cache_dir() / "ipython"))
    engine = engines.IPEngine.instance()
    engine.user_ns = {
        "mx": mx, "group": group, "rank": world.rank, "size": world.size, "jaccl": resident,
        "stopping": resident.interrupt.agreed,
        "_jaccl": resident,  # the host's calls find it here, even if a cell assigns to `jaccl`
    }  # fmt: skip
    engine.initialize(
        [f"--IPEngine.id={world.rank}", "--IPEngine.enable_nanny=False", "--timeout=20", "--log-level=40"]
    )
    del os.environ["IPP_CONNECTION_INFO"]
    link.stage("resident", "ready for cells")
    engine.start()
    return 0


class InterruptState:
    """Whether to stop the present call. Calls are numbered, so a late interrupt does not stop the next call.

    Args:
        group: the mx.distributed.Group, or None for a single rank.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._requested = self._call = 0

    def begin(self, call: int) -> None:
        """A new call begins."""
        self._call = call

    def request(self, call: int) -> None:
        """The host requests a stop of this call. Safe from any thread."""
        self._requested = max(self._requested, call)

    def requested(self) -> bool:
        """Whether this rank has received the request."""
        return self._requested >= self._call

    def agreed(self) -> bool:
        """Whether any rank has: the same value on all ranks, which must all call this at the same point."""
        from jaccl_kernel.inference import agreement

        return agreement.any_rank(self._group, self.requested())


class Resident:
    """One resident rank, and the model on it.

    It is `jaccl` in cells; `jaccl.model` and `jaccl.tokenizer` are the loaded ones.

    Args:
        world, group, link: the arguments of a rank program.
    """

    def __init__(self, world: World, group: Any, link: Link) -> None:
        self.world = world
        self.group = group
        self.link = link
        self.interrupt = InterruptState(group)
        self.model: Any = None
        self.tokenizer: Any = None
        self.sharding = ""
        self._path: Any = None
        self._number = 0  # of the present call
        self._loaded: Any = None  # the model prepared for the engine, once needed
        self._engine: Any = None  # rank 0's
        self._messages: SimpleQueue[messages.Message] = SimpleQueue()  # for the server while it runs

    def handle_messages(self) -> None:
        """Handle the host's messages, on a thread of its own."""
        while True:
            match self.link.next_message():
                case messages.Interrupt(call):
                    self.interrupt.request(call)
                    self._messages.put(messages.Stop())
                case messages.End():
                    self.link.send(Done())
                    self.link.leave(0)
                case message:  # for the server
                    self._messages.put(message)

    def begin(self, number: int) -> None:
        """Begin call or cell number `number`: interrupts of earlier ones do not affect it."""
        self.interrupt.begin(number)
        self._number = number

    def call(self, number: int, call: messages.Call) -> Any:
        """Run what the host asks of all ranks at once."""
        self.begin(number)
        match call:
            case messages.LoadModel(model, sharding):
                return self.load(model, sharding)
            case messages.Prompt(body):
                return self.prompt(body)
            case messages.MeasureBench(options, reference):
                return self.bench(reference, **options)
            case messages.MeasureBatch(batch, prompt_tokens, max_tokens):
                return self.batch(batch, prompt_tokens, max_tokens)
            case messages.MeasureNeedle(prompt_tokens):
                return self.needle(prompt_tokens)
            case messages.MeasureBandwidth():
                return self.bandwidth()
            case messages.MeasureCollectives(sizes, repeats):
                return self.collectives(sizes, repeats)
            case messages.StartServer(payload, options):
                return self.serve(payload, **options)
        raise JobError(f"unknown call {type(call).__name__}", fix="Use one version of jaccl on all nodes.")

    def ask_kernel(self, what: str, code: str, *more: int) -> Any:
        """A reply of this rank's IPython kernel (`do_complete`, `do_inspect`)."""
        from IPython import get_ipython

        return getattr(get_ipython().kernel, what)(code, *more)

    def load(self, model: str, sharding: str = "tensor") -> LoadResult:
        """Load a model unless it is loaded; returns this rank's seconds and bytes."""
        from jaccl_kernel.models.resolve import resolve
        from jaccl_kernel.ranks.loader import load

        path = resolve(model)
        if (path, sharding) == (self._path, self.sharding):
            return LoadResult(0.0, mx.get_active_memory())
        self.unload()
        began = time.perf_counter()
        self.link.stage("load", f"loading {path.name}")
        self.model, self.tokenizer = load(
            path,
            group=self.group,
            sharding=sharding,
            progress=lambda text, fraction: self.link.stage("load", text, fraction),
        )
        self._path, self.sharding = path, sharding
        self.link.stage("resident", f"{path.name} is loaded")
        return LoadResult(time.perf_counter() - began, mx.get_active_memory())

    def unload(self) -> None:
        """Release the model and its memory."""
        if self._loaded:
            self._loaded.executor.batch.close()
        self.model = self.tokenizer = self._loaded = self._engine = self._path = None
        mx.clear_cache()

    def bench(self, reference: Reference | None = None, **options: Any) -> BenchResult | None:
        """Measure the loaded model (see ranks/bench.py, whose options these are)."""
        from jaccl_kernel.ranks import bench

        self._need_model()
        chosen = BenchProgram(model=str(self._path), **options)
        loaded = self._prepared(bench.PREFILL_STEP)
        mx.reset_peak_memory()
        result = bench.measure(
            self.model,
            loaded,
            self._engine,
            chosen,
            reference,
            world=self.world,
            group=self.group,
            link=self.link,
            stopping=self.interrupt.requested,
        )
        self.link.stage("resident", "measured")
        return result

    def batch(self, batch: int, prompt_tokens: int, max_tokens: int) -> BatchResult | None:
        """Time several sequences at once (see bench.measure_batch)."""
        from jaccl_kernel.ranks import bench, energy

        loaded = self._prepared(bench.PREFILL_STEP)
        self.link.stage("measure", f"{batch} sequences of {prompt_tokens} + {max_tokens} tokens")
        mx.reset_peak_memory()
        meter = energy.Meter()
        times = self._with_engine(
            lambda engine: asdict(
                bench.measure_batch(
                    loaded, engine, batch, prompt_tokens, max_tokens, self.interrupt.requested
                )
            )
        )
        if times is None:
            return None
        self.link.stage("resident", "measured")
        peak = mx.get_peak_memory()
        return BatchResult(decode(BatchTimes, times), peak, loaded.token_bytes, meter.read())

    def bandwidth(self) -> float:
        """This rank's memory bandwidth in bytes per second, while the other ranks measure theirs."""
        from jaccl_kernel.ranks import bandwidth

        return bandwidth.bandwidth()

    def collectives(self, sizes: tuple[int, ...], repeats: int = 0) -> CollectivesResult:
        """Time the group's collectives (see ranks/collectives.py)."""
        from jaccl_kernel.ranks import collectives

        return collectives.measure(self.group, self.world, self.link, sizes, repeats, self.interrupt.agreed)

    def prompt(self, body: dict[str, Any]) -> None:
        """Answer one request of OpenAI's chat (`messages`) or completion (`prompt`) protocol.

        The chunks of the answer are sent to the host as AnswerChunk events, then an AnswerEnd.
        """
        self._prepared()
        self._with_engine(lambda engine: self._stream(engine, body))

    def _stream(self, engine: Any, body: dict[str, Any]) -> None:
        from jaccl_kernel.ranks import prompt

        model = prompt.served(self._loaded, self._path)
        for event in prompt.answer(engine, model, body, self.interrupt.requested):
            self.link.send(AnswerChunk(self._number, event))
        self.link.send(AnswerEnd(self._number))

    def serve(self, payload: messages.Payload, **options: Any) -> None:
        """Serve OpenAI's API with the loaded model until stopped."""
        from mlx_lm.generate import generation_stream

        from jaccl_kernel.ranks import serve

        loaded = self._prepared()
        chosen = ServeProgram(model=str(self._path), **options)
        while not self._messages.empty():  # messages of an earlier call
            self._messages.get()
        loaded.executor.clear()
        try:
            with mx.stream(generation_stream):
                if self.world.rank:
                    serve.work(chosen, self.world, self.group, self.link, loaded)
                else:
                    serve.Service(
                        chosen, self.world, self.group, self.link, payload,
                        loaded=loaded, next_message=self._messages.get,
                    ).run()  # fmt: skip
                loaded.executor.clear()
                mx.synchronize(generation_stream)
        finally:
            self._messages.put(messages.End())
            self._engine = None
        self.link.stage("resident", "the server has stopped")

    def needle(self, prompt_tokens: int) -> NeedleResult | None:
        """Ask for a number that is hidden in a long prompt; whether the answer contains it."""
        from jaccl_kernel.ranks import needle, prompt

        loaded = self._prepared()
        body, number = needle.request(loaded.tokenizer, prompt_tokens)
        self.link.stage("measure", f"a hidden number in {prompt_tokens} tokens")
        model = prompt.served(loaded, self._path)

        def ask(engine: Any) -> dict[str, Any]:
            text, usage = prompt.complete_answer(engine, model, body, self.interrupt.requested)
            return asdict(
                NeedleResult(text, usage.prompt_tokens, usage.generated_tokens, number, number in text)
            )

        result = self._with_engine(ask)
        self.link.stage("resident", "measured")
        return None if result is None else decode(NeedleResult, result)

    def _need_model(self) -> None:
        if self.model is None:
            raise JobError("no model is loaded on these ranks", fix="Load one first: ranks.load(...).")

    def _with_engine(self, work: Callable[[Any], Any]) -> Any:
        """Use the engine, which is created on first use (see control_plane.with_engine)."""
        from jaccl_kernel.ranks.control_plane import with_engine

        return with_engine(self._loaded, self._engine, self.world, self.group, self.link, work)

    def _prepared(self, prefill_step: int | None = None) -> Any:
        """The model prepared for the engine; `prefill_step` prompt tokens per step (None: the server's)."""
        from jaccl_kernel.ranks import serve

        self._need_model()
        defaults = ServeProgram()
        if self._loaded is None:
            self._loaded = serve.prepare_for(defaults, self.model, self.tokenizer, self.group)
            # not by a reference to the model: it would outlive `unload`
            self.link.watch(lambda: self._loaded.executor.mark[0] if self._loaded else 0)
        if self._engine is None and self.world.rank == 0:
            self._engine = self._loaded.engine()
        self._loaded.executor.batch.prefill_step = prefill_step or defaults.prefill_step
        return self._loaded
