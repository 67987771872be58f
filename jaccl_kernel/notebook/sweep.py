"""A grid of benchmarks on resident ranks: started, and a model loaded, only where a point needs it.

Points are ordered so that starts and loads are fewest. A point that fails is recorded with its cause, and the
next one goes on, on new ranks if need be; a stop keeps what was measured. Knows no widgets.
"""

import datetime as dt
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError, JacclError, Stopped
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.jobs.spec import FAST_SYNCH
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.report import baseline, limits, parity, record
from jaccl_kernel.report.record import SweepReport
from jaccl_kernel.wire import HOST, Event

COLLECTIVE_SIZES = tuple(64 << (2 * step) for step in range(11))  # 64 B to 64 MB
LEAST_BYTES, MOST_BYTES = 64, 256 << 20  # of a collective, as ranks/collectives.py takes them
SHARDINGS = ("tensor", "pipeline")
BACKENDS = ("jaccl", "jaccl-ring", "ring")
ASK_EVERY_S = 0.1
PATIENCE_S = 10.0  # of a stop: what does not look for it (a load, a join) is ended with its ranks then


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    ranks: int
    sharding: str = "tensor"
    backend: str = "ring"
    prompt_tokens: int = 128
    batch: int = 1
    fast_synch: bool = False

    def label(self) -> str:
        """It in a few words."""
        parts = [f"{self.ranks} rank{'s' if self.ranks != 1 else ''}", self.sharding, self.backend]
        parts += [f"prompt {self.prompt_tokens}", *([f"batch {self.batch}"] if self.batch > 1 else [])]
        return ", ".join([*parts, *(["fast sync"] if self.fast_synch else [])])


@dataclass(frozen=True)
class Grid:
    """What to measure: every combination.

    Args:
        ranks: numbers of ranks.
        sharding: "tensor", "pipeline".
        backends: mlx.launch's ("jaccl" is the mesh, "jaccl-ring" the ring, "ring" TCP); None for the
            hostfile's own.
        prompt_tokens: lengths of made-up prompts.
        batch: sequences at once; more than 1 measures what all bring together.
        fast_synch: MLX_METAL_FAST_SYNCH off and on (its risk: MLX warns of a deadlock that wedges the GPU).
        max_tokens: to generate.
        repeats: measured runs of a single sequence.
        collectives: bytes at which collectives are timed, once for each start; none for not at all.
        needle: prompt lengths at which a hidden number is asked for.
        model: a folder or a hub id; None for the notebooks' choice.
    """

    ranks: Sequence[int] = (1, 2)
    sharding: Sequence[str] = ("tensor",)
    backends: Sequence[str | None] = (None,)
    prompt_tokens: Sequence[int] = (128,)
    batch: Sequence[int] = (1,)
    fast_synch: Sequence[bool] = (False,)
    max_tokens: int = 64
    repeats: int = 2
    collectives: Sequence[int] = COLLECTIVE_SIZES
    needle: Sequence[int] = ()
    model: str | None = None

    def settings(self, hostfile: Hostfile) -> list[Setting]:
        """The points, in the order in which they are measured.

        Raises:
            InputError: more ranks than hosts, an empty axis, a number below 1.
        """
        axes = (self.ranks, self.sharding, self.backends, self.prompt_tokens, self.batch, self.fast_synch)
        if not all(axes):
            raise InputError("an axis of the grid is empty", fix="Give each at least one value.")
        if max(self.ranks) > len(hostfile):
            raise InputError(
                f"{max(self.ranks)} ranks, of {len(hostfile)} hosts", fix=f"Give 1 to {len(hostfile)}."
            )
        self._check_names()
        numbers = (*self.ranks, *self.prompt_tokens, *self.batch, self.max_tokens, self.repeats)
        if min(numbers) < 1:
            raise InputError(f"a number of the grid is {min(numbers)}", fix="Give numbers from 1.")
        points = {
            Setting(
                count,
                way if count > 1 else "tensor",
                effective_backend(hostfile, backend) if count > 1 else "none",
                length,
                batch,
                fast,
            )
            for fast, backend, count, way, length, batch in itertools.product(
                self.fast_synch, self.backends, self.ranks, self.sharding, self.prompt_tokens, self.batch
            )
        }
        return sorted(
            points,
            key=lambda one: (
                one.fast_synch,
                one.ranks,
                one.backend,
                one.sharding,
                one.prompt_tokens,
                one.batch,
            ),
        )

    def _check_names(self) -> None:
        for name, known, given in (
            ("sharding", SHARDINGS, self.sharding),
            ("backend", BACKENDS, [one for one in self.backends if one is not None]),
        ):
            if unknown := next((one for one in given if one not in known), None):
                raise InputError(f"there is no {name} {unknown!r}", fix=f"There are: {', '.join(known)}.")
        for size in self.collectives:
            if not LEAST_BYTES <= size <= MOST_BYTES or size % 4:
                raise InputError(
                    f"{size} bytes of a collective",
                    fix=f"Give multiples of 4 from {LEAST_BYTES} to {MOST_BYTES}.",
                )


class Sweep:
    """One run of a grid. `points` and `record()` hold what has been measured so far.

    Args:
        grid: what to measure.
        hostfile: on which hosts; None for the notebooks' own.
        on_event: hears the ranks' events, and `point` of the host for each point.
    """

    def __init__(self, grid: Grid, hostfile: Hostfile | None = None, on_event: OnEvent = ignore) -> None:
        self.grid = grid
        self.hostfile = hostfile or session.current()
        self.settings = grid.settings(self.hostfile)
        self.points: list[dict[str, Any]] = []
        self.collectives: list[dict[str, Any]] = []
        self.cables: list[dict[str, Any]] = []
        self.needles: list[dict[str, Any]] = []
        self.starts = 0
        self.loads = 0
        self._on_event = on_event
        self._stop = threading.Event()
        self._over = threading.Event()
        self._ranks: Ranks | None = None
        self._began = 0.0
        self._reference: dict[
            int, dict[str, Any]
        ] = {}  # prompt length -> the first point's tokens and rivals
        self._bandwidth: dict[tuple[Any, ...], tuple[float, bool]] = {}
        self._facts: list[dict[str, Any]] = []
        self._environment: dict[str, str] = {}
        self._rehearsal = False
        self._model: Any = None

    def stop(self) -> None:
        """End it after the present token; what was measured stays. Returns at once."""
        if not self._stop.is_set():
            self._stop.set()
            threading.Thread(target=self._insist, name="jaccl sweep's end", daemon=True).start()

    def _insist(self) -> None:
        """Ask again and again: the call that is to stop may be about to begin."""
        end = time.monotonic() + PATIENCE_S
        while not self._over.wait(ASK_EVERY_S):
            ranks = self._ranks
            if ranks is None:
                continue
            if time.monotonic() > end:
                ranks.close()
                return
            ranks.interrupt()

    def run(self) -> SweepReport:
        """Measure every point, save the record and its page; what was stopped is saved too.

        Raises:
            JacclError: the record cannot be saved.
        """
        self._began = time.monotonic()
        self._over.clear()
        try:
            for number, setting in enumerate(self.settings):
                if self._stop.is_set():
                    break
                self._tell(number, setting)
                point = self._measure(setting)
                if point is not None:
                    self.points.append(point)
                    self._on_event(Event(HOST, "point", point))
        finally:
            self._over.set()
            self._close()
        self._add_speedups()
        found = self.record()
        if not self.points:
            return SweepReport(found)
        from jaccl_kernel.report import page  # half a second: only for those who have something to draw

        return SweepReport(found, *page.save(found))

    def record(self) -> dict[str, Any]:
        """What was measured, and on what."""
        return {
            "schema": record.SCHEMA,
            "kind": "sweep",
            "stopped": self._stop.is_set(),
            "points": self.points,
            "collectives": self.collectives,
            "cables": self.cables,
            "needles": self.needles,
            "provenance": {
                "date": _now(),
                "workbench": __version__,
                "rehearsal": self._rehearsal,
                "hosts": [host.name for host in self.hostfile.hosts],
                "ranks": self._facts,
                "hostfile": {
                    "path": str(self.hostfile.path) if self.hostfile.path else None,
                    "digest": self.hostfile.digest(),
                },
                "environment": self._environment,
                "model": self._model_facts(),
                "grid": asdict(self.grid),
                "starts": self.starts,
                "loads": self.loads,
            },
        }

    def _tell(self, number: int, setting: Setting) -> None:
        left = ""
        if number:
            spent = time.monotonic() - self._began
            left = f", about {spent / number * (len(self.settings) - number):.0f} s left"
        text = f"point {number + 1} of {len(self.settings)}: {setting.label()}{left}"
        done = number / len(self.settings)
        self._on_event(Event(HOST, "stage", {"name": "sweep", "text": text, "fraction": done}))

    def _measure(self, setting: Setting) -> dict[str, Any] | None:
        """A point, with its cause if it failed; None if it was stopped."""
        point: dict[str, Any] = {"setting": asdict(setting), "label": setting.label()}
        try:
            ranks = self._on(setting)
            point |= self._batch(ranks, setting) if setting.batch > 1 else self._single(ranks, setting)
        except Stopped:
            return None
        except (JacclError, KeyboardInterrupt) as error:
            if self._stop.is_set() or isinstance(error, KeyboardInterrupt):
                self._stop.set()
                return None
            fix = error.fix
            point["error"] = {
                "type": type(error).__name__,
                "what": error.what,
                "where": error.where,
                "fix": fix,
            }
            if self._ranks and not self._ranks.alive:
                self._close()
        return point

    def _on(self, setting: Setting) -> Ranks:
        """Ranks as this point needs them, with its model loaded."""
        ranks = self._ranks
        env = {FAST_SYNCH: "1"} if setting.fast_synch else {}
        fits = (
            ranks is not None
            and ranks.alive
            and ranks.size == setting.ranks
            and dict(ranks.spec.env) == env
            and (setting.ranks == 1 or ranks.spec.backend == setting.backend)
        )
        if not fits:
            self._close()
            ranks = self._start(setting, env)
        assert ranks is not None
        if ranks.load(self.grid.model, sharding=setting.sharding):
            self.loads += 1
            for length in self.grid.needle:
                self._ask_needle(ranks, setting, length)
        self._model = ranks.model
        return ranks

    def _start(self, setting: Setting, env: dict[str, str]) -> Ranks:
        backend = setting.backend if setting.ranks > 1 else None
        ranks = Ranks.start(
            self.hostfile,
            count=setting.ranks,
            backend=backend,
            env=env,
            on_event=self._on_event,
            stop_when=self._stop,
        )
        self._ranks = ranks
        self.starts += 1
        self._rehearsal = ranks.rehearsal
        if len(ranks.facts) > len(self._facts):
            self._facts, self._environment = ranks.facts, ranks.spec.whole_environment()
        known = [limits.chip_bandwidth(str(one.get("chip", ""))) for one in ranks.facts]
        specified = [one for one in known if one]
        if len(specified) == ranks.size:
            self._bandwidth[self._key(setting)] = (min(specified), True)
        else:
            self._bandwidth[self._key(setting)] = (min(ranks.bandwidth()), False)
        if self.grid.collectives and ranks.size > 1:
            self._time_collectives(ranks, setting)
        return ranks

    def _time_collectives(self, ranks: Ranks, setting: Setting) -> None:
        told = ranks.collectives(self.grid.collectives)
        measured = {"ranks": ranks.size, "backend": setting.backend, "date": _now(), **told}
        self.collectives.append(measured)
        for one in baseline.judge(measured, ranks.names, self.hostfile.rdma):
            if one["cable"] not in {known["cable"] for known in self.cables}:
                self.cables.append(one)

    def _ask_needle(self, ranks: Ranks, setting: Setting, length: int) -> None:
        """Find a number in a long text; one that memory or context does not allow fails no point."""
        asked: dict[str, Any] = {"setting": asdict(setting), "asked_tokens": length}
        try:
            asked |= ranks.needle(length)
        except Stopped:
            raise
        except JacclError as error:
            if not ranks.alive:
                raise
            asked |= {"prompt_tokens": length, "found": None, "text": "", "error": error.what}
        first = next((one for one in self.needles if one["asked_tokens"] == length), None)
        same = None if first is None else first["text"] == asked["text"]
        self.needles.append(asked | {"as_first": same})

    def _single(self, ranks: Ranks, setting: Setting) -> dict[str, Any]:
        """One sequence: rates, and whether it says what the first point said."""
        results = ranks.bench(
            prompt_tokens=setting.prompt_tokens,
            max_tokens=self.grid.max_tokens,
            repeats=self.grid.repeats,
            reference=self._reference.get(setting.prompt_tokens),
        )
        point = record.make_point(results)
        score = results[0]["score"]
        first = self._reference.get(setting.prompt_tokens)
        gate = parity.NOT_TESTED
        if first is None:
            self._reference[setting.prompt_tokens] = {
                "tokens": point["tokens"], "top": score["top"], "score": score, "ranks": setting.ranks
            }  # fmt: skip
        else:
            gate = parity.compare(
                first["tokens"], point["tokens"], first["score"], score, reference_ranks=first["ranks"]
            )
        rate = point["generation_tps"]["median"]
        wall = sum(run["ttft_s"] + sum(run["itl_s"]) for run in results[0]["runs"])
        count = sum(len(run["tokens"]) for run in results[0]["runs"])
        return {
            **point,
            "tps": count / wall,
            "decode_tps": rate,
            "parity": gate.to_json(),
            "limit": self._limit(setting, rate, point["generated_tokens"]) if rate else None,
        }

    def _batch(self, ranks: Ranks, setting: Setting) -> dict[str, Any]:
        return ranks.batch(
            setting.batch, prompt_tokens=setting.prompt_tokens, max_tokens=self.grid.max_tokens
        )

    def _limit(self, setting: Setting, rate: float, generated: int) -> dict[str, Any] | None:
        facts = self._inspected()
        if facts is None:
            return None
        bandwidth, specified = self._bandwidth[self._key(setting)]
        width = 2 if facts.dtype in ("float16", "bfloat16") else 4
        context = setting.prompt_tokens + generated / 2
        cache = 2 * facts.layers * facts.kv_heads * facts.head_dim * width * context
        told = next(
            (
                one
                for one in self.collectives
                if (one["ranks"], one["backend"]) == (setting.ranks, setting.backend)
            ),
            None,
        )
        return limits.limit(
            rate,
            weight_bytes=active_bytes(facts),
            cache_bytes=cache,
            ranks=setting.ranks,
            layers=facts.layers,
            bandwidth=bandwidth,
            specified=specified,
            collective_s=limits.collective_seconds(told, facts.hidden * width),
            sharding=setting.sharding,
        ).to_json()

    def _inspected(self) -> Any:
        try:
            return inspect(resolve(str(self._model)))
        except JacclError:
            return None  # on the other Macs only

    def _model_facts(self) -> dict[str, Any]:
        if self._model is None:
            return {"name": self.grid.model}
        facts = self._inspected()
        told: dict[str, Any] = {"name": Path(str(self._model)).name}
        if facts is not None:
            told |= {"digest": facts.digest, "architecture": facts.architecture, "bytes": facts.bytes}
        return told

    def _key(self, setting: Setting) -> tuple[Any, ...]:
        return (setting.ranks, setting.backend, setting.fast_synch)

    def _add_speedups(self) -> None:
        """Against the fewest ranks with everything else the same."""
        whole = [one for one in self.points if "error" not in one and one["decode_tps"]]
        for one in whole:
            same = [other for other in whole if _but_ranks(other) == _but_ranks(one)]
            base = min(same, key=lambda other: int(other["setting"]["ranks"]))
            if base is one and len(same) == 1:
                continue
            one["speedup"] = one["decode_tps"] / base["decode_tps"]
            one["efficiency"] = one["speedup"] * base["setting"]["ranks"] / one["setting"]["ranks"]

    def _close(self) -> None:
        if self._ranks:
            self._ranks.close()
            self._ranks = None


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="seconds")


def active_bytes(facts: Any) -> float:
    """Bytes of weights that a token reads: only the experts that are used, and no input embedding."""
    size = float(facts.bytes)
    if not facts.tied and facts.vocab:
        size -= size * (facts.vocab * facts.hidden) / max(1, facts.parameters)
    if facts.experts and facts.experts_per_token:
        moe = 3 * facts.hidden * facts.moe_intermediate * facts.experts * facts.layers
        share = min(1.0, moe / max(1, facts.parameters))
        size -= float(facts.bytes) * share * (1 - facts.experts_per_token / facts.experts)
    return size


def _but_ranks(point: dict[str, Any]) -> tuple[Any, ...]:
    setting = point["setting"]
    return (setting["prompt_tokens"], setting["batch"], setting["fast_synch"])
