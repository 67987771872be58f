"""Any record as rows, as one HTML file that opens offline, as CSV; and two records held against each other.

The file loads nothing: figures are inline SVG, and the whole record lies in it as JSON. Pure, but for `save`.
"""

import csv
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaccl_kernel.report import record, sweep_figures
from jaccl_kernel.report.figures import bench_figure, svg
from jaccl_kernel.report.table import BENCH_COLUMNS, bench_rows, number
from jaccl_kernel.saved import save_text

SWEEP_COLUMNS = (
    "ranks", "sharding", "backend", "prompt", "batch", "TTFT s", "decode tok/s", "all tok/s", "speed-up",
    "efficiency", "% of limit", "parity", "J/token", "peak GB",
)  # fmt: skip
LOAD_COLUMNS = (
    "clients", "prompt", "new tokens", "requests", "failed", "all tok/s", "TTFT p50/p95/p99 s",
    "ITL p50/p95/p99 ms",
)  # fmt: skip
COMPARE_COLUMNS = ("setting", "first", "second", "second over first")
NEEDLE_COLUMNS = ("ranks", "prompt", "verdict", "the answer")
CABLE_COLUMNS = ("cable", "latency us", "GB/s", "against its baseline")

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; font-size: 13px; }
td, th { text-align: right; padding: 4px 12px; border-bottom: 1px solid #8884; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; } svg { max-width: 100%; height: auto; }
.rehearsal { border: 1px dashed #b26a00; padding: 6px 12px; border-radius: 6px; }
.failed { color: #c62828; } :root { color-scheme: light dark; }
"""


def sweep_rows(found: dict[str, Any]) -> list[list[str]]:
    """One row of text per point, under SWEEP_COLUMNS; why some failed is told by `failures`."""
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
    """Why points failed: a sentence for each cause, with the points that it failed."""
    causes: dict[str, list[str]] = {}
    for point in found["points"]:
        if "error" in point:
            cause = " ".join([point["error"]["what"], point["error"]["fix"]]).strip()
            causes.setdefault(cause, []).append(point["label"])
        for cause in point.get("failures", ()):
            causes.setdefault(cause, []).append(f"{point['clients']} clients")
    return [f"{'; '.join(labels)}: {cause}" for cause, labels in causes.items()]


def load_rows(found: dict[str, Any]) -> list[list[str]]:
    """One row of text per point of a load test, under LOAD_COLUMNS."""
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
    """One row a cable, under CABLE_COLUMNS."""
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
    """One row a needle, under NEEDLE_COLUMNS."""
    verdicts = {True: "found", False: "NOT found", None: "not tested"}
    compared = {True: ", the same answer as the first", False: ", another answer than the first", None: ""}
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
    """Columns and rows of any record."""
    kind = found.get("kind", "bench")
    if kind == "sweep":
        return SWEEP_COLUMNS, sweep_rows(found)
    return (LOAD_COLUMNS, load_rows(found)) if kind == "load" else (BENCH_COLUMNS, bench_rows(found))


def to_csv(found: dict[str, Any]) -> str:
    """Its points as CSV: one row each, one column for each number, in the record's own units and names."""
    rows = [dict(_flat(point)) for point in found["points"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word below a value, by its dotted name; samples, tokens and texts are left out."""
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
    """One file: what was measured, on what, with figures."""
    provenance = found["provenance"]
    name = html.escape(str(provenance["model"]["name"] or "no model"))
    parts = [f"<h1>{name}</h1>"]
    if provenance["rehearsal"]:
        parts.append(
            '<p class="rehearsal"><b>REHEARSAL</b> simulated Macs. It proves nothing about RDMA.</p>'
        )
    told = f"{provenance['date']}, on {', '.join(provenance['hosts'])}; workbench {provenance['workbench']}"
    parts.append(f"<p>{html.escape(told)}{'; stopped before its end' if found.get('stopped') else ''}</p>")
    parts.append(_table(*rows_of(found)))
    parts += [f'<p class="failed">{html.escape(told)}</p>' for told in failures(found)]
    if found.get("cables"):
        parts += ["<h2>Cables</h2>", _table(CABLE_COLUMNS, cable_rows(found["cables"]))]
    parts += [_drawn(caption, svg(figure)) for caption, figure in figures_of(found)]
    if found.get("needles"):
        parts += ["<h2>A number hidden in a long text</h2>"]
        parts += [_table(NEEDLE_COLUMNS, needle_rows(found["needles"]))]
    parts.append(_provenance(provenance))
    # "</" inside a script would end it
    data = json.dumps(found, ensure_ascii=True).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="record">{data}</script>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{name}: benchmark</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def save(found: dict[str, Any]) -> tuple[Path, Path]:
    """Save a record and its page beside it, under one name.

    Raises:
        JacclError: the folder cannot be written.
    """
    path = record.save(found)
    return path, save_text(path.stem, ".html", to_html(found), folder=path.parent)


def figures_of(found: dict[str, Any]) -> list[tuple[str, Figure]]:
    """All figures of any record, each with its caption."""
    kind = found.get("kind", "bench")
    if kind == "sweep":
        return sweep_figures.figures(found)
    if kind == "load":
        return [("What clients waited for", sweep_figures.load_figure(found))]
    return [("Rates and latencies", bench_figure(found))]


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """Points that both records have, by setting: label, decode rate of each, the second over the first."""
    first, second = _rates(one), _rates(other)
    both = [label for label in first if label in second]
    return [
        [label, f"{first[label]:.1f}", f"{second[label]:.1f}", f"{second[label] / first[label]:.2f}x"]
        for label in both
    ]


def _rates(found: dict[str, Any]) -> dict[str, float]:
    """Each point's rate, by its setting in words."""
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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )  # fmt: skip
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _drawn(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{drawing}</figure>"


def _percentiles(told: dict[str, float | None], form: str, scale: float = 1.0) -> str:
    return "/".join(number(told[name], form, scale) for name in ("p50", "p95", "p99"))


def _provenance(provenance: dict[str, Any]) -> str:
    ranks = "".join(
        f"<li>{html.escape(json.dumps(one, ensure_ascii=False))}</li>" for one in provenance["ranks"]
    )
    return f"<h2>Measured on</h2><ul>{ranks}</ul>"
