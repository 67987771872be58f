"""A benchmark's record: one JSON object with what was measured and what it was measured on.

Builds points from what the ranks told, and reads and writes records. Knows no jobs.
"""

import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import InputError, JacclError
from jaccl_kernel.paths import results_dir

SCHEMA = 1


@dataclass(frozen=True)
class BenchReport:
    """What `steps.bench` returns: the record, and the file that it was saved as (None if it was not)."""

    record: dict[str, Any]
    path: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every point ran and parity holds (not tested counts as no failure)."""
        return bool(self.record["parity"]["verdict"] != "different")

    @property
    def points(self) -> list[dict[str, Any]]:
        """One measured point per number of ranks."""
        return list(self.record["points"])


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
        "speedup": None,
        "efficiency": None,
        "tokens": runs[0]["tokens"],
        "text": first["text"],
    }


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
    """Write the record as `bench-DATE.json`, whole or not at all, and return its path.

    Raises:
        JacclError: the folder cannot be written.
    """
    folder = folder or results_dir()
    stamp = record["provenance"]["date"].replace(":", "").replace("-", "")[:15]
    path = folder / f"bench-{stamp}.json"
    number = 2
    while path.exists():
        path = folder / f"bench-{stamp}-{number}.json"
        number += 1
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            temporary = file.name
            json.dump(record, file, indent=1, ensure_ascii=False)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise JacclError(
            f"the record could not be saved: {error.strerror}",
            where=str(folder),
            fix="Free some space, or set JACCL_RESULTS to a folder that can be written.",
        ) from error
    return path


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


def newest(folder: Path | None = None) -> Path | None:
    """The record that was saved last, if there is any."""
    records = list((folder or results_dir()).glob("bench-*.json"))
    return max(records, key=lambda path: path.stat().st_mtime, default=None)
