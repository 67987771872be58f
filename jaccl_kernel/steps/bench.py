"""Bench: measure a model over one or more numbers of ranks, and compare each with the fewest.

For each number of ranks, one job runs on the first hosts of the hostfile. The result is one saved record with
the parity verdict and the provenance.
"""

import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import InputError, JacclError, JobError
from jaccl_kernel.core.events import HOST, BenchResult, Event, Line, PointMeasured, Stage
from jaccl_kernel.core.messages import Payload
from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.core.results import Reference, Score
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import effective_backend
from jaccl_kernel.launch.run import Deadlines, OnEvent, Outcome, ignore, run
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.report import parity, record
from jaccl_kernel.report.record import BenchReport
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model

TOPOLOGY = {"jaccl": "mesh", "jaccl-ring": "ring", "ring": "tcp ring"}


async def bench(
    hostfile: Hostfile,
    options: BenchOptions | None = None,
    *,
    on_event: OnEvent = ignore,
    deadlines: Deadlines | None = None,
    save: bool = True,
) -> BenchReport:
    """Measure, compare and record.

    Sends the ranks' events to `on_event`, and each point as a PointMeasured of the host. Cancelling ends the
    running job. If a later point fails, the earlier points are kept, the record lists the failure under
    `failed`, and no further point is tried.

    Raises:
        InputError: an option is invalid; nothing was started.
        HostfileError: the hostfile has an error that prevents the job.
        ModelError: the model is damaged, or does not split over that many ranks.
        JobError: the first job failed (see `launch.run`).
    """
    options = options or BenchOptions()
    counts = _rank_counts(hostfile, options)
    backend = effective_backend(hostfile, options.backend)
    for count in counts:
        check_hostfile(hostfile.subset(range(count)), backend)
    model, facts = await find_model(hostfile, options.model, options.sharding, counts, on_event)
    series = _Series(hostfile, options, backend, model)
    for number, count in enumerate(counts, 1):
        text = f"{count} rank{'s' if count > 1 else ''} (point {number} of {len(counts)})"
        on_event(Event(HOST, Stage("bench", text)))
        try:
            outcome = await run(
                series.job(count),
                what="a benchmark",
                payload=series.payload(),
                on_event=on_event,
                deadlines=deadlines,
            )
            on_event(Event(HOST, PointMeasured(dict(series.add(count, outcome)))))
        except JobError as error:
            if not series.points:
                raise
            series.fail(count, error)
            break
    result = series.record(facts)
    return BenchReport(result, _save(result, on_event) if save else None)


def _save(result: dict[str, Any], on_event: OnEvent) -> Path | None:
    try:
        return record.save(result)
    except JacclError as error:
        on_event(Event(HOST, Line(f"the record was not saved: {error}", "err")))
        return None


class _Series:
    """The points of one benchmark, each compared with the first."""

    def __init__(self, hostfile: Hostfile, options: BenchOptions, backend: str, model: str) -> None:
        self.hostfile = hostfile
        self.options = options
        self.backend = backend
        self.model = model
        self.points: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.parities: list[parity.Parity] = []
        self.outcomes: list[Outcome] = []
        self._cluster = Cluster.of(hostfile)

    def job(self, count: int) -> JobSpec:
        """Return the job that measures `count` ranks."""
        return JobSpec(
            hostfile=self.hostfile.subset(range(count)),
            program=self.options.program(self.model),
            backend=self.backend,
            python=self.options.python or sys.executable,
            env=self.options.environment(),
            rank_env=self._cluster.rank_env[:count],
            starting_port=self.options.starting_port,
        )

    def payload(self) -> Payload:
        """Return what the ranks score: the first point's tokens and runners-up; {} for the first point."""
        if not self.outcomes:
            return Payload()
        return Payload(Reference(tuple(self.points[0]["tokens"]), self._score(0).top))

    def add(self, count: int, outcome: Outcome) -> dict[str, Any]:
        """Add a finished job. Returns its point, with speed-up and efficiency."""
        results = outcome.results_of(BenchResult)
        _check_agreement(results)
        self.outcomes.append(outcome)
        self.points.append(record.make_point(results))
        record.add_speedups(self.points)
        if len(self.points) > 1:
            first, last = self.points[0], self.points[-1]
            self.parities.append(
                parity.compare(
                    first["tokens"],
                    last["tokens"],
                    self._score(0),
                    self._score(-1),
                    reference_ranks=first["ranks"],
                )
            )
        assert count == self.points[-1]["ranks"]
        return self.points[-1]

    def fail(self, count: int, error: JobError) -> None:
        """Add the cause of a job that failed."""
        self.failed.append({"ranks": count, "error": record.describe_error(error)})

    def record(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return the record; `model` has the model's facts."""
        widest = max(self.outcomes, key=lambda outcome: len(outcome.facts))
        hostfile, options = self.hostfile, self.options
        provenance = {
            "date": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
            "workbench": __version__,
            "rehearsal": self._cluster.rehearsal,
            "backend": self.backend,
            "topology": TOPOLOGY[self.backend],
            "sharding": options.sharding,
            "hosts": [host.name for host in hostfile.hosts[: len(widest.facts)]],
            "ranks": [asdict(one) for one in widest.facts],
            "environment": self.job(len(widest.facts)).full_environment(),
            "hostfile": {
                "path": str(hostfile.path) if hostfile.path else None,
                "digest": hostfile.digest(),
            },
            "model": {"name": self.model, **model},
            "prompt": options.text,
            "repeats": options.repeats,
            "stop_at_eos": options.stop_at_eos,
            "commands": [outcome.command for outcome in self.outcomes],
        }
        return {
            "schema": record.SCHEMA,
            "points": self.points,
            "failed": self.failed,
            "parity": parity.worst(self.parities).to_json(),
            "provenance": provenance,
        }

    def _score(self, point: int) -> Score:
        score = self.outcomes[point].results_of(BenchResult)[0].score
        assert score
        return score


def _rank_counts(hostfile: Hostfile, options: BenchOptions) -> list[int]:
    size = len(hostfile.hosts)
    counts = sorted(set(options.ranks)) if options.ranks is not None else [size]
    if not counts or counts[0] < 1 or counts[-1] > size:
        raise InputError(
            f"cannot run on {', '.join(map(str, counts)) or 'no'} ranks: the hostfile has {size} hosts",
            fix=f"Give numbers from 1 to {size}, for example --ranks 1,{size}.",
        )
    return counts


def _check_agreement(results: Sequence[BenchResult]) -> None:
    digests = [one.tokens_digest for one in results]
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise JobError(
            f"rank {odd[0]} and rank 0 generated different tokens in the same run",
            where=f"rank {odd[0]}",
            fix="The ranks are out of sync: the results are invalid. Compare mlx versions and model files.",
        )
