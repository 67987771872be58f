"""A grid on resident ranks: fewest starts and loads, failures recorded, stops that keep. Real ranks."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import Event, PointMeasured, Stage
from jaccl_kernel.notebook import grid as grids
from jaccl_kernel.notebook.grid import Grid
from jaccl_kernel.notebook.panels.sweep import SweepPanel, compare, numbers, show
from jaccl_kernel.notebook.sweep import Sweep
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.report import record
from tests.events import bodies


def test_points_are_ordered_so_that_starts_and_loads_are_fewest() -> None:
    grid = Grid(
        ranks=(2, 1), sharding=("tensor", "pipeline"), prompt_tokens=(64, 16), fast_synch=(False, True)
    )
    settings = grid.settings(make_hostfile(2))
    assert len(settings) == 12, "one rank alone is not split: its sharding and backend are no axes"
    starts = [(one.fast_synch, one.ranks) for one in settings]
    assert sum(a != b for a, b in itertools.pairwise(starts)) == 3
    assert settings[0].prompt_tokens == 16


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"ranks": (3,)}, "requested 3 ranks, but the hostfile has 2 hosts"),
        ({"ranks": ()}, "axis of the grid is empty"),
        ({"batch": (0,)}, "every number of the grid must be at least 1 .got 0"),
        ({"repeats": 0}, "every number of the grid must be at least 1 .got 0"),
        ({"sharding": ("diagonal",)}, "unknown sharding 'diagonal'"),
        ({"backends": ("nccl",)}, "unknown backend 'nccl'"),
        ({"collectives": (3,)}, "multiple of 4 from 64 to .* .got 3"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_anything_starts(
    axes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Grid(**axes).settings(make_hostfile(2))


def test_the_grid_takes_what_the_ranks_take() -> None:
    # the host side cannot import the ranks': both name their bounds
    from jaccl_kernel.ranks import collectives

    assert (grids.LEAST_BYTES, grids.MOST_BYTES) == (collectives.LEAST, collectives.MOST)
    Grid(collectives=grids.COLLECTIVE_SIZES).settings(make_hostfile(2))


def test_a_sweep_measures_records_a_failure_and_goes_on(nothing_left: None, tiny_model: Path) -> None:
    heard: list[Event] = []
    grid = Grid(
        ranks=(1, 2), sharding=("pipeline", "tensor"), prompt_tokens=(16,), batch=(1, 2), max_tokens=6,
        repeats=1, collectives=(64, 4096), needle=(100, 100_000), model=str(tiny_model),
    )  # fmt: skip
    report = Sweep(grid, make_hostfile(2), heard.append).run()
    by_label = {point["label"]: point for point in report.points}
    assert [label for label, point in by_label.items() if "error" in point] == [
        "2 ranks, pipeline, ring, prompt 16", "2 ranks, pipeline, ring, prompt 16, batch 2"
    ]  # fmt: skip
    assert "no pipeline()" in by_label["2 ranks, pipeline, ring, prompt 16"]["error"]["what"]
    two = by_label["2 ranks, tensor, ring, prompt 16"]
    assert two["parity"]["verdict"] in ("equal", "near-tie")
    assert two["speedup"] == pytest.approx(
        two["decode_tps"] / by_label["1 rank, tensor, none, prompt 16"]["decode_tps"]
    )
    assert sum(two["limit"][part] for part in ("memory_ms", "collectives_ms", "other_ms")) == pytest.approx(
        1e3 / two["decode_tps"]
    )
    assert by_label["2 ranks, tensor, ring, prompt 16, batch 2"]["tokens"] == 12
    provenance = report.record["provenance"]
    assert (provenance["starts"], provenance["loads"], provenance["rehearsal"]) == (2, 2, True)
    assert provenance["environment"]["HF_HUB_OFFLINE"] == "1"
    assert [one["verdict"] for one in report.record["cables"]] == ["first"]
    needles = report.record["needles"]
    told = [(one["setting"]["ranks"], one["found"] is None, one["as_first"]) for one in needles]
    assert told == [(1, False, None), (1, True, None), (2, False, True), (2, True, True)]
    assert "tokens" in needles[1]["error"]
    assert not report.ok
    assert report.path
    assert report.page
    assert record.read(report.path) == json.loads(json.dumps(report.record))
    assert len(bodies(heard, PointMeasured)) == 6
    assert "s left" in [stage.text for stage in bodies(heard, Stage) if stage.name == "sweep"][-1]
    assert "no pipeline()" in show(report).data
    assert "1.00x" in compare(report.path, report).data


async def test_stop_keeps_what_was_measured_and_leaves_nothing(
    nothing_left: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(
        ranks=(1,), prompt_tokens=(8, 9), max_tokens=4, repeats=1, collectives=(), model=str(tiny_model)
    )
    panel = SweepPanel(make_hostfile(2), grid)
    panel.max_tokens.value, panel.prompts.value = "300", "8, 2000"
    panel.repeats.value = "1, 2"
    with pytest.raises(InputError, match="must be one number"):
        panel.start()
    panel.repeats.value = "1"
    on_event = panel.on_event

    def stop_after_a_point(event: Event) -> None:
        on_event(event)
        if isinstance(event.body, PointMeasured):
            panel.stop()

    monkeypatch.setattr(panel, "on_event", stop_after_a_point)
    panel.start()
    report = await panel.wait()
    assert report.record["stopped"]
    assert [point["setting"]["prompt_tokens"] for point in report.points] == [8]
    assert report.path
    assert "Stopped before the end" in panel.result.value
    assert not panel.run_button.disabled


def test_a_stop_while_ranks_start_ends_them(nothing_left: None, tiny_model: Path) -> None:
    def stop(event: Event) -> None:
        if event.rank >= 0:  # it is there, and has not joined
            sweep.stop()

    sweep = Sweep(Grid(ranks=(2,), model=str(tiny_model)), make_hostfile(2), stop)
    report = sweep.run()
    assert (report.points, report.path) == ([], None)


def test_numbers_are_read_as_people_write_them() -> None:
    assert numbers("1, 2,8", "Ranks") == numbers(" 1 2 8 ", "Ranks") == [1, 2, 8]
    for text in ("", "one", "1;2", "-1", "1.5", "²"):
        with pytest.raises(InputError, match="Ranks must be"):
            numbers(text, "Ranks")
