"""Any record as rows, as one HTML file that opens offline, as CSV; and two records held against each other.

Pure. The file loads nothing: figures are inline SVG, and the whole record lies in it as JSON.
"""

import csv
import html
import io
import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from jaccl_kernel.report import sweep_figures
from jaccl_kernel.report.figures import bench_figure, svg
from jaccl_kernel.report.table import BENCH_COLUMNS, bench_rows, number

SWEEP_COLUMNS = (
    "ranks", "sharding", "backend", "prompt", "batch", "TTFT s", "decode tok/s", "all tok/s", "speed-up",
    "efficiency", "% of limit", "parity", "J/token", "peak GB",
)  # fmt: skip
LOAD_COLUMNS = (
    "clients", "prompt", "new tokens", "requests", "failed", "all tok/s", "TTFT p50/p95/p99 s",
    "ITL p50/p95/p99 ms",
)  # fmt: skip
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


def sweep_rows(record: dict[str, Any]) -> list[list[str]]:
    """One row of text per point, under SWEEP_COLUMNS; a failed one says why."""
    rows = []
    for point in record["points"]:
        setting = point["setting"]
        row = [str(setting[name]) for name in ("ranks", "sharding", "backend", "prompt_tokens", "batch")]
        if "error" in point:
            rows.append([*row, *["-"] * 6, f"failed: {point['error']['what']}", "-", "-"])
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


def load_rows(record: dict[str, Any]) -> list[list[str]]:
    """One row of text per point of a load test, under LOAD_COLUMNS."""
    return [
        [
            str(point["clients"]),
            str(point["prompt_tokens"]),
            str(point["max_tokens"]),
            str(point["requests"]),
            str(point["failed"]),
            number(point["tps"], ".1f"),
            _percentiles(point["ttft_s"], ".2f"),
            _percentiles(point["itl_s"], ".1f", 1e3),
        ]
        for point in record["points"]
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
    return [
        [
            str(one["setting"]["ranks"]),
            str(one["prompt_tokens"]),
            verdicts[one["found"]],
            one.get("error") or " ".join(one["text"].split())[:60],
        ]
        for one in needles
    ]


def rows_of(record: dict[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Columns and rows of any record."""
    kind = record.get("kind", "bench")
    if kind == "sweep":
        return SWEEP_COLUMNS, sweep_rows(record)
    return (LOAD_COLUMNS, load_rows(record)) if kind == "load" else (BENCH_COLUMNS, bench_rows(record))


def to_csv(record: dict[str, Any]) -> str:
    """Its table as CSV."""
    columns, rows = rows_of(record)
    out = io.StringIO()
    csv.writer(out).writerows([columns, *rows])
    return out.getvalue()


def to_html(record: dict[str, Any]) -> str:
    """One file: what was measured, on what, with figures."""
    provenance = record["provenance"]
    name = html.escape(str(provenance["model"]["name"] or "no model"))
    parts = [f"<h1>{name}</h1>"]
    if provenance["rehearsal"]:
        parts.append(
            '<p class="rehearsal"><b>REHEARSAL</b> simulated Macs. It proves nothing about RDMA.</p>'
        )
    told = f"{provenance['date']}, on {', '.join(provenance['hosts'])}; workbench {provenance['workbench']}"
    parts.append(f"<p>{html.escape(told)}{'; stopped before its end' if record.get('stopped') else ''}</p>")
    parts.append(_table(*rows_of(record)))
    if record.get("cables"):
        parts += ["<h2>Cables</h2>", _table(CABLE_COLUMNS, cable_rows(record["cables"]))]
    parts += [_drawn(caption, svg(figure)) for caption, figure in figures_of(record)]
    if record.get("needles"):
        parts += ["<h2>A number hidden in a long text</h2>"]
        parts += [_table(NEEDLE_COLUMNS, needle_rows(record["needles"]))]
    parts.append(_provenance(provenance))
    # "</" inside a script would end it
    data = json.dumps(record, ensure_ascii=True).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="record">{data}</script>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{name}: benchmark</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def figures_of(record: dict[str, Any]) -> list[tuple[str, Figure]]:
    """All figures of any record, each with its caption."""
    kind = record.get("kind", "bench")
    if kind == "sweep":
        return sweep_figures.figures(record)
    if kind == "load":
        return [("What clients waited for", sweep_figures.load_figure(record))]
    return [("Rates and latencies", bench_figure(record))]


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[list[str]]:
    """Points that both records have, by setting: label, decode rate of each, the second over the first."""
    first, second = _rates(one), _rates(other)
    both = [label for label in first if label in second]
    return [
        [label, f"{first[label]:.1f}", f"{second[label]:.1f}", f"{second[label] / first[label]:.2f}x"]
        for label in both
    ]


def _rates(record: dict[str, Any]) -> dict[str, float]:
    """Each point's rate, by its setting in words."""
    rates = {}
    for point in record["points"]:
        if record.get("kind") == "sweep":
            label, rate = str(point["label"]), point.get("decode_tps")
        elif record.get("kind") == "load":
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
