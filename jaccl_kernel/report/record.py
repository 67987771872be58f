"""A benchmark's record: one JSON object with what was measured and what it was measured on.

Builds points from what the ranks told, and reads and writes records. Knows no jobs.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import InputError
from jaccl_kernel.paths import results_dir
from jaccl_kernel.saved import save_json

SCHEMA = 1
KINDS = ("bench", "sweep", "load")


@dataclass(frozen=True)
class Report:
    """What a measurement returns: the record, and the files that it and its page were saved as, if any."""

    record: dict[str, Any]
    path: Path | None = None
    page: Path | None = None

    @property
    def points(self) -> list[dict[str, Any]]:
        """What was measured, point by point."""
        return list(self.record["points"])


class BenchReport(Report):
    """A benchmark over numbers of ranks."""

    @property
    def ok(self) -> bool:
        """Whether every point ran and parity holds (not tested counts as no failure)."""
        return self.record["parity"]["verdict"] != "different" and not self.failed

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The number of ranks that failed, if one did: `ranks`, and `error` (type, what, where, fix)."""
        return list(self.record.get("failed", []))


class SweepReport(Report):
    """A grid of settings."""

    @property
    def ok(self) -> bool:
        """Whether every point ran, none said anything else than its reference, and none was left out."""
        return not self.record["stopped"] and all(
            "error" not in point and (point.get("parity") or {}).get("verdict") != "different"
            for point in self.points
        )


class LoadReport(Report):
    """A load test."""

    @property
    def ok(self) -> bool:
        """Whether every request of every point was answered."""
        return not self.record["stopped"] and not any(point["failed"] for point in self.points)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median, smallest and largest; all None when nothing was measured."""
    if not values:
        return {"median": None, "min": None, "max": None}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile by linear interpolation between the two nearest values; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def make_point(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One point of a record from the results of its ranks, rank 0 first.

    Times are seconds, rates tokens per second, memory bytes. The generation rate counts the tokens after the
    first over the time after the first: the first belongs to the prompt (TTFT).
    """
    first = results[0]
    runs = first["runs"]
    gaps = [gap for run in runs for gap in run["itl_s"]]
    return {
        "ranks": len(results),
        "prompt_tokens": first["prompt_tokens"],
        "generated_tokens": len(runs[0]["tokens"]),
        "load_s": max(one["load_s"] for one in results),
        "prompt_tps": spread([first["prompt_tokens"] / run["ttft_s"] for run in runs]),
        "generation_tps": spread([len(run["itl_s"]) / sum(run["itl_s"]) for run in runs if run["itl_s"]]),
        "ttft_s": spread([run["ttft_s"] for run in runs]),
        "itl_s": {"p50": percentile(gaps, 50), "p95": percentile(gaps, 95)},
        "peak_memory_bytes": [one["peak_memory_bytes"] for one in results],
        "energy": energy([one["power"] for one in results], _tokens_per_s(runs)),
        "speedup": None,
        "efficiency": None,
        "tokens": runs[0]["tokens"],
        "text": first["text"],
    }


def energy(powers: Sequence[dict[str, Any]], tokens_per_s: float) -> dict[str, float] | None:
    """Watts of all machines and joules a token; None unless every machine told (see ranks/energy.py).

    Args:
        powers: each rank's `machine` and `watts`; ranks of one machine tell of the same watts.
        tokens_per_s: of all that was generated in that time, prompts included in the time.
    """
    by_machine = {one["machine"]: one["watts"] for one in powers}
    known = [float(one) for one in by_machine.values() if one is not None]
    if not tokens_per_s or len(known) < len(by_machine):
        return None
    return {"watts": sum(known), "joules_per_token": sum(known) / tokens_per_s}


def _tokens_per_s(runs: Sequence[dict[str, Any]]) -> float:
    seconds = sum(run["ttft_s"] + sum(run["itl_s"]) for run in runs)
    return float(sum(len(run["tokens"]) for run in runs) / seconds)


def add_speedups(points: Sequence[dict[str, Any]]) -> None:
    """Fill in speed-up and efficiency against the point with the fewest ranks, when there are several."""
    if len(points) < 2:
        return
    base = min(points, key=lambda point: point["ranks"])
    for point in points:
        rate, base_rate = point["generation_tps"]["median"], base["generation_tps"]["median"]
        if rate is not None and base_rate:
            point["speedup"] = rate / base_rate
            point["efficiency"] = rate / base_rate * base["ranks"] / point["ranks"]


def save(record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write the record as `KIND-DATE.json` (bench, sweep, load), whole or not at all, and return its path.

    Raises:
        JacclError: the folder cannot be written.
    """
    return save_json(record.get("kind", "bench"), record, folder=folder)


def read(path: Path) -> dict[str, Any]:
    """Read a record back.

    Raises:
        InputError: not a record of this schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as a record: {error}", where=str(path)) from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise InputError(f"not a record of schema {SCHEMA}", where=str(path))
    return record


def saved(folder: Path | None = None, kind: str = "bench") -> list[Path]:
    """The records of this kind ("*" for all), the newest first."""
    kinds = KINDS if kind == "*" else (kind,)
    found = [path for one in kinds for path in (folder or results_dir()).glob(f"{one}-*.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
