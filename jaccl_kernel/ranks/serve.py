"""Serve a model over these ranks: rank 0 answers HTTP, all step the model together (see server/engine.py).

Rank 0 makes the control plane's secret and tells it, with its address, over the group that was just proven:
it stands in no command line and no environment. Before the model is loaded, HTTP answers 503 with the stage.
A dead worker leaves rank 0 up to say so; a worker whose rank 0 is gone leaves.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import KVCache

from jaccl_kernel.errors import InputError, JobError
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.ranks.link import Link
from jaccl_kernel.ranks.load import SHARDINGS, load
from jaccl_kernel.ranks.world import World
from jaccl_kernel.server import capacity
from jaccl_kernel.server.app import make_app
from jaccl_kernel.server.batch import Batch, token_bytes
from jaccl_kernel.server.control import Follower, Leader
from jaccl_kernel.server.engine import Add, Engine, Limits, Plan, Share, follow
from jaccl_kernel.server.generation import Generation, Sampling, Served, ServerError, Stream
from jaccl_kernel.server.grammar import Grammars
from jaccl_kernel.server.http import Http
from jaccl_kernel.server.sampling import Chooser, Row

CTRL_PORT = 18080
MEET_S = 30.0
BEAT_S = 1.0
WARMUP_TOKENS = 4
WARMUP = 64  # tokens of the prompt of the warm-up
DEFAULT_CONTEXT = 4096  # where the model's config does not tell
CACHE_SHARE = 0.25  # of the memory beside the model, for prompt caches
LOST = 87  # the exit status of a worker whose rank 0 is gone
LEAST_CONTEXT = 256  # tokens: a memory that holds less serves nobody
STUCK_S = 3.0  # after a stop, how long the engine may take to leave its step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ranks serve`."""
    parser.add_argument("--model", required=True, help="a model folder, or a hub id in the local cache")
    parser.add_argument("--alias", help="the model's id in the API (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to serve on (default 8080)")
    parser.add_argument(
        "--ctrl-port", type=int, default=CTRL_PORT, help=f"rank 0's control port (default {CTRL_PORT})"
    )
    parser.add_argument("--sharding", choices=SHARDINGS, default="tensor")
    parser.add_argument("--max-batch", type=int, default=32, help="sequences at once (default 32)")
    parser.add_argument("--max-queue", type=int, default=128, help="requests that may wait (default 128)")
    parser.add_argument("--context", type=int, help="tokens a sequence may have (default: the model's)")
    parser.add_argument("--cache-gb", type=float, help="prompt caches (default: a quarter of what is free)")
    parser.add_argument("--memory-gb", type=float, help="memory of a rank (default: what the system says)")
    parser.add_argument("--prefill-step", type=int, default=512, help="prompt tokens a step (default 512)")
    parser.add_argument("--cors-origin", action="append", default=[], help="a web origin that may call")


def run(options: argparse.Namespace, *, world: World, group: Any, link: Link, payload: dict[str, Any]) -> int:
    """Load and serve until told to stop; 0 when it ended as it was told to."""
    _check(options)
    with mx.stream(generation_stream):
        if world.rank:
            return work(options, world, group, link)
        return Service(options, world, group, link, payload).run()


def _check(options: argparse.Namespace) -> None:
    for name in ("max_batch", "max_queue", "prefill_step", "context"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}", fix="Give a number of at least 1.")
    for name in ("cache_gb", "memory_gb"):
        value = getattr(options, name)
        if value is not None and not value >= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}", fix="Give gigabytes, 0 or more.")


@dataclass(frozen=True)
class Loaded:
    """A model on this rank, warmed up, and what it costs."""

    tokenizer: Any
    share: Share
    chooser: Chooser
    token_bytes: float
    capacity: int  # tokens, of the rank with the least
    boundaries: bool  # a prefix of a prompt cache is of no use: some layer's state cannot be cut back
    vocabulary: int
    load_s: float


def prepare(
    options: argparse.Namespace, model: Any, tokenizer: Any, group: Any, load_s: float = 0.0
) -> Loaded:
    """Make this rank's share of the engine out of a loaded model, and warm it up. The same on every rank.

    Raises:
        JobError: mlx-lm cannot run this architecture in a batch.
    """
    special = [*tokenizer.eos_token_ids, *tokenizer.encode("\n", add_special_tokens=False)]
    chooser = Chooser(group, special)
    batch = Batch(
        model,
        chooser,
        sorted(tokenizer.eos_token_ids),
        max_sequences=options.max_batch,
        prefill_step=options.prefill_step,
    )
    share = Share(batch)
    chooser.rows[-1] = Row(Sampling(temperature=0.0))
    token = next(iter(tokenizer.encode("a", add_special_tokens=False)), 0)
    plan = Plan(add=[Add(-1, [token] * WARMUP, WARMUP_TOKENS)])
    try:
        share.apply(plan)
    except ValueError as error:
        raise JobError(
            f"this model cannot be served in a batch: {error}", fix="Use another model; the bench runs it."
        ) from error
    while len(batch):
        share.apply(Plan())
    del chooser.rows[-1]
    held = batch.held.pop(-1)
    cost = token_bytes(held)
    limit = capacity.memory_limit() if options.memory_gb is None else int(options.memory_gb * 1e9)
    fits = capacity.least(group, capacity.capacity(limit, cost))
    boundaries = any(type(layer) is not KVCache for layer in held.cache)
    return Loaded(tokenizer, share, chooser, cost, fits, boundaries, chooser.vocabulary, load_s)


def _load(options: argparse.Namespace, group: Any, link: Link) -> Loaded:
    path = resolve(options.model)
    link.stage("load", f"loading {path.name}")
    began = time.perf_counter()
    model, tokenizer = load(
        path,
        group=group,
        sharding=options.sharding,
        progress=lambda text, fraction: link.stage("load", text, fraction),
    )
    took = time.perf_counter() - began
    size = mx.get_active_memory() / 1e9
    link.stage("load", f"loaded {size:.2f} GB in {took:.1f} s ({size / took:.2f} GB/s)", 1.0)
    link.stage("warm-up", "a first few tokens")
    return prepare(options, model, tokenizer, group, took)


# a worker


def work(
    options: argparse.Namespace, world: World, group: Any, link: Link, loaded: Loaded | None = None
) -> int:
    """A worker, from the secret to rank 0's goodbye; `loaded` if the model is there already."""
    share: Share | None = None

    def lost(why: str) -> None:
        link.say("error", type="RankDied", message=why, fix="", stage=link.stage_name)
        sys.stderr.write(f"rank {world.rank}: {why}; leaving\n")
        link.leave(LOST)

    secret, address = _learn(group)
    control = Follower(
        address,
        world.rank,
        secret,
        deadline=MEET_S,
        status=lambda: share.status() if share else {"mark": (0, 0)},
        on_lost=lost,
    )
    share = (loaded or _load(options, group, link)).share
    share.mark = (0, 0)
    link.stage("serve", "following rank 0")
    follow(share, control)
    control.close()
    return 0


# rank 0


class _Front:
    """What the API asks while there is no engine yet, and hands on to it once there is."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.stage = "starting"

    def submit(self, generation: Generation) -> Stream:
        if self.engine is None:
            raise ServerError(
                503, f"not ready: {self.stage}", kind="server_error", code="not_ready", retry_after=5
            )
        return self.engine.submit(generation)

    def cancel(self, stream: Stream) -> None:
        if self.engine:
            self.engine.cancel(stream)

    def status(self) -> dict[str, Any]:
        if self.engine:
            return self.engine.status()
        return {"state": "starting", "stage": self.stage, "running": 0, "queued": 0, "ranks": []}


class Service:
    """Rank 0 of a server.

    Args:
        options, world, group, link, payload: as of a rank program.
        loaded: the model, if it is there already.
        next_message: where the host's messages come from, if not from the link.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        world: World,
        group: Any,
        link: Link,
        payload: dict[str, Any],
        *,
        loaded: Loaded | None = None,
        next_message: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._loaded = loaded
        self._next_message = next_message or link.next_message
        self.options = options
        self.world = world
        self.group = group
        self.link = link
        # a supervisor sends the key, or means that there is none: it could not ask with one of this Mac's own
        self.api_key = payload.get("api_key") if link.wired else os.environ.get("JACCL_API_KEY")
        self.names = payload.get("names") or [""] * world.size
        self.facts = payload.get("facts") or {}
        self.front = _Front()
        self.served: Served | None = None
        self._told_to_stop = threading.Event()
        self._ended = threading.Event()  # the engine's thread is out of its last step

    def run(self) -> int:
        """From the first listening socket to the last goodbye."""
        control = _lead(self.group, self.world, self.options.ctrl_port)
        http = Http(self.options.host, self.options.port)
        http.start(make_app(self.front, lambda: self.served))
        try:
            if control:
                control.gather(MEET_S)
            loaded = self._load()
            return self._serve(self._engine(loaded, control), loaded, http)
        finally:
            self._ended.set()
            if control:
                control.close({"stop": True})
            http.stop()

    def _load(self) -> Loaded:
        if self._loaded:
            return self._loaded
        link, front = self.link, self.front

        class Told:
            """Stages go to the host and to whoever asks over HTTP."""

            def stage(self, name: str, text: str = "", fraction: float | None = None) -> None:
                done = "" if fraction is None else f" ({fraction:.0%})"
                front.stage = f"{name}: {text}{done}"
                link.stage(name, text, fraction)

        loaded = _load(self.options, self.group, Told())  # type: ignore[arg-type]
        loaded.share.mark = (0, 0)
        return loaded

    def _engine(self, loaded: Loaded, control: Leader | None) -> Engine:
        free = loaded.capacity
        cache = int(free * CACHE_SHARE)
        if self.options.cache_gb is not None:
            cache = min(free, int(self.options.cache_gb * 1e9 / max(1.0, loaded.token_bytes)))
        limits = Limits(self.options.max_batch, self.options.max_queue, free, cache, loaded.token_bytes)
        engine = Engine(
            loaded.share,
            loaded.chooser,
            Grammars(loaded.tokenizer, loaded.vocabulary),
            control=control,
            limits=limits,
            names=self.names,
        )
        engine.on_failed = lambda rank, why: self.link.say("sick", rank_of=rank, why=why)
        engine.on_found = lambda rank: self.link.say("well", rank_of=rank)
        return engine

    def _serve(self, engine: Engine, loaded: Loaded, http: Http) -> int:
        path = resolve(self.options.model)
        model = inspect(path)
        name = self.options.alias or path.name
        context = fitting(self.options.context or model.context or DEFAULT_CONTEXT, loaded.capacity)
        self.served = Served(
            name=name,
            tokenizer=loaded.tokenizer,
            context=context,
            vocabulary=loaded.vocabulary,
            facts={
                "model": name,
                "architecture": model.architecture,
                "parameters": model.parameters,
                "bytes": model.bytes,
                "ranks": self.world.size,
                "backend": self.world.backend,
                "sharding": self.options.sharding if self.world.size > 1 else "none",
                "max_sequences": self.options.max_batch,
                "max_queue": self.options.max_queue,
                "fingerprint": _fingerprint(model, self.world, self.options.sharding),
                **self.facts,
            },
            api_key=self.api_key,
            boundaries=loaded.boundaries,
            cors_origins=tuple(self.options.cors_origin),
        )
        self.front.engine = engine
        threading.Thread(target=self._beat, args=(engine,), name="jaccl-beat", daemon=True).start()
        threading.Thread(target=self._hear, args=(engine, http), name="jaccl-hear", daemon=True).start()

        def tell() -> None:
            self.link.stage("serve", http.url)
            self.link.say(
                "serving", url=http.url, model=name, context=context, load_s=round(loaded.load_s, 3)
            )
            if not self.link.wired:
                sys.stdout.write(f"serving {name} at {http.url}/v1 over {self.world.size} ranks\n")
                sys.stdout.flush()

        try:
            engine.run(tell)
        except KeyboardInterrupt:
            engine.stop()
        except Exception:
            if not engine.failed.keys() - {0}:
                raise
            # a worker is gone and took this step with it: stay up to say so, until told to stop
            self._told_to_stop.wait()
        return 0

    def _beat(self, engine: Engine) -> None:
        """Tell the host every second that this process lives, and whether its engine gets on."""
        while not self._ended.wait(BEAT_S):
            self.link.say("beat", **engine.status())

    def _hear(self, engine: Engine, http: Http) -> None:
        """Obey the host."""
        while self.link.wired:
            message = self._next_message()
            if message["kind"] == "died":
                engine.fail(int(message["rank"]), str(message["why"]))
            elif message["kind"] == "stop":
                engine.stop()
                self._told_to_stop.set()
                if not self._ended.wait(STUCK_S):  # the engine's thread sits in a collective that may not end
                    http.stop()
                    self.link.finish(0)
                return
            elif message["kind"] == "ended":  # nobody listens any more: the service is over
                return


def fitting(context: int, capacity: int) -> int:
    """The tokens of context to serve where memory holds `capacity`.

    Raises:
        JobError: too few for anyone.
    """
    if capacity < min(LEAST_CONTEXT, context):
        raise JobError(
            f"memory holds {capacity} tokens beside the model, on the rank with the least: too few to serve",
            fix="Use more ranks or a smaller (or quantized) model, free memory there, or raise --memory-gb.",
        )
    return max(2, min(context, capacity))


def _fingerprint(model: ModelFacts, world: World, sharding: str) -> str:
    """Changes with whatever could make the same seed give another text."""
    shape = (model.architecture, model.parameters, model.bytes, world.size, sharding, world.backend)
    digest = hashlib.sha256(repr((*shape, mx.__version__, mlx_lm.__version__)).encode())
    return f"fp_{digest.hexdigest()[:12]}"


def _lead(group: Any, world: World, port: int) -> Leader | None:
    """Listen for the workers, and tell them over the group where, and what to prove."""
    if group is None:
        return None
    secret = secrets.token_bytes(32)
    try:
        leader = Leader(_own_address(world), port, world.size, secret)
    except JobError:
        _share(group, [0] * 39)  # so that nobody waits for what will not come
        raise
    address, bound = leader.address
    told = [1, *secret, *map(int, address.split(".")), bound >> 8, bound & 255]
    _share(group, told)
    return leader


def _learn(group: Any) -> tuple[bytes, tuple[str, int]]:
    """A worker's side of `_lead`: the secret, and rank 0's address."""
    told = _share(group, [0] * 39)
    if not told[0]:
        raise JobError("rank 0 could not open its control port", fix="Read rank 0's error.")
    return bytes(told[1:33]), (".".join(map(str, told[33:37])), told[37] << 8 | told[38])


def _share(group: Any, numbers: list[int]) -> list[int]:
    """The sum of every rank's numbers, each below 256: what rank 0 says, since the others say zeros."""
    # float32, which the proof of the group has shown to be summed rightly
    total = mx.distributed.all_sum(mx.array(numbers, dtype=mx.float32), group=group)
    return [round(number) for number in total.tolist()]


def _own_address(world: World) -> str:
    """An IPv4 address of rank 0 that the other ranks reach: the one that they have just joined at."""
    if world.backend == "jaccl":
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    first = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))[0]
    return str(first[0] if isinstance(first, list) else first).rpartition(":")[0]
