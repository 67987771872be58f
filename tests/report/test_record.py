"""Records: points from results, spreads, files."""

import re
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.core.events import BenchResult
from jaccl_kernel.core.results import BenchRun, Power
from jaccl_kernel.report import record, table


def result(rank: int, *gaps: float) -> BenchResult:
    runs = (BenchRun(tuple(range(len(gaps) + 1)), 0.5, gaps),) * 2
    return BenchResult(10 + rank, "x", Power("a"), load_s=1.0 + rank, prompt_tokens=20, runs=runs, text="hi")


def test_a_point_counts_the_first_token_to_the_prompt() -> None:
    point = record.make_point([result(0, 0.1, 0.3), result(1, 0.1, 0.3)])
    assert point["ranks"] == 2
    assert point["generated_tokens"] == 3
    assert point["prompt_tps"] == {"median": 40, "min": 40, "max": 40}
    assert point["generation_tps"]["median"] == pytest.approx(2 / 0.4)
    assert point["itl_s"] == {"p50": pytest.approx(0.2), "p95": pytest.approx(0.3)}
    assert point["load_s"] == 2.0
    assert point["peak_memory_bytes"] == [10, 11]
    assert point["speedup"] is None


def test_one_token_has_no_generation_rate() -> None:
    point = record.make_point([result(0)])
    assert point["generation_tps"] == {"median": None, "min": None, "max": None}
    assert point["itl_s"] == {"p50": None, "p95": None}
    text = table.render(table.BENCH_COLUMNS, table.bench_rows({"points": [point]}))
    assert len({len(line) for line in text.splitlines()}) == 1


def test_speed_up_is_relative_to_the_fewest_ranks() -> None:
    one, two = record.make_point([result(0, 0.2)]), record.make_point([result(0, 0.1), result(1, 0.1)])
    record.add_speedups([one, two])
    assert (one["speedup"], one["efficiency"]) == (1.0, 1.0)
    assert (two["speedup"], two["efficiency"]) == (pytest.approx(2.0), pytest.approx(1.0))


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert record.percentile([], 50) is None
    assert record.percentile([3.0], 95) == 3.0
    assert record.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5


def test_a_record_is_saved_atomically_and_never_overwritten(tmp_path: Path) -> None:
    one = {"schema": 1, "provenance": {"date": "2026-11-22T10:20:30+00:00"}, "text": "ñ"}
    first, second = record.save(one, tmp_path), record.save(one, tmp_path)
    assert first != second
    assert all(re.fullmatch(r"bench-\d{8}-\d{6}(-2)?\.json", path.name) for path in (first, second))
    assert record.read(first) == one
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert set(record.saved(tmp_path)) == {first, second}
    swept = record.save({"kind": "sweep", **one}, tmp_path)
    assert record.saved(tmp_path, "sweep") == [swept]
    assert set(record.saved(tmp_path, "*")) == {first, second, swept}


def test_an_invalid_record_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="not a record"):
        record.read(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read the record"):
        record.read(tmp_path / "b.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(JacclError, match="cannot save the file"):
        record.save({"provenance": {"date": "2026-11-22T10:20:30"}}, tmp_path / "file")
