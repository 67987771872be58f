"""Stay: this rank as an ipyparallel engine; cells, prompts, benchmarks and a server share one loaded model.

Joined and proven like any rank, then told over the wire how to reach the controller. Cells run in the main
thread, one after another; what the host calls (`remote.call`) runs there too, on every rank at once. Stages
and the words of an answer go to the host over the wire, not through ipyparallel, and arrive as they are made.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import ipyparallel.engine.app as engines
import mlx.core as mx

from jaccl_kernel.errors import JobError
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.ranks.link import Link
from jaccl_kernel.ranks.world import World

CONNECT_S = 60.0  # from the join until the host tells where its controller is
CALLS = ("load", "unload", "prompt", "bench", "batch", "needle", "bandwidth", "collectives", "serve")

here: "Resident"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`ranks resident` takes no options: what it needs comes with the go."""
    del parser


def run(options: argparse.Namespace, *, world: World, group: Any, link: Link, payload: dict[str, Any]) -> int:
    """Be an engine until told to end; leaves the process itself."""
    global here  # one process is one rank
    if not link.wired:
        raise JobError("resident ranks need a host", fix="Start them from a notebook: Ranks.start().")
    del options, payload
    connection = link.receive("connect", deadline=CONNECT_S)["connection"]
    here = Resident(world, group, link)
    threading.Thread(target=here.hear, name="jaccl-hear", daemon=True).start()
    # not in the environment that this process was started with, where others could read it
    os.environ["IPP_CONNECTION_INFO"] = json.dumps(connection)
    os.environ.setdefault("IPYTHONDIR", str(cache_dir() / "ipython"))
    engine = engines.IPEngine.instance()
    engine.user_ns = {
        "mx": mx, "group": group, "rank": world.rank, "size": world.size, "jaccl": here,
        "stopping": here.stop.agreed,
    }  # fmt: skip
    engine.initialize(
        [f"--IPEngine.id={world.rank}", "--IPEngine.enable_nanny=False", "--timeout=20", "--log-level=40"]
    )
    del os.environ["IPP_CONNECTION_INFO"]
    link.stage("stay", "ready for cells")
    engine.start()
    return 0


class Resident:
    """One rank that stays, and the model on it.

    In cells it is `jaccl`; `jaccl.model` and `jaccl.tokenizer` are the loaded ones.

    Args:
        world, group, link: as of a rank program.
    """

    def __init__(self, world: World, group: Any, link: Link) -> None:
        from jaccl_kernel.ranks.agree import Stop

        self.world = world
        self.group = group
        self.link = link
        self.stop = Stop(group)
        self.model: Any = None
        self.tokenizer: Any = None
        self.sharding = ""
        self._path: Any = None
        self._loaded: Any = None  # what serving and prompting need, once they were asked for
        self._cache: Any = None
        self._messages: SimpleQueue[dict[str, Any]] = SimpleQueue()  # for the server while it runs

    def hear(self) -> None:
        """Obey the host, on a thread of its own."""
        while True:
            message = self.link.next_message()
            if message["kind"] == "interrupt":
                self.stop.ask(int(message["call"]))
                self._messages.put({"kind": "stop"})
            elif message["kind"] == "end":
                self.link.say("done", returncode=0)
                self.link.leave(0)
            else:
                self._messages.put(message)

    def call(self, number: int, name: str, arguments: dict[str, Any]) -> Any:
        """What the host asks all ranks to do at once."""
        self.stop.begin(number)
        if name not in CALLS:
            raise JobError(f"there is no call {name!r}", fix=f"There are: {', '.join(CALLS)}.")
        return getattr(self, name)(**arguments)

    def load(self, model: str, sharding: str = "tensor") -> dict[str, Any]:
        """Load a model, unless it is there already. Returns seconds and bytes of this rank."""
        from jaccl_kernel.models.resolve import resolve
        from jaccl_kernel.ranks.load import load

        path = resolve(model)
        if (path, sharding) == (self._path, self.sharding):
            return {"load_s": 0.0, "memory_bytes": mx.get_active_memory()}
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
        self.link.stage("stay", f"{path.name} is loaded")
        return {"load_s": time.perf_counter() - began, "memory_bytes": mx.get_active_memory()}

    def unload(self) -> None:
        """Let go of the model and its memory."""
        if self._loaded:
            self._loaded.share.batch.close()
        self.model = self.tokenizer = self._loaded = self._cache = self._path = None
        mx.clear_cache()

    def bench(self, reference: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Measure the loaded model (see ranks/bench.py, whose options these are)."""
        from jaccl_kernel.ranks import bench

        self._need_model()
        chosen = _defaults(bench, self._path, options)
        bench.check(chosen)
        mx.reset_peak_memory()
        result = bench.measure(
            self.model,
            self.tokenizer,
            chosen,
            self.link,
            reference,
            whole=self.world.rank == 0,
            stopping=self.stop.poll,
        )
        self.link.stage("stay", "measured")
        return result

    def batch(self, batch: int, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
        """Time several sequences at once (see ranks/batching.py)."""
        from jaccl_kernel.ranks import batching

        loaded = self._prepared()
        self.link.stage("measure", f"{batch} sequences of {prompt_tokens} + {max_tokens} tokens")
        mx.reset_peak_memory()
        told = batching.measure(loaded, batch, prompt_tokens, max_tokens, self.stop.poll)
        self.link.stage("stay", "measured")
        return told | {"peak_memory_bytes": mx.get_peak_memory(), "token_bytes": loaded.token_bytes}

    def bandwidth(self) -> float:
        """Bytes a second that this rank reads from memory, while no other rank of this machine does."""
        from jaccl_kernel.ranks import batching

        return batching.bandwidth()

    def collectives(self, sizes: Sequence[int], repeats: int = 0) -> dict[str, Any]:
        """Time the group's collectives (see ranks/collectives.py)."""
        from jaccl_kernel.ranks import collectives

        return collectives.measure(self.group, self.world, self.link, sizes, repeats, self.stop.agreed)

    def prompt(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Answer one OpenAI chat request; its words go to the host as they come. Rank 0 returns the whole."""
        from jaccl_kernel.models.inspect import inspect
        from jaccl_kernel.ranks.prompting import Prompting
        from jaccl_kernel.ranks.serve import DEFAULT_CONTEXT

        if self._cache is None:
            context = inspect(self._path).context or DEFAULT_CONTEXT
            self._cache = Prompting(self._prepared(), self.world, self.group, self.stop, context)
        answer: dict[str, Any] | None = self._cache.answer(
            body, lambda **said: self.link.say("words", **said)
        )
        return answer

    def serve(self, payload: dict[str, Any], **options: Any) -> str:
        """Serve OpenAI's API with the loaded model until stopped."""
        from mlx_lm.generate import generation_stream

        from jaccl_kernel.ranks import serve

        loaded = self._prepared()
        chosen = _defaults(serve, self._path, options)
        while not self._messages.empty():  # of an earlier call
            self._messages.get()
        try:
            with mx.stream(generation_stream):
                if self.world.rank:
                    serve.work(chosen, self.world, self.group, self.link, loaded)
                else:
                    serve.Service(
                        chosen, self.world, self.group, self.link, payload,
                        loaded=loaded, next_message=self._messages.get,
                    ).run()  # fmt: skip
                loaded.share.clear()
                mx.synchronize(generation_stream)
        finally:
            self._messages.put({"kind": "ended"})
            self._cache = None
        self.link.stage("stay", "the server has ended")
        return "ended"

    def needle(self, prompt_tokens: int) -> dict[str, Any] | None:
        """Hide a number in a long text and ask for it; rank 0 returns the answer and whether it is there."""
        from jaccl_kernel.ranks import needle

        loaded = self._prepared()
        body, number = needle.request(loaded.tokenizer, prompt_tokens)
        self.link.stage("measure", f"a needle in {prompt_tokens} tokens")
        answer = self.prompt(body)
        self.link.stage("stay", "measured")
        return None if answer is None else answer | {"expected": number, "found": number in answer["text"]}

    def _need_model(self) -> None:
        if self.model is None:
            raise JobError("no model is loaded on these ranks", fix="Load one first: ranks.load(...).")

    def _prepared(self) -> Any:
        from mlx_lm.generate import generation_stream

        from jaccl_kernel.ranks import serve

        self._need_model()
        if self._loaded is None:
            with mx.stream(generation_stream):
                options = _defaults(serve, self._path, {})
                self._loaded = serve.prepare(options, self.model, self.tokenizer, self.group)
                self._loaded.share.mark = (0, 0)
        return self._loaded


def _defaults(program: Any, model: Any, options: dict[str, Any]) -> argparse.Namespace:
    """A rank program's options: its own defaults, and what is given."""
    parser = argparse.ArgumentParser()
    program.add_arguments(parser)
    chosen = parser.parse_args(["--model", str(model)])
    for name, value in options.items():
        if not hasattr(chosen, name):
            raise JobError(f"there is no option {name!r}", fix=f"There are: {', '.join(vars(chosen))}.")
        setattr(chosen, name, value)
    return chosen
