"""The figures of a sweep's record: scaling, time per token, throughput and collectives.

Pure, no pyplot (see figures.py). Every function returns a Figure, or None if the record has no data for it.
"""

from typing import Any

from matplotlib.figure import Figure

from jaccl_kernel.report.figures import FIRST, INK, SECOND

THIRD = "#8a8f98"
COLORS = (FIRST, SECOND, "#4d9a5b", "#a05fb0", "#b34a4a", "#5a6acf")


def figures(record: dict[str, Any]) -> list[tuple[str, Figure]]:
    """All figures for which the record has data, each with its caption."""
    made = (
        ("Decode rate by number of ranks, against ideal scaling", scaling(record)),
        ("Time per token: memory, collectives, other", token_time(record)),
        ("Decode rate by prompt length", against_context(record)),
        ("Throughput by batch size", throughput(record)),
        ("Collectives: latency and bandwidth by size", collectives(record)),
    )
    return [(caption, figure) for caption, figure in made if figure is not None]


def scaling(record: dict[str, Any]) -> Figure | None:
    """Decode rate of one sequence by number of ranks, one line per combination of the other settings."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in _single(record):
        lines.setdefault(_label_without(point, "ranks", "sharding", "backend"), []).append(
            (point["setting"]["ranks"], point["decode_tps"])
        )
    if not any(len({ranks for ranks, _ in line}) > 1 for line in lines.values()):
        return None
    figure, axes = _figure("decode, tokens/s", "ranks")
    for color, (label, line) in zip(_colors(lines), sorted(lines.items()), strict=True):
        best = {ranks: max(rate for other, rate in line if other == ranks) for ranks, _ in line}
        ranks = sorted(best)
        axes.plot(ranks, [best[one] for one in ranks], color=color, marker="o", markersize=4, label=label)
        ideal = [best[ranks[0]] / ranks[0] * one for one in ranks]
        axes.plot(ranks, ideal, color=color, linestyle=(0, (4, 3)), linewidth=0.9, alpha=0.6)
        axes.set_xticks(ranks)
    axes.set_ylim(bottom=0)
    _legend(axes, "dashed: ideal scaling")
    return _marked(figure, record)


def token_time(record: dict[str, Any]) -> Figure | None:
    """Stacked milliseconds per token: memory, collectives, other."""
    points = [point for point in _single(record) if point.get("limit")]
    if not points:
        return None
    figure, axes = _figure("ms per token", "")
    places = range(len(points))
    bottom = [0.0] * len(points)
    for name, color in (("memory", FIRST), ("collectives", SECOND), ("other", THIRD)):
        heights = [point["limit"][f"{name}_ms"] for point in points]
        axes.bar(places, heights, bottom=bottom, width=0.6, color=color, alpha=0.9, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for place, point, top in zip(places, points, bottom, strict=True):
        axes.annotate(
            f"{point['limit']['percent']:.0f} % of the limit", (place, top), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=7, color=INK,
        )  # fmt: skip
    axes.set_xticks(list(places), [_short(point) for point in points], fontsize=7)
    axes.set_ylim(0, max(bottom) * 1.15)
    _legend(axes)
    return _marked(figure, record)


def against_context(record: dict[str, Any]) -> Figure | None:
    """Decode rate by prompt length, one line per number of ranks."""
    titles = ("decode, tokens/s", "prompt tokens")
    return _against(record, _single(record), "prompt_tokens", "decode_tps", titles)


def throughput(record: dict[str, Any]) -> Figure | None:
    """Tokens of all sequences per second, including prefill time, by batch size."""
    titles = ("throughput, tokens/s", "batch size")
    return _against(record, _measured(record), "batch", "tps", titles)


def _against(
    record: dict[str, Any], points: list[dict[str, Any]], axis: str, rate: str, titles: tuple[str, str]
) -> Figure | None:
    """A rate by one axis of the grid, one line per combination of the others; None without two values."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        lines.setdefault(_label_without(point, axis), []).append((point["setting"][axis], point[rate]))
    if not any(len(line) > 1 for line in lines.values()):
        return None
    figure, axes = _figure(*titles)
    for color, (label, line) in zip(_colors(lines), sorted(lines.items()), strict=True):
        axes.plot(*zip(*sorted(line), strict=True), color=color, marker="o", markersize=4, label=label)
    axes.set_xticks(sorted({at for line in lines.values() for at, _ in line}))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _marked(figure, record)


def collectives(record: dict[str, Any]) -> Figure | None:
    """Latency and bus bandwidth by size, for the group and each pair, with logarithmic axes."""
    if not record["collectives"]:
        return None
    figure = Figure(figsize=(9.0, 3.3), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2)
    _style_axes(left, "latency, us", "size")
    _style_axes(right, "bus bandwidth, GB/s", "size")
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for told in record["collectives"]:
        where = f"{told['ranks']} ranks, {told['backend']}"
        for one in (*told["group"], *told["pairs"]):
            name = f"{one['op']} {one['pair'][0]}–{one['pair'][1]}" if "pair" in one else one["op"]
            lines.setdefault(f"{name} ({where})", []).append((one["bytes"], one["seconds"], one["busbw"]))
    for color, (label, line) in zip(_colors(lines), sorted(lines.items()), strict=True):
        sizes, seconds, speeds = zip(*sorted(line), strict=True)
        left.plot(sizes, [one * 1e6 for one in seconds], color=color, marker=".", label=label)
        right.plot(sizes, [one / 1e9 for one in speeds], color=color, marker=".", label=label)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: _size(value))
    _legend(left)
    return _marked(figure, record)


def load_figure(record: dict[str, Any]) -> Figure:
    """The distributions of TTFT and inter-token latency in a load test."""
    figure = Figure(figsize=(9.0, 3.3), layout="constrained")
    figure.patch.set_alpha(0)
    several = len({(one["prompt_tokens"], one["max_tokens"]) for one in record["points"]}) > 1
    for axes, name, title in zip(
        figure.subplots(1, 2), ("ttft_s", "itl_s"), ("TTFT, s", "inter-token latency, s"), strict=True
    ):
        _style_axes(axes, title, "seconds")
        for color, point in zip(_colors(record["points"]), record["points"], strict=True):
            values = point["samples"][name]
            if not values:
                continue
            shares = [(at + 1) / len(values) * 100 for at in range(len(values))]
            sizes = f", {point['prompt_tokens']} + {point['max_tokens']} tokens" if several else ""
            label = f"{point['clients']} client{'s' if point['clients'] != 1 else ''}{sizes}"
            axes.step(values, shares, color=color, where="post", label=label)
            axes.plot(point[name]["p95"], 95, color=color, marker="o", markersize=4)
        axes.axhline(95, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
        axes.set_ylabel("cumulative % (dots: p95)", fontsize=7, color=INK)
        axes.set_xlim(left=0)
    _legend(axes)
    return _marked(figure, record)


def _size(value: float) -> str:
    for unit, step in (("MB", 1 << 20), ("KB", 1 << 10)):
        if value >= step:
            return f"{value / step:g} {unit}"
    return f"{value:g} B"


def _measured(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [point for point in record["points"] if "error" not in point]


def _single(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [point for point in _measured(record) if point["setting"]["batch"] == 1 and point["decode_tps"]]


def _label_without(point: dict[str, Any], *omitted: str) -> str:
    """The label of a point's setting without some of its axes."""
    setting = point["setting"]
    words = {
        "ranks": f"{setting['ranks']} ranks" if setting["ranks"] > 1 else "1 rank",
        "sharding": setting["sharding"] if setting["ranks"] > 1 else "",
        "backend": setting["backend"] if setting["ranks"] > 1 else "",
        "prompt_tokens": f"prompt {setting['prompt_tokens']}",
        "batch": f"batch {setting['batch']}",
        "fast_synch": "fast sync" if setting["fast_synch"] else "",
    }
    return ", ".join(text for name, text in words.items() if name not in omitted and text)


def _short(point: dict[str, Any]) -> str:
    setting = point["setting"]
    way = f"\n{setting['sharding']}" if setting["ranks"] > 1 else "\n"
    return f"{setting['ranks']}×{way}\n{setting['prompt_tokens']}"


def _colors(lines: Any) -> list[str]:
    return [COLORS[at % len(COLORS)] for at in range(len(lines))]


def _figure(title: str, below: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.0, 3.3), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    _style_axes(axes, title, below)
    return figure, axes


def _style_axes(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel(below, fontsize=8, color=INK)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _legend(axes: Any, title: str | None = None) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(fontsize=7, frameon=False, labelcolor=INK, title=title, title_fontsize=7)


def _marked(figure: Figure, record: dict[str, Any]) -> Figure:
    if record.get("provenance", {}).get("rehearsal"):
        figure.suptitle("REHEARSAL", x=0.99, ha="right", fontsize=7, color=INK, weight="bold")
    return figure
