"""Resident ranks: the model is loaded once, and cells, prompts, benchmarks and a server use it.

`Ranks.start()` starts one ipyparallel engine per host (engine id = rank) as a job, which joins and proves the
group; the job's pipes are their lifeline. `ranks.view` is a plain DirectView; the methods here run on all
ranks at once. If a rank dies, all are ended, and pending results fail with its name.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from jaccl_kernel.core import messages
from jaccl_kernel.core.errors import DeadlineExceeded, InputError, JobError
from jaccl_kernel.core.events import AnswerChunk, AnswerEnd, BenchResult, Event, Heartbeat, Ready, Serving
from jaccl_kernel.core.options import ServeOptions
from jaccl_kernel.core.results import CollectivesResult, NeedleResult, Reference
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import effective_backend
from jaccl_kernel.launch.run import Deadlines, OnEvent, ignore
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.answer import Answer, AnswerReader, OnWords
from jaccl_kernel.notebook.engines import TICK_S, Engines
from jaccl_kernel.notebook.rank_calls import RankCalls
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report import record
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model
from jaccl_kernel.steps.serve.serve import check_ports

ANSWER_END_S = 30.0  # after a prompt's result, for the last chunk: it travels by another connection

_current: "Ranks | None" = None


def current() -> "Ranks | None":
    """The ranks that this kernel started last, if they are running."""
    return _current if _current is not None and _current.alive else None


class Ranks:
    """Resident ranks, made by `Ranks.start`; a context manager that closes them.

    Attributes:
        names: the ranks' nodes.
        model: the loaded model, or None.
        rehearsal: whether the Macs are simulated.
        serving: the server on these ranks, or None.
        calls: runs cells and calls on the ranks.
    """

    def __init__(self, hostfile: Hostfile, spec: JobSpec, *, rehearsal: bool, on_event: OnEvent) -> None:
        self.hostfile = hostfile
        self.spec = spec
        self.rehearsal = rehearsal
        self.names = list(spec.names())
        self.model: str | None = None
        self.sharding = "tensor"
        self.on_event = on_event
        self.serving: ResidentServer | None = None
        self.engines = Engines(spec, self._handle)
        self.calls = RankCalls(self.engines)
        self._chunks: SimpleQueue[AnswerChunk | AnswerEnd] = SimpleQueue()
        self._server_url: Future[str] = Future()

    @classmethod
    def start(
        cls,
        hostfile: Hostfile | str | os.PathLike[str] | None = None,
        *,
        count: int | None = None,
        backend: str | None = None,
        python: str | None = None,
        env: Mapping[str, str] | None = None,
        on_event: OnEvent = ignore,
        deadlines: Deadlines | None = None,
        stop_when: threading.Event | None = None,
    ) -> "Ranks":
        """Start ranks on these hosts; returns when all have joined and proved the group.

        Args:
            hostfile: a Hostfile or its path; None for the notebooks' choice.
            count: number of ranks, on the first hosts; None for all (simulated Macs: as many as run well).
            backend: mlx.launch's; None for the hostfile's.
            python: the interpreter on every node; None for the notebooks' choice, or this one.
            env: additional variables for the ranks.
            on_event: called with every event of the ranks, on another thread.
            deadlines: replaces the default deadlines.
            stop_when: stops the start when it is set.

        Raises:
            Stopped: `stop_when` was set.
            InputError: the count is invalid.
            Busy: another job uses these hosts.
            JobError: a rank did not start or join; says which and why.
        """
        global _current  # the magics use the ranks that were started last
        chosen = hostfile or session.current()
        chosen = chosen if isinstance(chosen, Hostfile) else Hostfile.read(chosen)
        size = len(chosen)
        wanted = count or homes.usual_ranks(chosen)
        if not 1 <= wanted <= size:
            what = f"requested {wanted} ranks, but the hostfile has {size} hosts"
            raise InputError(what, fix=f"Use 1 to {size}.")
        cluster = Cluster.of(chosen)
        part = chosen.subset(range(wanted))
        chosen_backend = effective_backend(chosen, backend)
        check_hostfile(part, chosen_backend)
        spec = JobSpec(
            hostfile=part,
            program=("resident",),
            backend=chosen_backend,
            python=python or session.python_for(chosen) or sys.executable,
            env=dict(env or {}),
            rank_env=cluster.rank_env[:wanted],
        )
        ranks = cls(chosen, spec, rehearsal=cluster.rehearsal, on_event=on_event)
        ranks.engines.start(deadlines or Deadlines(), stop_when or threading.Event())
        _current = ranks
        return ranks

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.spec.size

    @property
    def alive(self) -> bool:
        """Whether the ranks are running."""
        return self.engines.alive

    @property
    def view(self) -> Any:
        """An ipyparallel DirectView of all ranks, engine id = rank."""
        return self.engines.client[:]

    @property
    def pids(self) -> list[int | None]:
        """The process id of each rank that runs on this machine."""
        return self.engines.pids

    @property
    def stages(self) -> dict[int, str]:
        """The last stage of each rank."""
        return self.engines.stages

    @property
    def facts(self) -> list[Ready]:
        """The machine and versions of each rank."""
        return self.engines.facts

    # what all ranks do at once

    def load(self, model: str | os.PathLike[str] | None = None, *, sharding: str = "tensor") -> float:
        """Load a model on all ranks unless it is loaded; returns the seconds of the slowest rank.

        Args:
            model: a folder, a NAME in `~/models`, or a hub id in the local cache; None for the notebooks'
                choice, "demo" for the demo model.
            sharding: "tensor" or "pipeline".

        Raises:
            ModelError: the model is missing or damaged, or cannot be split this way.
        """
        self.engines.refuse_if_down()
        chosen = str(model) if model is not None else session.read().model or "demo"
        path, _ = self.engines.run(
            find_model(self.spec.hostfile, chosen, sharding, [self.size], self.on_event)
        )
        self.model = None
        results = self.calls.run(messages.LoadModel(str(path), sharding))
        self.model, self.sharding = str(path), sharding
        return float(max(result.load_s for result in results))

    def prompt(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        on_words: OnWords | None = None,
        stop_when: threading.Event | None = None,
        **settings: Any,
    ) -> Answer:
        """Ask the loaded model; the answer is printed as it arrives. ■ stops it and keeps the text so far.

        Args:
            prompt: a question, or a conversation as OpenAI's `messages`.
            system: the system prompt.
            on_words: called with (content, reasoning) as they arrive, instead of printing.
            stop_when: stops the answer when it is set.
            settings: of OpenAI's API: max_tokens (default 256), temperature, top_p, seed, stop, n, logprobs,
                tools, tool_choice, response_format, …

        Raises:
            InputError: a setting is invalid.
            JobError: no model is loaded.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system:
            turns.insert(0, {"role": "system", "content": system})
        return self._answer({"messages": turns, "max_tokens": 256} | settings, on_words, stop_when)

    def complete(self, text: str, *, on_words: OnWords | None = None, **settings: Any) -> Answer:
        """Continue a text, without a chat template; else as `prompt`."""
        return self._answer({"prompt": text, "max_tokens": 256} | settings, on_words)

    def bench(self, *, reference: Reference | None = None, **options: Any) -> list[BenchResult]:
        """Measure the loaded model; returns each rank's result, for `report.record.make_point`.

        Args:
            reference: another run's tokens, for the parity check.
            options: of `ranks bench`: prompt, prompt_tokens, max_tokens, repeats, stop_at_eos.

        Raises:
            Stopped: it was interrupted.
        """
        if not options.get("prompt") and not options.get("prompt_tokens"):
            options["prompt_tokens"] = 128
        return self.calls.run(messages.MeasureBench(options, reference))

    def batch(self, batch: int, *, prompt_tokens: int = 128, max_tokens: int = 64) -> dict[str, Any]:
        """Generate several sequences at once; returns a point of a record (`report.record.make_batch_point`).

        Raises:
            InputError: a number is below 1.
            Stopped: it was interrupted.
        """
        if min(batch, prompt_tokens, max_tokens) < 1:
            raise InputError("batch, prompt_tokens and max_tokens must be at least 1")
        results = self.calls.run(messages.MeasureBatch(batch, prompt_tokens, max_tokens))
        return record.make_batch_point(results)

    def needle(self, prompt_tokens: int) -> NeedleResult:
        """Ask for a number that is hidden in a long prompt."""
        result: NeedleResult = self.calls.run(messages.MeasureNeedle(prompt_tokens))[0]
        return result

    def bandwidth(self) -> list[float]:
        """Memory bandwidth of each rank in bytes per second, measured on all at the same time."""
        return [float(one) for one in self.calls.run(messages.MeasureBandwidth())]

    def collectives(self, sizes: Sequence[int], repeats: int = 0) -> CollectivesResult:
        """Time collectives at these sizes in bytes (see ranks/collectives.py).

        Raises:
            InputError: there is one rank only, or a size is out of bounds.
        """
        result: CollectivesResult = self.calls.run(messages.MeasureCollectives(tuple(sizes), repeats))[0]
        return result

    def serve(self, *, host: str = "127.0.0.1", port: int = 8080, ctrl_port: int = 18080) -> "ResidentServer":
        """Serve OpenAI's API with the loaded model on these ranks, until stopped.

        Raises:
            Busy: another call is running, or the port is in use.
            JobError: no model is loaded.
        """
        options = ServeOptions(host=host, port=port, ctrl_port=ctrl_port).with_api_key()
        check_ports(self.spec.hostfile, options)
        facts = messages.ServeFacts(self.rehearsal)
        payload = messages.Payload(api_key=options.api_key, names=tuple(self.names), facts=facts)
        call = messages.StartServer(payload, {"host": host, "port": port, "ctrl_port": ctrl_port})
        self.calls.begin()
        self.calls.serving, self._server_url = True, Future()
        try:
            pending = self.calls.submit(call)
            url = self._until_serving(pending)
        except BaseException:
            self.calls.serving = False
            self.calls.end()
            raise
        self.serving = ResidentServer(self, url, pending, options.api_key)
        return self.serving

    # interrupting and ending

    def interrupt(self) -> None:
        """Ask the ranks to stop the present call, after the same token on every rank."""
        self.calls.interrupt()

    def close(self) -> None:
        """End all ranks and the controller. Safe to call again."""
        self.engines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"model {self.model or 'not loaded'}" if self.engines.running else "closed"
        if error := self.engines.error:
            state = error.what
        simulated = "REHEARSAL: " if self.rehearsal else ""
        return f"<Ranks: {simulated}{self.size} on {', '.join(self.names)}; {self.spec.backend}; {state}>"

    def _answer(
        self, body: dict[str, Any], on_words: OnWords | None, stop_when: threading.Event | None = None
    ) -> Answer:
        """Ask, and read all chunks of the answer: they arrive in order, but apart from the call's result."""
        reader = AnswerReader(on_words or _print_words)
        complete = False

        def read() -> None:
            nonlocal complete
            if stop_when and stop_when.is_set():
                self.interrupt()  # harmless if repeated
            with contextlib.suppress(Empty):
                while not complete:
                    chunk = self._chunks.get_nowait()
                    if chunk.call != self.calls.number:
                        continue  # of an earlier call, which failed
                    if isinstance(chunk, AnswerEnd):
                        complete = True
                    else:
                        reader.take(chunk.body)

        with self.calls.exclusive():
            self.calls.wait(self.calls.submit(messages.Prompt(body)), read)
            end = time.monotonic() + ANSWER_END_S
            while not complete:
                self.engines.refuse_if_down()
                if time.monotonic() > end:
                    raise DeadlineExceeded(
                        f"rank 0 has answered, but its last chunk did not arrive within {ANSWER_END_S:.0f} s",
                        where=self.names[0],
                        fix="Ask again; if it happens again, restart the ranks.",
                    )
                time.sleep(TICK_S)
                read()
        if on_words is None:
            sys.stdout.write("\n")
        return reader.answer()

    def _until_serving(self, pending: Any) -> str:
        while not self._server_url.done():
            if pending.ready():
                self.calls.result(pending)
                raise JobError("the server ended before it was ready")
            self.engines.refuse_if_down()
            time.sleep(TICK_S)
        return self._server_url.result()

    def _handle(self, event: Event) -> None:
        """Handle an event, on the engines' thread."""
        match event.body:
            case AnswerChunk() | AnswerEnd() as chunk:
                self._chunks.put(chunk)
                return
            case Heartbeat():
                return
            case Serving(url) if not self._server_url.done():
                self._server_url.set_result(url)
        self.on_event(event)


class ResidentServer:
    """A server on resident ranks.

    Attributes:
        url: its address, without /v1.
        api_key: the key that clients must send, or None.
    """

    def __init__(self, ranks: Ranks, url: str, pending: Any, api_key: str | None) -> None:
        self.url = url
        self.api_key = api_key
        self._ranks = ranks
        self._pending = pending

    def stop(self) -> None:
        """Stop the server; the ranks keep their model. Safe to call again."""
        ranks = self._ranks
        if ranks.serving is not self:
            return
        ranks.engines.send(messages.Stop())
        try:
            ranks.calls.wait(self._pending)
        finally:
            ranks.serving, ranks.calls.serving = None, False
            ranks.calls.end()

    def __repr__(self) -> str:
        return f"<ResidentServer at {self.url}/v1>"


def _print_words(content: str, reasoning: str) -> None:
    sys.stdout.write(reasoning + content)
    sys.stdout.flush()
