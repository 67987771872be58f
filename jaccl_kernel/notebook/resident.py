"""Ranks that stay: the model is loaded once, and cells, prompts, benchmarks and a server use it.

`Ranks.start()` starts an ipyparallel engine on every host (engine id = rank) as a job of ours, joined and
proven before the first cell; the job's pipes are their lifeline. `ranks.view` is a plain DirectView; the
calls here are for what needs all ranks at once. A dead rank ends them all, and pending results fail with its
name.
"""

import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import ipyparallel

from jaccl_kernel import errors, remote
from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import Busy, DeadlineExceeded, InputError, JacclError, JobError
from jaccl_kernel.jobs.run import Deadlines, OnEvent, ignore
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.answer import Answer, CellError
from jaccl_kernel.notebook.engines import TICK_S, Engines
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report import record
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model
from jaccl_kernel.steps.serve import ServeOptions, check_options, check_ports
from jaccl_kernel.wire import Event

OUTPUT_S = 2.0  # after a cell's end, for its last outputs
ASK_S = 3.0  # for completions: a person is typing
AGAIN_S = 2.0  # a second interrupt within this time closes the ranks
KINDS = {name: getattr(errors, name) for name in ("InputError", "JobError", "ModelError", "Stopped", "Busy")}

_current: "Ranks | None" = None


def current() -> "Ranks | None":
    """The ranks that were started last in this kernel, while they live."""
    return _current if _current is not None and _current.alive else None


class Ranks:
    """Resident ranks. Made by `Ranks.start`; a context manager that closes them.

    Attributes:
        names: the ranks' nodes.
        model: the loaded model's name, or None.
        rehearsal: whether these are simulated Macs.
        serving: the server on them, or None.
    """

    def __init__(self, hostfile: Hostfile, spec: JobSpec, *, rehearsal: bool, on_event: OnEvent) -> None:
        self.hostfile = hostfile
        self.spec = spec
        self.rehearsal = rehearsal
        self.names = list(spec.names())
        self.model: str | None = None
        self.sharding = "tensor"
        self.on_event = on_event
        self._engines = Engines(spec, self._hear)
        self._numbers = itertools.count(1)
        self._number = 0  # of the call that runs
        self._calls = threading.Lock()
        self._words: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.serving: Serving | None = None
        self._serving: Future[str] | None = None  # its url, once it is there

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
        """Start ranks on these hosts, and return when all are joined and proven.

        Args:
            hostfile: a Hostfile or its path; None for the notebooks' own.
            count: the first so many hosts; None for all (of simulated Macs: as many as run well at once).
            backend: mlx.launch's; None for the hostfile's own.
            python: the interpreter on every node; None for the notebooks' choice, else this one.
            env: more variables for the ranks.
            on_event: hears every event of the ranks, on a thread of its own.
            deadlines: other bounds than the usual ones.
            stop_when: ends the start when it is set.

        Raises:
            Stopped: it was set.
            InputError: a count that makes no sense.
            Busy: another job holds these hosts.
            JobError: a rank did not start or join; says which and why.
        """
        global _current  # the magics use the ranks that were started last
        chosen = _hostfile(hostfile)
        size = len(chosen)
        simulated = homes.is_rehearsal(chosen)
        wanted = count or (homes.ranks_at_once(size) if simulated else size)
        if not 1 <= wanted <= size:
            raise InputError(f"{wanted} ranks, of {size} hosts", fix=f"Give 1 to {size}.")
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
        ranks._engines.start(deadlines or Deadlines(), stop_when or threading.Event())
        _current = ranks
        return ranks

    @property
    def size(self) -> int:
        """How many ranks."""
        return self.spec.size

    @property
    def alive(self) -> bool:
        """Whether they run."""
        return self._engines.alive

    @property
    def view(self) -> Any:
        """An ipyparallel DirectView of all ranks, engine id = rank."""
        return self._client[:]

    @property
    def pids(self) -> list[int | None]:
        """The process id of each rank that runs on this machine."""
        return self._engines.pids

    @property
    def stages(self) -> dict[int, str]:
        """What each rank said last of itself."""
        return self._engines.stages

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What each rank's machine is."""
        return self._engines.facts

    @property
    def command(self) -> str:
        """The plain mlx.launch command of their job."""
        return self._engines.command

    @property
    def _client(self) -> Any:
        return self._engines.client

    # what all ranks do at once

    def load(self, model: str | os.PathLike[str] | None = None, *, sharding: str = "tensor") -> float:
        """Load a model on all ranks, unless it is there already; returns the seconds of the slowest.

        Args:
            model: a folder, or a hub id in the local cache; None for the notebooks' choice, "demo" for the
                demo model.
            sharding: "tensor" or "pipeline".

        Raises:
            ModelError: it is not there, is damaged, or does not split so.
        """
        self._engines.refuse_if_down()
        chosen = str(model) if model is not None else session.read().model or "demo"
        path, _ = self._engines.run(
            find_model(self.spec.hostfile, chosen, sharding, [self.size], self.on_event)
        )
        self.model = None
        took = self._call("load", {"model": str(path), "sharding": sharding})
        self.model, self.sharding = str(path), sharding
        return float(max(one["load_s"] for one in took))

    def prompt(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        system: str | None = None,
        on_words: Callable[[str, str], None] | None = None,
        stop_when: threading.Event | None = None,
        **settings: Any,
    ) -> Answer:
        """Ask the loaded model; its words are printed as they come. ■ stops it, and keeps what came.

        Args:
            prompt: a question, or a conversation as OpenAI's `messages`.
            system: what to say to the model first.
            on_words: is told (content, reasoning) as they come, instead of printing.
            stop_when: ends the answer when it is set, as an interrupt would.
            settings: as of OpenAI's API: max_tokens (256 if not given), temperature, top_p, seed, stop, …

        Raises:
            InputError: a setting makes no sense.
            JobError: no model is loaded.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return self._answer({"messages": messages, "max_tokens": 256} | settings, on_words, stop_when)

    def complete(
        self, text: str, *, on_words: Callable[[str, str], None] | None = None, **settings: Any
    ) -> Answer:
        """Go on from a text, without any chat template; else as `prompt`."""
        return self._answer({"prompt": text, "max_tokens": 256} | settings, on_words)

    def bench(self, *, reference: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
        """Measure the loaded model: each rank's result, as `report.record.make_point` takes them.

        Args:
            reference: another run's tokens and their rivals, for the correctness gate.
            options: of `ranks bench`: prompt, prompt_tokens, max_tokens, repeats, stop_at_eos, batch.

        Raises:
            Stopped: it was interrupted.
        """
        if not options.get("prompt") and not options.get("prompt_tokens"):
            options["prompt_tokens"] = 128
        results = self._call("bench", {"reference": reference, **options})
        return [{"load_s": 0.0, **one} for one in results]

    def batch(self, batch: int, *, prompt_tokens: int = 128, max_tokens: int = 64) -> dict[str, Any]:
        """Generate several sequences at once: tokens of all over the whole time.

        Returns `tokens`, `wall_s`, `tps` (the one over the other), `ttft_s` (until all had a token),
        `decode_tps`, `peak_memory_bytes` (a rank each), `token_bytes` (of cache, on rank 0), `energy`
        (report.record.energy).

        Raises:
            InputError: a number below 1.
            Stopped: it was interrupted.
        """
        if min(batch, prompt_tokens, max_tokens) < 1:
            raise InputError("a batch, a prompt and an answer have at least 1", fix="Give numbers from 1.")
        asked = {"batch": batch, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens}
        told = self._call("batch", asked)
        peaks = [one["peak_memory_bytes"] for one in told]
        tps = told[0]["tokens"] / told[0]["wall_s"]
        energy = record.energy([one.pop("power") for one in told], tps)
        return told[0] | {"tps": tps, "peak_memory_bytes": peaks, "energy": energy}

    def needle(self, prompt_tokens: int) -> dict[str, Any]:
        """Ask for a number hidden in a long text: {"found", "expected", "text", "prompt_tokens", …}."""
        return dict(self._call("needle", {"prompt_tokens": prompt_tokens})[0])

    def bandwidth(self) -> list[float]:
        """Bytes a second that each rank reads from its memory, all at the same time."""
        return [float(one) for one in self._call("bandwidth", {})]

    def collectives(self, sizes: Sequence[int], repeats: int = 0) -> dict[str, Any]:
        """Time collectives at these sizes, in bytes (see ranks/collectives.py for what comes back).

        Raises:
            InputError: one rank alone, or a size out of bounds.
        """
        return dict(self._call("collectives", {"sizes": list(sizes), "repeats": repeats})[0])

    def serve(self, *, host: str = "127.0.0.1", port: int = 8080, ctrl_port: int = 18080) -> "Serving":
        """Serve OpenAI's API with the loaded model, on these very ranks, until stopped.

        Raises:
            Busy: the ranks are at work, or the port is taken.
            JobError: no model is loaded.
        """
        options = check_options(ServeOptions(host=host, port=port, ctrl_port=ctrl_port))
        check_ports(self.spec.hostfile, options)
        payload = {
            "api_key": options.api_key, "names": self.names, "facts": {"rehearsal": self.rehearsal},
        }  # fmt: skip
        asked = {"payload": payload, "host": host, "port": port, "ctrl_port": ctrl_port}
        self._engines.refuse_if_down()
        if not self._calls.acquire(blocking=False):
            raise Busy("the ranks are at work", fix="Wait for that, or interrupt it with ■.")
        self._serving = Future()
        number = next(self._numbers)
        try:
            pending = self.view.apply_async(remote.call, number, "serve", asked)
            url = self._until_serving(pending)
        except BaseException:
            self._serving = None
            self._calls.release()
            raise
        self.serving = Serving(self, url, number, pending, options.api_key)
        return self.serving

    # interrupting and ending

    def interrupt(self) -> None:
        """Ask the ranks to stop the call that runs, after the same token everywhere."""
        self._engines.send("interrupt", call=1 << 60 if self._serving else self._number)

    def close(self) -> None:
        """End all ranks and the controller; nothing is left. Harmless when they are gone."""
        self._engines.close()

    def __enter__(self) -> Self:
        """The ranks; the block's end closes them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """How many, where, and with what."""
        state = f"model {self.model or 'not loaded'}" if self._engines.running else "closed"
        if error := self._engines.error:
            state = error.what
        simulated = "REHEARSAL: " if self.rehearsal else ""
        return f"<Ranks: {simulated}{self.size} on {', '.join(self.names)}; {self.spec.backend}; {state}>"

    # waiting

    def execute(self, code: str, *, rank: int | None = None, watch: Callable[[Any], None]) -> None:
        """Run a cell on all ranks, or on one alone; `watch` is called with its AsyncResult now and then.

        Raises:
            CellError: it raised; from the rank that was first.
            InputError: there is no such rank.
        """
        if rank is not None and not 0 <= rank < self.size:
            raise InputError(f"there is no rank {rank}", fix=f"Give 0 to {self.size - 1}.")
        with self._at_work() as number:
            view = self.view if rank is None else self._client[[rank]]
            view.execute(f"jaccl.stop.begin({number})", silent=True)
            pending = view.execute(code, silent=False)
            try:
                self._until_ready(pending, lambda: watch(pending))
                pending.get()
            except ipyparallel.error.CompositeError as error:
                at = self._first(pending)
                raise self._cell_error(error.elist[min(at, len(error.elist) - 1)]) from None
            except ipyparallel.error.RemoteError as error:
                raise self._cell_error(
                    (error.ename, error.evalue, error.traceback, error.engine_info)
                ) from None
            finally:
                if self.alive:
                    pending.wait_for_output(OUTPUT_S)
                watch(pending)

    def ask_kernel(self, what: str, code: str, *more: int) -> Any:
        """What rank 0's IPython knows of a cell: `do_complete` or `do_inspect`, as of ipykernel's kernel.

        Raises:
            Busy: the ranks are at work.
            DeadlineExceeded: rank 0 does not answer.
        """
        with self._at_work():
            pending = self._client[0].apply_async(remote.ask_kernel, what, code, *more)
            if not pending.wait(ASK_S):
                raise DeadlineExceeded(f"rank 0 did not answer within {ASK_S:.0f} s")
            return self._result(pending)

    def _cell_error(self, failure: Sequence[Any]) -> JacclError:
        if self._engines.error:
            return self._engines.error
        rank = failure[3]["engine_id"] if failure[3] else 0
        return CellError(rank, self.names[rank], str(failure[0]), str(failure[1]), str(failure[2] or ""))

    def wait(self, pending: Any, each: Callable[[], None] = lambda: None) -> Any:
        """Wait for an AsyncResult of these ranks, calling `each` now and then; its result.

        ■ asks the ranks to stop where they look for it (prompts, benchmarks, `stopping()` in a cell); a
        second one within 2 s closes the ranks.

        Raises:
            RankDied: a rank is gone.
            KeyboardInterrupt: the ranks were closed by a second interrupt.
        """
        self._until_ready(pending, each)
        return self._result(pending)

    def _until_ready(self, pending: Any, each: Callable[[], None]) -> None:
        interrupted = 0.0
        while True:
            try:
                if pending.ready():
                    break
                self._engines.refuse_if_down()
                each()
                pending.wait(TICK_S)
            except KeyboardInterrupt:
                if time.monotonic() - interrupted < AGAIN_S:
                    sys.stderr.write("Closing the ranks …\n")
                    self.close()
                    raise
                interrupted = time.monotonic()
                self.interrupt()
                sys.stderr.write("Asked the ranks to stop. Once more within 2 s closes them.\n")
        each()

    def _result(self, pending: Any) -> Any:
        try:
            return pending.get()
        except ipyparallel.error.CompositeError as error:
            raise self._translate(error.elist[self._first(pending)]) from None
        except ipyparallel.error.RemoteError as error:
            raise self._translate((error.ename, error.evalue)) from None

    def _first(self, pending: Any) -> int:
        """Which of the failed results came first; the others may only be its consequence."""
        failed = [one for one in pending.metadata if one["status"] == "error"]
        told = [one for one in failed if one["completed"] is not None]
        return failed.index(min(told, key=lambda one: one["completed"])) if told else 0

    def _translate(self, failure: Sequence[Any]) -> Exception:
        """A rank's error as ours again."""
        if self._engines.error:
            return self._engines.error
        name, text = str(failure[0]), str(failure[1])
        where = ""
        if len(failure) > 3 and failure[3]:
            rank = failure[3]["engine_id"]
            where = f"rank {rank} ({self.names[rank]})"
        what, _, fix = text.partition("\n  Fix: ")
        if name in KINDS:
            made: Exception = KINDS[name](
                what, where="" if name in ("Stopped", "InputError") else where, fix=fix
            )
            return made
        return JobError(f"{name}: {what}", where=where)

    def _call(self, name: str, arguments: dict[str, Any], each: Callable[[], None] = lambda: None) -> Any:
        with self._at_work() as number:
            pending = self.view.apply_async(remote.call, number, name, arguments)
            return self.wait(pending, each)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[int]:
        """One call at a time; its number."""
        self._engines.refuse_if_down()
        if not self._calls.acquire(blocking=False):
            doing = "are serving" if self._serving else "are at work"
            raise Busy(f"the ranks {doing}", fix="Wait for that, or end it first.")
        try:
            self._number = next(self._numbers)
            yield self._number
        finally:
            self._calls.release()

    def _answer(
        self,
        body: dict[str, Any],
        on_words: Callable[[str, str], None] | None,
        stop_when: threading.Event | None = None,
    ) -> Answer:
        heard = {"content": "", "reasoning": ""}
        tell = on_words or _print_words

        def each() -> None:
            if stop_when and stop_when.is_set():
                self.interrupt()  # again and again: harmless
            while True:
                try:
                    words = self._words.get_nowait()
                except Empty:
                    return
                for name in heard:
                    heard[name] += words[name]
                tell(words["content"], words["reasoning"])

        while not self._words.empty():
            self._words.get()
        told = self._call("prompt", {"body": body}, each)[0]
        # the result may be here before the last words
        rest = told["text"][len(heard["content"]) :], told["reasoning"][len(heard["reasoning"]) :]
        if any(rest):
            tell(*rest)
        if on_words is None:
            sys.stdout.write("\n")
        return Answer(**told)

    def _until_serving(self, pending: Any) -> str:
        assert self._serving
        while not self._serving.done():
            if pending.ready():
                self._result(pending)
                raise JobError("the server ended at once")
            self._engines.refuse_if_down()
            time.sleep(TICK_S)
        return self._serving.result()

    def _hear(self, event: Event) -> None:
        if event.kind == "words":
            self._words.put(event.data)
            return
        if event.kind == "serving" and self._serving and not self._serving.done():
            self._serving.set_result(str(event.data["url"]))
        if event.kind != "beat":
            self.on_event(event)


class Serving:
    """A server on resident ranks.

    Attributes:
        url: where it answers; clients' base URL is this with /v1.
        api_key: what clients need, or None.
    """

    def __init__(self, ranks: Ranks, url: str, number: int, pending: Any, api_key: str | None) -> None:
        self.url = url
        self.api_key = api_key
        self._ranks = ranks
        self._number = number
        self._pending = pending

    def stop(self) -> None:
        """End the server; the ranks and their model stay. Harmless when it has ended."""
        ranks = self._ranks
        if ranks._serving is None:
            return
        ranks._engines.send("stop")
        try:
            ranks.wait(self._pending)
        finally:
            ranks._serving = ranks.serving = None
            ranks._calls.release()

    def __repr__(self) -> str:
        """Where."""
        return f"<Serving at {self.url}/v1>"


def _hostfile(given: Hostfile | str | os.PathLike[str] | None) -> Hostfile:
    if given is None:
        return session.current()
    return given if isinstance(given, Hostfile) else Hostfile.read(given)


def _print_words(content: str, reasoning: str) -> None:
    sys.stdout.write(reasoning + content)
    sys.stdout.flush()
