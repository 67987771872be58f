"""A grid of benchmarks on resident ranks, which start and load a model only where a point needs it.

A failed point is recorded with its cause, and the sweep continues, on new ranks if needed; a stop keeps the
measured points. Contains no widgets.
"""

import datetime as dt
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import JacclError, Stopped
from jaccl_kernel.core.events import HOST, Event, PointMeasured, Ready, Stage
from jaccl_kernel.core.options import FAST_SYNCH
from jaccl_kernel.core.results import Reference, Score
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.grid import Grid, Setting
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.report import baseline, limits, parity, record
from jaccl_kernel.report.record import SweepReport
from jaccl_kernel.steps.preflight import find_place

INTERRUPT_EVERY_S = 0.1
STOP_DEADLINE_S = 10.0  # a load or a join does not react to a stop: then the ranks are closed


@dataclass(frozen=True)
class _Reference:
    """The first point of a prompt length: its tokens, their score, and its number of ranks."""

    tokens: tuple[int, ...]
    score: Score
    ranks: int


class Sweep:
    """One run of a grid; `points` and `record()` contain the measurements so far.

    Args:
        grid: what to measure.
        hostfile: the hosts; None for the notebooks' choice.
        on_event: called with the ranks' events, a Stage for each point, and a PointMeasured.
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
        self._references: dict[int, _Reference] = {}  # by prompt length
        self._bandwidth: dict[tuple[Any, ...], tuple[float, bool]] = {}
        self._facts: list[Ready] = []
        self._environment: dict[str, str] = {}
        self._rehearsal = False
        self._model: Any = None

    def stop(self) -> None:
        """Stop after the present token and keep the measured points; returns at once."""
        if not self._stop.is_set():
            self._stop.set()
            threading.Thread(target=self._interrupt_until_over, name="jaccl-sweep-stop", daemon=True).start()

    def _interrupt_until_over(self) -> None:
        """Interrupt repeatedly: the call to interrupt may be about to begin."""
        end = time.monotonic() + STOP_DEADLINE_S
        while not self._over.wait(INTERRUPT_EVERY_S):
            ranks = self._ranks
            if ranks is None:
                continue
            if time.monotonic() > end:
                ranks.close()
                return
            ranks.interrupt()

    def run(self) -> SweepReport:
        """Measure every point, and save the record and its page, also after a stop.

        Raises:
            JacclError: the record cannot be saved.
        """
        self._began = time.monotonic()
        self._over.clear()
        try:
            for number, setting in enumerate(self.settings):
                if self._stop.is_set():
                    break
                self._report(number, setting)
                point = self._measure(setting)
                if point is not None:
                    self.points.append(point)
                    self._on_event(Event(HOST, PointMeasured(point)))
        finally:
            self._over.set()
            self._close()
        self._add_speedups()
        found = self.record()
        if not self.points:
            return SweepReport(found)
        from jaccl_kernel.report import page  # takes half a second to import

        return SweepReport(found, *page.save(found))

    def record(self) -> dict[str, Any]:
        """The record: points and provenance."""
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
                "ranks": [asdict(one) for one in self._facts],
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

    def _report(self, number: int, setting: Setting) -> None:
        left = ""
        if number:
            spent = time.monotonic() - self._began
            left = f", about {spent / number * (len(self.settings) - number):.0f} s left"
        text = f"point {number + 1} of {len(self.settings)}: {setting.label()}{left}"
        done = number / len(self.settings)
        self._on_event(Event(HOST, Stage("sweep", text, done)))

    def _measure(self, setting: Setting) -> dict[str, Any] | None:
        """A point, with its error if it failed; None if it was stopped."""
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
            point["error"] = record.describe_error(error)
            if self._ranks and not self._ranks.alive:
                self._close()
        return point

    def _on(self, setting: Setting) -> Ranks:
        """The ranks that this point needs, with the model loaded."""
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
            self._facts, self._environment = ranks.facts, ranks.spec.full_environment()
        known = [limits.chip_bandwidth(one.chip) for one in ranks.facts]
        specified = [one for one in known if one]
        if len(specified) == ranks.size:
            self._bandwidth[self._key(setting)] = (min(specified), True)
        else:
            self._bandwidth[self._key(setting)] = (min(ranks.bandwidth()), False)
        if self.grid.collectives and ranks.size > 1:
            self._time_collectives(ranks, setting)
        return ranks

    def _time_collectives(self, ranks: Ranks, setting: Setting) -> None:
        result = asdict(ranks.collectives(self.grid.collectives))
        measured = {"ranks": ranks.size, "backend": setting.backend, "date": _now(), **result}
        self.collectives.append(measured)
        for one in baseline.judge(measured, ranks.names, self.hostfile.rdma):
            if one["cable"] not in {known["cable"] for known in self.cables}:
                self.cables.append(one)

    def _ask_needle(self, ranks: Ranks, setting: Setting, length: int) -> None:
        """Ask for the hidden number; a prompt that does not fit is recorded, and fails no point."""
        asked: dict[str, Any] = {"setting": asdict(setting), "asked_tokens": length}
        try:
            asked |= asdict(ranks.needle(length))
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
        """Measure one sequence, and compare its tokens with the first point of this prompt length."""
        first = self._references.get(setting.prompt_tokens)
        results = ranks.bench(
            prompt_tokens=setting.prompt_tokens,
            max_tokens=self.grid.max_tokens,
            repeats=self.grid.repeats,
            reference=Reference(first.tokens, first.score.top) if first else None,
        )
        point = record.make_point(results)
        score, tokens = results[0].score, results[0].runs[0].tokens
        assert score
        verdict = parity.NOT_TESTED
        if first is None:
            self._references[setting.prompt_tokens] = _Reference(tokens, score, setting.ranks)
        else:
            verdict = parity.compare(first.tokens, tokens, first.score, score, reference_ranks=first.ranks)
        rate = point["generation_tps"]["median"]
        return {
            **point,
            "tps": record.total_tps(results[0].runs),
            "decode_tps": rate,
            "parity": verdict.to_json(),
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
        collectives = next(
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
            collective_s=limits.collective_seconds(collectives, facts.hidden * width),
            sharding=setting.sharding,
        ).to_json()

    def _inspected(self) -> Any:
        try:
            _, path = find_place(self.hostfile, str(self._model), 1)
            return inspect(path) if path else None  # None: the model is only on other Macs
        except JacclError:
            return None

    def _model_facts(self) -> dict[str, Any]:
        if self._model is None:
            return {"name": self.grid.model}
        facts = self._inspected()
        name = Path(str(self._model)).name
        if facts is None:
            return {"name": name}
        return {
            "name": name, "digest": facts.digest, "architecture": facts.architecture, "bytes": facts.bytes
        }  # fmt: skip

    def _key(self, setting: Setting) -> tuple[Any, ...]:
        return (setting.ranks, setting.backend, setting.fast_synch)

    def _add_speedups(self) -> None:
        """Add speed-up and efficiency, relative to the fewest ranks with the other settings equal."""
        complete = [one for one in self.points if "error" not in one and one["decode_tps"]]
        for one in complete:
            same = [other for other in complete if _without_ranks(other) == _without_ranks(one)]
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
    """Bytes of weights that one token reads: active experts only, without the input embedding."""
    size = float(facts.bytes)
    if not facts.tied and facts.vocab:
        size -= size * (facts.vocab * facts.hidden) / max(1, facts.parameters)
    if facts.experts and facts.experts_per_token:
        moe = 3 * facts.hidden * facts.moe_intermediate * facts.experts * facts.layers
        share = min(1.0, moe / max(1, facts.parameters))
        size -= float(facts.bytes) * share * (1 - facts.experts_per_token / facts.experts)
    return size


def _without_ranks(point: dict[str, Any]) -> tuple[Any, ...]:
    setting = point["setting"]
    return (setting["prompt_tokens"], setting["batch"], setting["fast_synch"])
