"""Bench: measure a model over one or more numbers of ranks, and hold each against the fewest.

For each number of ranks one job runs on the first hosts of the hostfile. The result is one record, saved,
with the correctness gate's verdict and where it all came from.
"""

import datetime as dt
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError, JacclError, JobError
from jaccl_kernel.jobs.run import Deadlines, OnEvent, Outcome, ignore, run
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.report import parity, record
from jaccl_kernel.report.record import BenchReport
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model
from jaccl_kernel.wire import HOST, Event

DEFAULT_PROMPT = "Write 5 sentences about Thunderbolt RDMA."
TOPOLOGY = {"jaccl": "mesh", "jaccl-ring": "ring", "ring": "tcp ring"}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Args:
        model: a model folder, or a hub id in the local cache; None for the demo model.
        prompt: a text, put into the model's chat template.
        prompt_tokens: a made-up prompt of this many tokens instead of a text.
        max_tokens: how many tokens to generate (all of them, unless `stop_at_eos`).
        ranks: the numbers of ranks to measure; None for all hosts of the hostfile.
        repeats: measured runs per point, after a warm-up.
        sharding: "tensor" or "pipeline".
        stop_at_eos: end at the end-of-text token.
        backend: mlx.launch's; None for the hostfile's own.
        env: more variables for the ranks.
        python: the interpreter on every node; None for this one.
        starting_port: see JobSpec.
    """

    model: str | None = None
    prompt: str | None = None
    prompt_tokens: int | None = None
    max_tokens: int = 128
    ranks: Sequence[int] | None = None
    repeats: int = 3
    sharding: str = "tensor"
    stop_at_eos: bool = False
    backend: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    starting_port: int | None = None

    def text(self) -> str:
        """The prompt's text, where it is one."""
        return DEFAULT_PROMPT if self.prompt is None else self.prompt

    def program(self, model: str) -> tuple[str, ...]:
        """The rank program's arguments."""
        what = [
            "bench",
            "--model",
            model,
            "--max-tokens",
            str(self.max_tokens),
            "--repeats",
            str(self.repeats),
        ]
        if self.prompt_tokens is not None:
            what += ["--prompt-tokens", str(self.prompt_tokens)]
        else:
            what += [f"--prompt={self.text()}"]
        what += ["--sharding", self.sharding] if self.sharding != "tensor" else []
        return (*what, *(["--stop-at-eos"] if self.stop_at_eos else []))


async def bench(
    hostfile: Hostfile,
    options: BenchOptions | None = None,
    *,
    on_event: OnEvent = ignore,
    deadlines: Deadlines | None = None,
    save: bool = True,
) -> BenchReport:
    """Measure, compare and record.

    Events of the ranks go to `on_event` as they come; each measured point also as an event `point` of the
    host (rank -1). Cancelling ends the job that runs. What was measured outlives a later point that fails
    (it stands in the record's `failed`, and no further one is tried) and a record that cannot be saved.

    Raises:
        InputError: an option makes no sense, told before anything starts.
        HostfileError: the hostfile has an error that would stop the job.
        ModelError: the model is damaged, or does not split over so many ranks.
        JobError: the first job failed (see jobs.run).
    """
    options = options or BenchOptions()
    counts = _rank_counts(hostfile, options)
    _check_numbers(options)
    backend = effective_backend(hostfile, options.backend)
    for count in counts:
        check_hostfile(hostfile.subset(range(count)), backend)
    model, facts = await find_model(hostfile, options.model, options.sharding, counts, on_event)
    series = _Series(hostfile, options, backend, model)
    for number, count in enumerate(counts, 1):
        text = f"{count} rank{'s' if count > 1 else ''} (point {number} of {len(counts)})"
        on_event(Event(HOST, "stage", {"name": "bench", "text": text, "fraction": None}))
        try:
            outcome = await run(
                series.job(count),
                what="a benchmark",
                payload=series.payload(),
                on_event=on_event,
                deadlines=deadlines,
            )
            on_event(Event(HOST, "point", dict(series.add(count, outcome))))
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
        on_event(Event(HOST, "line", {"text": f"the record was not saved: {error}", "stream": "err"}))
        return None


class _Series:
    """The points of one benchmark as they come, each held against the first."""

    def __init__(self, hostfile: Hostfile, options: BenchOptions, backend: str, model: str) -> None:
        self.hostfile = hostfile
        self.options = options
        self.backend = backend
        self.model = model
        self.points: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.gates: list[parity.Parity] = []
        self.outcomes: list[Outcome] = []
        self._cluster = Cluster.of(hostfile)

    def job(self, count: int) -> JobSpec:
        """The job that measures `count` ranks."""
        return JobSpec(
            hostfile=self.hostfile.subset(range(count)),
            program=self.options.program(self.model),
            backend=self.backend,
            python=self.options.python or sys.executable,
            env=self.options.env,
            rank_env=self._cluster.rank_env[:count],
            starting_port=self.options.starting_port,
        )

    def payload(self) -> dict[str, Any]:
        """What the ranks are to score: the first point's tokens and their rivals, once there is one."""
        if not self.outcomes:
            return {}
        return {"reference": {"tokens": self.points[0]["tokens"], "top": self._score(0)["top"]}}

    def add(self, count: int, outcome: Outcome) -> dict[str, Any]:
        """Take a finished job; returns its point, with speed-up and efficiency."""
        _check_agreement(outcome.results)
        self.outcomes.append(outcome)
        self.points.append(record.make_point(outcome.results))
        record.add_speedups(self.points)
        if len(self.points) > 1:
            first, last = self.points[0], self.points[-1]
            self.gates.append(
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
        """Take the cause of a job that failed."""
        told = {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        self.failed.append({"ranks": count, "error": told})

    def record(self, model: dict[str, Any]) -> dict[str, Any]:
        """The whole record; `model` is what is known of the model."""
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
            "ranks": widest.facts,
            "environment": self.job(len(widest.facts)).whole_environment(),
            "hostfile": {
                "path": str(hostfile.path) if hostfile.path else None,
                "digest": hostfile.digest(),
            },
            "model": {"name": self.model, **model},
            "prompt": options.text() if options.prompt_tokens is None else None,
            "repeats": options.repeats,
            "stop_at_eos": options.stop_at_eos,
            "commands": [outcome.command for outcome in self.outcomes],
        }
        return {
            "schema": record.SCHEMA,
            "points": self.points,
            "failed": self.failed,
            "parity": parity.worst(self.gates).to_json(),
            "provenance": provenance,
        }

    def _score(self, point: int) -> dict[str, Any]:
        return dict(self.outcomes[point].results[0]["score"])


def _rank_counts(hostfile: Hostfile, options: BenchOptions) -> list[int]:
    size = len(hostfile.hosts)
    counts = sorted(set(options.ranks)) if options.ranks is not None else [size]
    if not counts or counts[0] < 1 or counts[-1] > size:
        raise InputError(
            f"cannot run on {', '.join(map(str, counts)) or 'no'} ranks: the hostfile has {size} hosts",
            fix=f"Give numbers from 1 to {size}, for example --ranks 1,{size}.",
        )
    return counts


def _check_numbers(options: BenchOptions) -> None:
    if options.max_tokens < 1:
        raise InputError(f"--max-tokens is {options.max_tokens}", fix="Ask for at least 1 token.")
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}", fix="At least 1 run has to be measured.")
    if options.prompt_tokens is not None and options.prompt_tokens < 1:
        raise InputError(f"--prompt-tokens is {options.prompt_tokens}", fix="A prompt has at least 1 token.")
    if options.prompt is not None and not options.prompt.strip():
        raise InputError("the prompt is empty", fix="Give --prompt a text, or --prompt-tokens a number.")
    if options.prompt is not None and options.prompt_tokens is not None:
        raise InputError("both a prompt and a number of prompt tokens were given", fix="Give one of the two.")


def _check_agreement(results: Sequence[dict[str, Any]]) -> None:
    digests = [one["tokens_digest"] for one in results]
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise JobError(
            f"rank {odd[0]} generated other tokens than rank 0 in the same run",
            where=f"rank {odd[0]}",
            fix="The ranks are out of step: its numbers are void. Compare mlx versions and model files.",
        )
