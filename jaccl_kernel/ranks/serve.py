"""Serves a model over these ranks: rank 0 answers HTTP, and all step the model (see inference/engine.py).

Until the model is loaded, HTTP answers 503 with the stage. If a worker dies, rank 0 stays up and reports it;
a worker that loses rank 0 exits.
"""

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generation_stream

from jaccl_kernel.api.app import make_app
from jaccl_kernel.api.config import ServedModel, ServerConfig, ServerState
from jaccl_kernel.api.http import Http
from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import Heartbeat, Serving, WorkerDown, WorkerRecovered
from jaccl_kernel.core.messages import End, Message, Payload, Stop, WorkerDied
from jaccl_kernel.core.options import KEY_FILE_ENV, ServeProgram, is_loopback
from jaccl_kernel.inference.control import Leader
from jaccl_kernel.inference.engine import Engine
from jaccl_kernel.inference.loaded import LoadedModel, prepare
from jaccl_kernel.inference.plan import run_worker
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.ranks.control_plane import CONNECT_S, connect, lead
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.host_channel import Link
from jaccl_kernel.ranks.loader import load
from jaccl_kernel.ranks.prompt import DEFAULT_CONTEXT

HEARTBEAT_S = 1.0
MIN_CONTEXT = 256  # tokens; with less, memory is too small to serve
STOP_S = 3.0  # after a stop, how long the engine's present step may take


def run(options: ServeProgram, *, world: World, group: Any, link: Link, payload: Payload) -> int:
    """Load and serve until stopped; 0 after a requested stop."""
    with mx.stream(generation_stream):
        if world.rank:
            return work(options, world, group, link)
        return Service(options, world, group, link, payload).run()


Stage = Callable[[str, str, float | None], None]


def _load(options: ServeProgram, group: Any, stage: Stage) -> tuple[LoadedModel, float]:
    """The model prepared for the engine, and the seconds of its load."""
    path = resolve(options.given_model)
    stage("load", f"loading {path.name}", None)
    began = time.perf_counter()
    model, tokenizer = load(
        path,
        group=group,
        sharding=options.sharding,
        progress=lambda text, fraction: stage("load", text, fraction),
    )
    took = time.perf_counter() - began
    size = mx.get_active_memory() / 1e9
    stage("load", f"loaded {size:.2f} GB in {took:.1f} s ({size / took:.2f} GB/s)", 1.0)
    stage("warm-up", "a few tokens", None)
    return prepare_for(options, model, tokenizer, group), took


def prepare_for(options: ServeProgram, model: Any, tokenizer: Any, group: Any) -> LoadedModel:
    """A loaded model, prepared for the engine with these options."""
    return prepare(
        model,
        tokenizer,
        group,
        max_sequences=options.max_batch,
        prefill_step=options.prefill_step,
        memory_bytes=None if options.memory_gb is None else int(options.memory_gb * 1e9),
    )


def work(
    options: ServeProgram, world: World, group: Any, link: Link, loaded: LoadedModel | None = None
) -> int:
    """Run a worker until rank 0 stops it; `loaded` if the model is already loaded."""
    executor = loaded.executor if loaded else None
    control = connect(group, world, lambda: executor.status() if executor else {"mark": (0, 0)}, link)
    if executor is None:
        executor = _load(options, group, link.stage)[0].executor
    link.stage("serve", "applying the plans of rank 0")
    run_worker(executor, control)
    control.close()
    return 0


class Service:
    """Rank 0 of a server.

    Args:
        options, world, group, link, payload: the arguments of a rank program.
        loaded: the model, if it is already loaded.
        next_message: returns the host's next message; None for the link's.
    """

    def __init__(
        self,
        options: ServeProgram,
        world: World,
        group: Any,
        link: Link,
        payload: Payload,
        *,
        loaded: LoadedModel | None = None,
        next_message: Callable[[], Message] | None = None,
    ) -> None:
        self._loaded = loaded
        self._next_message = next_message or link.next_message
        self.options = options
        self.world = world
        self.group = group
        self.link = link
        # a supervisor sends the key or none: the variables are only for plain mlx.launch
        key = payload.api_key if link.wired else _key_of_environment()
        if key is None and not is_loopback(options.host):
            raise JobError(
                f"serving on {options.host} needs an API key",
                where="rank 0",
                fix=f"Write one to a file on rank 0's node and set {KEY_FILE_ENV} to its path, or use --host "
                "127.0.0.1.",
            )
        self.config = ServerConfig(options.host, options.port, key, options.cors_origins)
        self.names = list(payload.names) or [""] * world.size
        self.facts = payload.facts
        self.state = ServerState()
        self._stop_requested = threading.Event()
        self._ended = threading.Event()  # the engine has finished its last step

    def run(self) -> int:
        """Listen, load, serve and stop."""
        with contextlib.ExitStack() as last, lead(self.group, self.world, self.options.ctrl_port) as control:
            http = Http(self.config.host, self.config.port)
            last.callback(http.stop)
            http.start(make_app(self.config, self.state))
            try:
                if control:
                    control.gather(CONNECT_S)
                loaded, load_s = self._model()
                return self._serve(self._engine(loaded, control), loaded, load_s, http)
            finally:
                self._ended.set()

    def _model(self) -> tuple[LoadedModel, float]:
        return (self._loaded, 0.0) if self._loaded else _load(self.options, self.group, self._stage)

    def _stage(self, name: str, text: str = "", fraction: float | None = None) -> None:
        """Report a stage to the host, and to clients until the engine is ready."""
        done = "" if fraction is None else f" ({fraction:.0%})"
        self.state.stage = f"{name}: {text}{done}"
        self.link.stage(name, text, fraction)

    def _engine(self, loaded: LoadedModel, control: Leader | None) -> Engine:
        cache_gb = self.options.cache_gb
        engine = loaded.engine(
            control,
            max_queue=self.options.max_queue,
            cache_bytes=None if cache_gb is None else cache_gb * 1e9,
            names=self.names,
        )
        engine.on_failed = lambda rank, why: self.link.send(WorkerDown(rank, why))
        engine.on_recovered = lambda rank: self.link.send(WorkerRecovered(rank))
        return engine

    def _serve(self, engine: Engine, loaded: LoadedModel, load_s: float, http: Http) -> int:
        path = resolve(self.options.given_model)
        facts = inspect(path)
        name = self.options.alias or path.name
        context = fitting(self.options.context or facts.context or DEFAULT_CONTEXT, loaded.capacity)
        self.state.model = ServedModel(
            name=name,
            tokenizer=loaded.tokenizer,
            context=context,
            vocabulary=loaded.vocabulary,
            facts={
                "model": name,
                "architecture": facts.architecture,
                "parameters": facts.parameters,
                "bytes": facts.bytes,
                "ranks": self.world.size,
                "backend": self.world.backend,
                "topology": self.world.topology,
                "sharding": self.options.sharding if self.world.size > 1 else "none",
                "max_sequences": self.options.max_batch,
                "max_queue": self.options.max_queue,
                "fingerprint": _fingerprint(facts, self.world, self.options.sharding),
                **{name: value for name, value in asdict(self.facts).items() if value is not None},
            },
            needs_boundary=loaded.needs_boundary,
            any_name=self.options.any_model,
        )
        self.state.engine = engine
        for target, arguments in (
            (self._send_heartbeats, (engine,)),
            (self._handle_messages, (engine, http)),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()

        def announce() -> None:
            self.link.stage("serve", http.url)
            self.link.send(Serving(http.url, name, context, round(load_s, 3)))
            if not self.link.wired:
                sys.stdout.write(f"serving {name} at {http.url}/v1 over {self.world.size} ranks\n")
                sys.stdout.flush()

        try:
            engine.run(announce)
        except KeyboardInterrupt:
            engine.stop()
        except Exception:
            if not engine.failed.keys() - {0}:
                raise
            # a worker has died, which ended this step: stay up and report it until stopped
            self._stop_requested.wait()
        return 0

    def _send_heartbeats(self, engine: Engine) -> None:
        """Send the host a heartbeat every second, with the duration of the present step."""
        while not self._ended.wait(HEARTBEAT_S):
            self.link.send(Heartbeat(engine.status()["busy_s"]))

    def _handle_messages(self, engine: Engine, http: Http) -> None:
        """Handle the host's messages."""
        while self.link.wired:
            match self._next_message():
                case WorkerDied(rank, why):
                    engine.fail(rank, why)
                case Stop():
                    engine.stop()
                    self._stop_requested.set()
                    if not self._ended.wait(STOP_S):  # the engine's thread is in a collective
                        http.stop()
                        self.link.finish(0)
                    return
                case End():
                    return


def _key_of_environment() -> str | None:
    """Return the API key of a server without a supervisor; None without one.

    Raises:
        JobError: the file cannot be read, or is empty.
    """
    name = os.environ.get(KEY_FILE_ENV)
    if not name:
        return os.environ.get("JACCL_API_KEY") or None
    fix = f"On rank 0's node: umask 077; mkdir -p ~/.jaccl; openssl rand -hex 24 > {name}"
    try:
        key = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(f"cannot read the API key: {error}", where="rank 0", fix=fix) from error
    if not key:
        raise JobError(f"the API key file is empty: {name}", where="rank 0", fix=fix)
    return key


def fitting(context: int, capacity: int) -> int:
    """The context length in tokens to serve, if memory holds `capacity` tokens.

    Raises:
        JobError: it is too small to serve.
    """
    if capacity < min(MIN_CONTEXT, context):
        raise JobError(
            f"memory holds only {capacity} tokens besides the model, on the rank with the least memory",
            fix="Use more ranks or a smaller (or quantized) model, free memory there, or raise --memory-gb.",
        )
    return max(2, min(context, capacity))


def _fingerprint(model: ModelFacts, world: World, sharding: str) -> str:
    """Changes with everything that could make the same seed generate another text."""
    shape = (model.architecture, model.parameters, model.bytes, world.size, sharding, world.backend)
    digest = hashlib.sha256(repr((*shape, mx.__version__, mlx_lm.__version__)).encode())
    return f"fp_{digest.hexdigest()[:12]}"
