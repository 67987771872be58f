"""Cables compared with their baselines."""

from typing import Any

import pytest

from jaccl_kernel.report import baseline

NAMES = ["mac1", "mac2", "mac3"]


TODAY, TOMORROW = "2026-11-25T10:00:00", "2026-11-26T10:00:00"


def measured(factor: float = 1.0, *, backend: str = "ring", date: str = TODAY) -> dict[str, Any]:
    pairs = []
    for pair in ([0, 1], [1, 2]):
        slower = factor if pair == [0, 1] else 1.0
        for size, seconds in ((64, 25e-6), (1 << 26, 0.0085)):
            pairs.append({"pair": pair, "bytes": size, "seconds": seconds * slower,
                          "algbw": size / (seconds * slower)})  # fmt: skip
    return {"backend": backend, "date": date, "pairs": pairs}


def verdicts(told: list[dict[str, Any]]) -> list[str]:
    return [one["verdict"] for one in told]


def test_the_first_measurement_is_the_baseline_and_later_ones_are_compared_with_it() -> None:
    assert verdicts(baseline.judge(measured(), NAMES)) == ["first", "first"]
    assert verdicts(baseline.judge(measured(1.1), NAMES)) == ["as before", "as before"]
    slower = baseline.judge(measured(2.0, date=TOMORROW), NAMES)
    assert verdicts(slower) == ["slower", "as before"]
    assert "mac1 – mac2 (ring)" in slower[0]["told"]
    assert "(baseline of 2026-11-25: 25.0 us and 7.90 GB/s)" in slower[0]["told"]
    assert verdicts(baseline.judge(measured(0.5), NAMES)) == ["faster", "as before"]
    assert verdicts(baseline.judge(measured(2.0), NAMES)) == ["slower", "as before"], "the baseline stayed"


def test_a_newer_baseline_is_taken_only_when_it_is_accepted() -> None:
    baseline.judge(measured(), NAMES)
    baseline.accept(baseline.judge(measured(2.0), NAMES))
    assert verdicts(baseline.judge(measured(2.0), NAMES)) == ["as before", "as before"]


def test_a_cable_in_other_ports_or_over_another_backend_is_another_cable() -> None:
    rdma: list[list[Any]] = [
        [None, "rdma_en3", None],
        ["rdma_en5", None, ("rdma_en4", "rdma_en6")],
        [None, "rdma_en2", None],
    ]
    first = baseline.judge(measured(backend="jaccl"), NAMES, rdma)
    assert [one["cable"] for one in first] == [
        "mac1 rdma_en3 – mac2 rdma_en5 (jaccl)",
        "mac2 rdma_en4 rdma_en6 – mac3 rdma_en2 (jaccl)",
    ]
    rdma[0][1] = "rdma_en7"
    assert verdicts(baseline.judge(measured(backend="jaccl"), NAMES, rdma)) == ["first", "as before"]
    assert verdicts(baseline.judge(measured(backend="ring"), NAMES, rdma)) == ["first", "first"]


def test_a_damaged_file_of_baselines_is_measured_afresh() -> None:
    baseline.judge(measured(), NAMES)
    baseline.baseline_file().write_text('{"mac1 – mac2 (ring)": [1], "x": 3}')
    assert verdicts(baseline.judge(measured(), NAMES)) == ["first", "first"]


def test_one_pair_that_was_skipped_is_not_judged() -> None:
    alone = measured()
    alone["pairs"] = [one for one in alone["pairs"] if one["pair"] == [1, 2]]
    told = baseline.judge(alone, NAMES)
    assert [one["pair"] for one in told] == [[1, 2]]
    assert told[0]["bandwidth"] == pytest.approx((1 << 26) / 0.0085)
