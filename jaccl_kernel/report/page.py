"""Formats any record as table rows, CSV or a self-contained HTML file, and compares two records.

The HTML file loads no resources: figures are inline SVG, and it contains the record as JSON. Pure, except
`save`.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaccl_kernel.core.files import save_text
from jaccl_kernel.report import record
from jaccl_kernel.report.table import BENCH_COLUMNS, bench_rows, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP_COLUMNS = (
    "ranks", "sharding", "backend", "prompt", "batch", "TTFT s", "decode tok/s", "all tok/s", "speed-up",
    "efficiency", "% of limit", "parity", "J/token", "peak GB",
)  # fmt: skip
LOAD_COLUMNS = (
    "clients", "prompt", "new tokens", "requests", "failed", "all tok/s", "TTFT p50/p95/p99 s",
    "ITL p50/p95/p99 ms",
)  # fmt: skip
COMPARE_COLUMNS = ("setting", "first", "second", "second / first")
NEEDLE_COLUMNS = ("ranks", "prompt", "verdict", "answer")
CABLE_COLUMNS = ("cable", "latency us", "GB/s", "baseline")

_PAGE = Path(__file__).with_suffix(".html")


def sweep_rows(found: dict[str, Any]) -> list[list[str]]:
    """One row per point, with SWEEP_COLUMNS; `failures` has the reasons of failed points."""
    rows = []
    for point in found["points"]:
        setting = point["setting"]
        row = [str(setting[name]) for name in ("ranks", "sharding", "backend", "prompt_tokens", "batch")]
        if "error" in point:
            rows.append([*row, *["-"] * 6, "failed", "-", "-"])
            continue
        ttft = point["ttft_s"]["median"] if isinstance(point["ttft_s"], dict) else point["ttft_s"]
        limit = point.get("limit") or {}
        rows.append(
            [
                *row,
                number(ttft, ".3f"),
                number(point["decode_tps"], ".1f"),
                number(point["tps"], ".1f"),
                number(point.get("speedup"), ".2f"),
                number(point.get("efficiency"), ".0%"),
                number(limit.get("percent"), ".0f"),
                (point.get("parity") or {}).get("verdict", "-"),
                number((point.get("energy") or {}).get("joules_per_token"), ".2f"),
                number(max(point["peak_memory_bytes"]), ".2f", 1e-9),
            ]
        )
    return rows


def failures(found: dict[str, Any]) -> list[str]:
    """The reasons of failed points: one sentence per cause, with its points."""
    causes: dict[str, list[str]] = {}
    for point in found["points"]:
        if "error" in point:
            cause = " ".join([point["error"]["what"], point["error"]["fix"]]).strip()
            causes.setdefault(cause, []).append(point["label"])
        for cause in point.get("failures", ()):
            causes.setdefault(cause, []).append(f"{point['clients']} clients")
    return [f"{'; '.join(labels)}: {cause}" for cause, labels in causes.items()]


def load_rows(found: dict[str, Any]) -> list[list[str]]:
    """One row per point of a load test, with LOAD_COLUMNS."""
    return [
        [
            str(point["clients"]),
            number(point["prompt_tokens_mean"], ".0f"),
            str(point["max_tokens"]),
            str(point["requests"]),
            str(point["failed"]),
            number(point["tps"], ".1f"),
            _percentiles(point["ttft_s"], ".2f"),
            _percentiles(point["itl_s"], ".1f", 1e3),
        ]
        for point in found["points"]
    ]


def cable_rows(cables: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row per cable, with CABLE_COLUMNS."""
    return [
        [
            one["cable"],
            number(one["latency_s"], ".1f", 1e6),
            number(one["bandwidth"], ".2f", 1e-9),
            one["verdict"]
            if one["verdict"] == "first"
            else f"{one['verdict']} ({one['baseline']['date'][:10]})",
        ]
        for one in cables
    ]


def needle_rows(needles: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row per needle, with NEEDLE_COLUMNS."""
    verdicts = {True: "found", False: "NOT found", None: "not tested"}
    compared = {True: ", same answer as the first", False: ", answer differs from the first", None: ""}
    return [
        [
            str(one["setting"]["ranks"]),
            str(one["prompt_tokens"]),
            verdicts[one["found"]] + (compared[one["as_first"]] if one["found"] is not None else ""),
            one.get("error") or " ".join(one["text"].split())[:60],
        ]
        for one in needles
    ]


def rows_of(found: dict[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """The columns and rows of any record."""
    kind = found.get("kind", "bench")
    if kind == "sweep":
        return SWEEP_COLUMNS, sweep_rows(found)
    return (LOAD_COLUMNS, load_rows(found)) if kind == "load" else (BENCH_COLUMNS, bench_rows(found))


def to_csv(found: dict[str, Any]) -> str:
    """The points of a record as CSV: one row per point, one column per value, with the record's names."""
    rows = [dict(_flat(point)) for point in found["points"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar in a value by its dotted name, without samples, tokens and texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("samples", "tokens", "text") or not isinstance(inner, dict | list | str):
                yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{at}")
    else:
        yield name, value


def to_html(found: dict[str, Any]) -> str:
    """The HTML page of a record: measurements, figures and provenance."""
    from jinja2 import Template  # slow to import, as matplotlib is; tables and CSV need neither

    from jaccl_kernel.report.figures import svg

    columns, rows = rows_of(found)
    provenance = found["provenance"]
    template = Template(_PAGE.read_text(encoding="utf-8"), autoescape=True)
    text: str = template.render(
        provenance=provenance,
        stopped=found.get("stopped"),
        columns=columns,
        rows=rows,
        failures=failures(found),
        cable_columns=CABLE_COLUMNS,
        cables=cable_rows(found.get("cables") or ()),
        figures=[(caption, svg(figure)) for caption, figure in figures_of(found)],
        needle_columns=NEEDLE_COLUMNS,
        needles=needle_rows(found.get("needles") or ()),
        ranks=[json.dumps(one, ensure_ascii=False) for one in provenance["ranks"]],
        data=json.dumps(found, ensure_ascii=True).replace("</", "<\\/"),  # "</" would end the script element
    )
    return text


def save(found: dict[str, Any]) -> tuple[Path, Path]:
    """Save a record and its HTML page under the same name.

    Raises:
        JacclError: the folder cannot be written.
    """
    path = record.save(found)
    return path, save_text(path.stem, ".html", to_html(found), folder=path.parent)


def figures_of(found: dict[str, Any]) -> "list[tuple[str, Figure]]":
    """All figures of a record, each with its caption."""
    from jaccl_kernel.report import sweep_figures
    from jaccl_kernel.report.figures import bench_figure

    kind = found.get("kind", "bench")
    if kind == "sweep":
        return sweep_figures.figures(found)
    if kind == "load":
        return [("Latencies of the clients", sweep_figures.load_figure(found))]
    return [("Rates and latencies", bench_figure(found))]


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """The points that both records have: label, decode rate of each, and the ratio second / first."""
    first, second = _rates(one), _rates(other)
    both = [label for label in first if label in second]
    return [
        [label, f"{first[label]:.1f}", f"{second[label]:.1f}", f"{second[label] / first[label]:.2f}x"]
        for label in both
    ]


def _rates(found: dict[str, Any]) -> dict[str, float]:
    """The rate of each point by its label."""
    rates = {}
    for point in found["points"]:
        if found.get("kind") == "sweep":
            label, rate = str(point["label"]), point.get("decode_tps")
        elif found.get("kind") == "load":
            sizes = f"{point['prompt_tokens']} + {point['max_tokens']} tokens"
            label, rate = f"{point['clients']} clients, {sizes}", point["tps"]
        else:
            label = f"{point['ranks']} ranks, prompt {point['prompt_tokens']}"
            rate = point["generation_tps"]["median"]
        if rate:
            rates[label] = float(rate)
    return rates


def _percentiles(values: dict[str, float | None], form: str, scale: float = 1.0) -> str:
    return "/".join(number(values[name], form, scale) for name in ("p50", "p95", "p99"))
