"""Records as pages, CSV and comparisons."""

import copy
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cli.main import main
from jaccl_kernel.report import page, record

SETTING = {"sharding": "tensor", "backend": "ring", "prompt_tokens": 128, "batch": 1, "fast_synch": False}


def point(ranks: int, rate: float) -> dict[str, Any]:
    limit = {"limit_tps": 2 * rate, "percent": 50.0, "memory_ms": 3.0, "collectives_ms": 1.0, "other_ms": 2.0}
    return {
        "setting": {"ranks": ranks, **SETTING},
        "label": f"{ranks} ranks",
        "ttft_s": {"median": 0.2, "min": 0.1, "max": 0.3},
        "decode_tps": rate,
        "tps": rate * 0.9,
        "speedup": rate / 10,
        "efficiency": rate / 10 / ranks,
        "limit": limit,
        "parity": {"verdict": "equal"},
        "energy": {"watts": 100.0, "joules_per_token": 100 / rate},
        "peak_memory_bytes": [2e9] * ranks,
        "tokens": [1, 2, 3],
        "text": "many words, with a comma",
    }


FAILED = {
    "setting": {"ranks": 4, **SETTING},
    "label": "4 ranks",
    "error": {"type": "RankDied", "what": "rank 3 <mac4> died", "where": "", "fix": "Look there."},
}


@pytest.fixture
def sweep() -> dict[str, Any]:
    cable = {"cable": "mac1 – mac2 (ring)", "pair": [0, 1], "verdict": "slower", "latency_s": 25e-6,
             "bandwidth": 7.9e9, "baseline": {"date": "2026-11-20T10:00:00"}, "told": "slower"}  # fmt: skip
    needle = {"setting": {"ranks": 2, **SETTING}, "prompt_tokens": 2048, "found": True, "as_first": True,
              "text": "74291 </script><b>"}  # fmt: skip
    one = {"op": "all_sum", "bytes": 64, "seconds": 1e-5, "busbw": 6.4e6}
    timed = {"ranks": 2, "backend": "ring", "group": [one, one | {"bytes": 4096}], "pairs": []}
    return {
        "schema": 1, "kind": "sweep", "stopped": False, "points": [point(1, 10.0), point(2, 15.0), FAILED],
        "collectives": [timed], "cables": [cable], "needles": [needle],
        "provenance": {"date": "2026-11-25T10:00:00", "workbench": "0", "rehearsal": True,
                       "hosts": ["mac1", "mac2"], "ranks": [{"host": "<mac1>"}], "model": {"name": "a<b"}},
    }  # fmt: skip


def test_a_page_holds_everything_and_loads_nothing(sweep: dict[str, Any]) -> None:
    text = page.to_html(sweep)
    assert "REHEARSAL" in text
    for words in (
        "15.0",
        "rank 3 &lt;mac4&gt; died",
        "25.0",
        "slower (2026-11-20)",
        "found, same answer",
    ):
        assert words in text
    assert text.count("<svg") == 3, "scaling, a token's time, collectives"
    loaded = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']+)", text)
    assert all(one.startswith("#") for one in loaded), loaded
    assert not re.search(r"@import|url\((?!#)", text)
    [data] = re.findall(r'<script type="application/json" id="record">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data) == sweep
    assert "<b>" not in text.replace("<b>REHEARSAL</b>", "").split("<script")[0]


def test_a_failure_is_listed_once_with_its_points(sweep: dict[str, Any]) -> None:
    columns, rows = page.rows_of(sweep)
    assert [row[columns.index("parity")] for row in rows] == ["equal", "equal", "failed"]
    assert {len(row) for row in rows} == {len(columns)}
    other = copy.deepcopy(FAILED)
    other["label"] = "4 ranks, batch 2"
    sweep["points"].append(other)
    assert page.failures(sweep) == ["4 ranks; 4 ranks, batch 2: rank 3 <mac4> died Look there."]


def test_csv_has_a_column_for_every_number_and_no_texts(sweep: dict[str, Any]) -> None:
    first, second, failed = csv.DictReader(io.StringIO(page.to_csv(sweep)))
    assert (first["setting.ranks"], first["ttft_s.median"], first["peak_memory_bytes.0"]) == (
        "1",
        "0.2",
        "2000000000.0",
    )
    assert second["energy.joules_per_token"] == str(100 / 15.0)
    assert failed["error.what"] == "rank 3 <mac4> died"
    assert not {"tokens", "tokens.0", "text"} & set(first)


def test_records_are_compared_where_they_have_settings_in_common(sweep: dict[str, Any]) -> None:
    faster = copy.deepcopy(sweep)
    faster["points"] = [point(2, 30.0), point(8, 1.0)]
    assert page.compare(sweep, faster) == [["2 ranks", "15.0", "30.0", "2.00x"]]


def test_the_command_prints_writes_and_compares(
    sweep: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> int | str | None:
        with pytest.raises(SystemExit) as caught:
            main(["report", *words])
        return caught.value.code

    assert run() == 2
    assert "no record yet" in capsys.readouterr().err
    path, written = page.save(sweep)
    assert written.stem == path.stem
    assert run() == 0
    assert "15.0" in capsys.readouterr().out
    assert run(str(path), "--csv", "-", "--html", str(tmp_path / "a.html")) == 0
    assert capsys.readouterr().out == page.to_csv(sweep)
    for each in (tmp_path / "a.html", written):  # ids in figures differ from drawing to drawing
        assert "<h1>a&lt;b</h1>" in each.read_text()
    assert run(str(path), "--against", str(path)) == 0
    assert "1.00x" in capsys.readouterr().out
    bare = record.save(sweep | {"points": [FAILED]})
    assert run(str(bare), "--against", str(path)) == 2
    assert run(str(path), "--html", str(tmp_path / "no" / "folder.html")) == 1
