"""A benchmark's record: one JSON object with the measurements and their provenance.

Builds points from the ranks' results, and reads and writes records. Does not depend on jobs.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import InputError, JacclError, JobError
from jaccl_kernel.core.events import BenchResult
from jaccl_kernel.core.files import save_json
from jaccl_kernel.core.paths import results_dir
from jaccl_kernel.core.results import BatchResult, BenchRun, Power

SCHEMA = 1
KINDS = ("bench", "sweep", "load")


@dataclass(frozen=True)
class Report:
    """The result of a measurement: the record, and the files of the record and its page, if saved."""

    record: dict[str, Any]
    path: Path | None = None
    page: Path | None = None

    @property
    def points(self) -> list[dict[str, Any]]:
        """The measured points."""
        return list(self.record["points"])


class BenchReport(Report):
    """The report of a benchmark over several numbers of ranks."""

    @property
    def ok(self) -> bool:
        """Whether every point succeeded and parity is not "different"."""
        return self.record["parity"]["verdict"] != "different" and not self.failed

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The failed number of ranks, if any: `ranks`, and `error` (type, what, where, fix)."""
        return list(self.record.get("failed", []))


class SweepReport(Report):
    """The report of a sweep over a grid of settings."""

    @property
    def ok(self) -> bool:
        """Whether every point succeeded, none differs from its reference, and the sweep was not stopped."""
        return not self.record["stopped"] and all(
            "error" not in point and (point.get("parity") or {}).get("verdict") != "different"
            for point in self.points
        )


class LoadReport(Report):
    """The report of a load test."""

    @property
    def ok(self) -> bool:
        """Whether every request of every point succeeded."""
        return not self.record["stopped"] and not any(point["failed"] for point in self.points)


def describe_error(error: JacclError) -> dict[str, str]:
    """The JSON object of an error in a record."""
    return {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}


def failed_point(point: Mapping[str, Any]) -> JobError:
    """The error of a failed benchmark point: the inverse of `describe_error`."""
    cause = point["error"]
    return JobError(f"{point['ranks']} ranks: {cause['what']}", where=cause["where"], fix=cause["fix"])


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, minimum and maximum; all None without values."""
    if not values:
        return {"median": None, "min": None, "max": None}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile by linear interpolation between the two nearest values; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def make_point(results: Sequence[BenchResult]) -> dict[str, Any]:
    """Build one point of a record from the results of its ranks, rank 0 first.

    Times are in seconds, rates in tokens per second, memory in bytes. The decode rate excludes the first
    token and its time, which belong to the prompt (TTFT).
    """
    first = results[0]
    runs = first.runs
    gaps = [gap for run in runs for gap in run.itl_s]
    return {
        "ranks": len(results),
        "prompt_tokens": first.prompt_tokens,
        "generated_tokens": len(runs[0].tokens),
        "load_s": max(one.load_s for one in results),
        "prompt_tps": spread([first.prompt_tokens / run.ttft_s for run in runs]),
        "generation_tps": spread([len(run.itl_s) / sum(run.itl_s) for run in runs if run.itl_s]),
        "ttft_s": spread([run.ttft_s for run in runs]),
        "itl_s": {"p50": percentile(gaps, 50), "p95": percentile(gaps, 95)},
        "peak_memory_bytes": [one.peak_memory_bytes for one in results],
        "energy": energy([one.power for one in results], total_tps(runs)),
        "speedup": None,
        "efficiency": None,
        "tokens": list(runs[0].tokens),
        "text": first.text,
    }


def make_batch_point(results: Sequence[BatchResult]) -> dict[str, Any]:
    """Build the point of a batch from the results of its ranks, rank 0 first; `tps` is tokens / wall_s."""
    times = results[0].times
    tps = times.tokens / times.wall_s
    return {
        **asdict(times),
        "token_bytes": results[0].token_bytes,
        "tps": tps,
        "peak_memory_bytes": [one.peak_memory_bytes for one in results],
        "energy": energy([one.power for one in results], tps),
    }


def energy(powers: Sequence[Power], tokens_per_s: float) -> dict[str, float] | None:
    """Watts of all machines and joules per token; None if a machine has no value (see ranks/energy.py).

    Args:
        powers: of each rank; ranks of one machine have the same watts.
        tokens_per_s: generated tokens per second, over a time that includes the prompts.
    """
    by_machine = {one.machine: one.watts for one in powers}
    known = [float(one) for one in by_machine.values() if one is not None]
    if not tokens_per_s or len(known) < len(by_machine):
        return None
    return {"watts": sum(known), "joules_per_token": sum(known) / tokens_per_s}


def total_tps(runs: Sequence[BenchRun]) -> float:
    """Generated tokens per second over all runs, including the time of their prompts."""
    return sum(len(run.tokens) for run in runs) / sum(run.seconds for run in runs)


def add_speedups(points: Sequence[dict[str, Any]]) -> None:
    """Add speed-up and efficiency relative to the point with the fewest ranks, if there are several."""
    if len(points) < 2:
        return
    base = min(points, key=lambda point: point["ranks"])
    for point in points:
        rate, base_rate = point["generation_tps"]["median"], base["generation_tps"]["median"]
        if rate is not None and base_rate:
            point["speedup"] = rate / base_rate
            point["efficiency"] = rate / base_rate * base["ranks"] / point["ranks"]


def save(record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write the record atomically as `KIND-DATE.json` (bench, sweep, load) and return its path.

    Raises:
        JacclError: the folder cannot be written.
    """
    return save_json(record.get("kind", "bench"), record, folder=folder)


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        InputError: the file is not a record of this schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the record: {error}", where=str(path)) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"not a record of schema {SCHEMA}", where=str(path))
    return record


def saved(folder: Path | None = None, kind: str = "bench") -> list[Path]:
    """The paths of the records of this kind ("*" for all), the newest first."""
    kinds = KINDS if kind == "*" else (kind,)
    found = [path for one in kinds for path in (folder or results_dir()).glob(f"{one}-*.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
