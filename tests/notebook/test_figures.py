"""Figures of a benchmark's record."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from jaccl_kernel.report import figures


def point(ranks: int, rate: float | None) -> dict[str, Any]:
    none = {"median": None, "min": None, "max": None}
    rates = {"median": rate, "min": rate * 0.9, "max": rate * 1.1} if rate else none
    gaps = {"p50": 1 / rate, "p95": 2 / rate} if rate else {"p50": None, "p95": None}
    return {
        "ranks": ranks,
        "generation_tps": rates,
        "ttft_s": {"median": 0.2, "min": 0.1, "max": 0.4},
        "itl_s": gaps,
    }


def lines(axes: Any) -> list[tuple[str, list[float]]]:
    return [(line.get_label(), [float(y) for y in line.get_ydata()]) for line in axes.lines]


def heights(axes: Any) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_ideal_scaling_starts_at_the_fewest_ranks() -> None:
    record = {"points": [point(4, 60.0), point(2, 40.0)]}
    rate, first, between = figures.bench_figure(record).axes
    assert ("ideal scaling", [40.0, 80.0]) in lines(rate)
    assert [40.0, 60.0] in [ys for _, ys in lines(rate)]
    assert heights(first) == pytest.approx([200.0, 200.0])
    assert heights(between) == pytest.approx([25.0, 1000 / 60])


def test_the_spread_is_drawn_from_least_to_most() -> None:
    rate = figures.bench_figure({"points": [point(1, 50.0)]}).axes[0]
    (bars,) = rate.collections
    assert bars.get_segments()[0][:, 1] == pytest.approx([45.0, 55.0])


def test_what_was_not_measured_leaves_its_place_empty() -> None:
    rate, first, between = figures.bench_figure({"points": [point(1, None)]}).axes
    assert lines(rate) == []
    assert len(heights(first)) == 1
    assert heights(between) == []
    assert figures.describe({"points": [point(1, None)]}) == "Decode rate: not measured"


def test_a_rehearsal_says_so_in_the_figure() -> None:
    record = {"points": [point(1, 50.0)], "provenance": {"rehearsal": True}}
    assert figures.bench_figure(record).get_suptitle() == "REHEARSAL"
    assert figures.bench_figure({"points": record["points"]}).get_suptitle() == ""


def test_the_svg_is_one_element_with_no_address_to_fetch_from() -> None:
    root = ET.fromstring(figures.svg(figures.bench_figure({"points": [point(1, 9.0), point(2, 12.0)]})))
    assert root.tag.endswith("svg")
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not (name.endswith("href") and "//" in value)


def test_the_figure_is_told_in_words() -> None:
    told = figures.describe({"points": [point(1, 50.0), point(2, 80.0)]})
    assert told == "Decode rate: 50.0 tokens/s on 1 rank, 80.0 tokens/s on 2 ranks"


@pytest.mark.usefixtures("nothing_left")
def test_figures_leave_pyplot_alone() -> None:
    code = "import sys, jaccl_kernel.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
