"""The figure of a benchmark's record: throughput against ideal scaling, and latencies. Pure, no pyplot.

pyplot has global state and needs the main thread; a Figure does not. `svg` renders a figure; all text has the
colour `INK`, which works on pages with any theme.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#57606a"  # text and axes: a mid grey that is readable on white and on black
FIRST = "#3b82c4"
SECOND = "#c77420"
SIZE_INCHES = (9.0, 3.1)
MS = 1e3


def bench_figure(record: dict[str, Any]) -> Figure:
    """Draw the decode rate per number of ranks with its spread, the TTFT, and the inter-token latency.

    Args:
        record: a benchmark's record. A quantity that was not measured (one token has no rate) is left blank.
    """
    points = sorted(record["points"], key=lambda point: int(point["ranks"]))
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.patch.set_alpha(0)
    rate, ttft, itl = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_rate(rate, points)
    _draw_bars(
        ttft,
        points,
        "TTFT, ms",
        [_spread(point["ttft_s"], MS) for point in points],
        color=SECOND,
        form=".0f",
    )
    gaps = [point["itl_s"] for point in points]
    _draw_bars(
        itl,
        points,
        "inter-token latency, ms (p50 to p95)",
        [_itl(gap) for gap in gaps],
        color=FIRST,
        form=".1f",
    )
    if record.get("provenance", {}).get("rehearsal"):
        figure.suptitle("REHEARSAL", x=0.99, ha="right", fontsize=7, color=INK, weight="bold")
    return figure


def describe(record: dict[str, Any]) -> str:
    """The figure as a sentence, as a text alternative."""
    rates = [
        f"{point['generation_tps']['median']:.1f} tokens/s on {_ranks(point['ranks'])}"
        for point in record["points"]
        if point["generation_tps"]["median"] is not None
    ]
    return f"Decode rate: {', '.join(rates) or 'not measured'}"


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without XML prolog, date or background."""
    out = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue().decode("utf-8")
    return text[text.index("<svg") :]


def _draw_rate(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    _style_axes(axes, points, "decode, tokens/s")
    measured = [point for point in points if point["generation_tps"]["median"] is not None]
    if not measured:
        return
    ranks = [point["ranks"] for point in measured]
    middle, low, high = zip(*(_spread(point["generation_tps"], 1.0) for point in measured), strict=True)
    ideal = [middle[0] / ranks[0] * count for count in ranks]
    if len(ranks) > 1:
        axes.plot(ranks, ideal, linestyle=(0, (4, 3)), linewidth=1.1, color=INK, label="ideal scaling")
    errors = [
        [value - least for value, least in zip(middle, low, strict=True)],
        [most - value for value, most in zip(middle, high, strict=True)],
    ]
    axes.errorbar(
        ranks, middle, yerr=errors, color=FIRST, marker="o", markersize=5, linewidth=1.8, capsize=4,
        label="measured (median, min to max)",
    )  # fmt: skip
    for count, value in zip(ranks, middle, strict=True):
        # the line starts at the first point, so its label is on the left
        aside, side = ((-8, -3), "right") if count == ranks[0] else ((7, -10), "left")
        axes.annotate(
            f"{value:.1f}", (count, value), xytext=aside, textcoords="offset points", ha=side, fontsize=8,
            color=INK,
        )  # fmt: skip
    axes.set_ylim(0, max(*high, *ideal) * 1.2)
    axes.margins(x=0.28)
    axes.legend(loc="upper left", fontsize=7, frameon=False, labelcolor=INK)


def _draw_bars(
    axes: Any,
    points: Sequence[dict[str, Any]],
    title: str,
    values: Sequence[tuple[float, float, float] | None],
    *,
    color: str,
    form: str,
) -> None:
    _style_axes(axes, points, title)
    positions = range(len(points))
    axes.set_xticks(list(positions), [str(point["ranks"]) for point in points])
    axes.set_xlim(-0.7, len(points) - 0.3)
    top = 0.0
    for position, value in zip(positions, values, strict=True):
        if value is None:
            continue
        middle, low, high = value
        axes.bar(position, middle, width=0.5, color=color, alpha=0.85)
        axes.errorbar(
            position, middle, yerr=[[middle - low], [high - middle]], color=INK, capsize=3, linewidth=1.1
        )
        axes.annotate(
            format(middle, form), (position, high), xytext=(0, 3), textcoords="offset points", ha="center",
            fontsize=8, color=INK,
        )  # fmt: skip
        top = max(top, high)
    if top:
        axes.set_ylim(0, top * 1.2)


def _style_axes(axes: Any, points: Sequence[dict[str, Any]], title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("ranks", fontsize=8, color=INK)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xticks([point["ranks"] for point in points])


def _spread(values: dict[str, float | None], scale: float) -> tuple[float, float, float]:
    """(median, min, max), scaled."""
    return tuple(float(values[name] or 0.0) * scale for name in ("median", "min", "max"))  # type: ignore[return-value]


def _itl(gap: dict[str, float | None]) -> tuple[float, float, float] | None:
    """(p50, p50, p95) in milliseconds; None for a single token."""
    if gap["p50"] is None or gap["p95"] is None:
        return None
    return gap["p50"] * MS, gap["p50"] * MS, gap["p95"] * MS


def _ranks(count: int) -> str:
    return f"{count} rank" if count == 1 else f"{count} ranks"
