"""The table renderer for the terminal, and the rows of a benchmark for all user interfaces."""

from collections.abc import Sequence
from typing import Any

BENCH_COLUMNS = (
    "ranks", "prompt tok/s", "TTFT s", "decode tok/s", "min–max", "ITL p50/p95 ms", "speed-up", "efficiency",
    "load s", "peak GB per rank",
)  # fmt: skip


def render(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table with right-aligned columns."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [columns, *rows]
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def bench_rows(record: dict[str, Any]) -> list[list[str]]:
    """One row per point of a benchmark's record, with BENCH_COLUMNS."""
    return [
        [
            str(point["ranks"]),
            number(point["prompt_tps"]["median"], ".1f"),
            number(point["ttft_s"]["median"], ".3f"),
            number(point["generation_tps"]["median"], ".1f"),
            _range(point["generation_tps"]),
            f"{number(point['itl_s']['p50'], '.1f', 1e3)}/{number(point['itl_s']['p95'], '.1f', 1e3)}",
            number(point["speedup"], ".2f"),
            number(point["efficiency"], ".0%"),
            number(point["load_s"], ".2f"),
            " ".join(number(size, ".2f", 1e-9) for size in point["peak_memory_bytes"]),
        ]
        for point in record["points"]
    ]


def _range(spread: dict[str, float | None]) -> str:
    return f"{number(spread['min'], '.1f')}–{number(spread['max'], '.1f')}"


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A formatted number, or "-" if not measured."""
    return "-" if value is None else format(value * scale, form)
