"""Panels without a browser: what they ask for, show and refuse."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import Busy, InputError, RankDied, Stopped
from jaccl_kernel.core.events import HOST, Event, JobStarted, Line, PointMeasured, Stage
from jaccl_kernel.core.options import FAST_SYNCH, FAST_SYNCH_RISK
from jaccl_kernel.hostfile.template import template
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import OnEvent, StepPanel
from jaccl_kernel.notebook.panels.bench import BenchPanel, report_blocks, show
from jaccl_kernel.notebook.panels.environment import EnvironmentPanel
from jaccl_kernel.notebook.panels.serve import ServePanel
from jaccl_kernel.notebook.panels.start import OTHER, StartPanel
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report.record import BenchReport
from jaccl_kernel.steps.environment.report import EnvironmentReport, NodeEnvironment
from jaccl_kernel.topology.facts import PythonFacts
from tests.conftest import until

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


class Scripted(StepPanel):
    """A panel of a step that is given to it."""

    def __init__(self, step: Callable[[OnEvent], Coroutine[Any, Any, Any]]) -> None:
        self.given = step
        super().__init__("Test", names=["mac1", "mac2"])

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        return self.given

    def show(self, report: Any) -> None:
        self.result.value = f"the report is {report}"


def text_of(widget: Any) -> str:
    """All HTML in a widget and its children."""
    own = widget.value if widget.has_trait("value") and isinstance(widget.value, str) else ""
    return own + "".join(text_of(child) for child in getattr(widget, "children", ()))


async def test_a_run_shows_its_events_and_its_report() -> None:
    async def step(on_event: OnEvent) -> str:
        on_event(Event(HOST, Stage("bench", "1 rank")))
        on_event(Event(1, Line("hello")))
        return "good"

    panel = Scripted(step)
    panel.start()
    assert await asyncio.wait_for(panel.wait(), 60) == "good"
    assert panel.report == "good"
    assert panel.result.value == "the report is good"
    assert panel.log_view.lines == [("host", "[bench] 1 rank"), ("mac2", "hello")]
    assert panel.progress_view.snapshot["state"] == "done"
    assert (panel.run_button.disabled, panel.stop_button.disabled) == (False, True)


async def test_a_failure_stands_in_the_panel_and_reaches_whoever_waits() -> None:
    async def step(on_event: OnEvent) -> None:
        raise RankDied("was killed", rank=1, where="mac2", fix="Look at mac2.")

    panel = Scripted(step)
    panel.start()
    with pytest.raises(RankDied):
        await asyncio.wait_for(panel.wait(), 60)
    assert "Look at mac2." in panel.error_view.value
    assert panel.report is None
    assert panel.progress_view.snapshot["state"] == "failed"


async def test_stop_shows_that_it_was_heard_and_that_it_is_done() -> None:
    may_end = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def step(on_event: OnEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:  # the end of its processes takes a moment
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(may_end.wait(), loop))

    panel = Scripted(step)
    panel.start()
    await until(lambda: panel.progress_view.snapshot["state"] == "running", "the step to begin")
    with pytest.raises(Busy):
        panel.start()
    panel.stop_button.click()
    assert (panel.stop_button.description, panel.stop_button.disabled) == ("Stopping", True)
    panel.stop()
    may_end.set()
    with pytest.raises(Stopped):
        await asyncio.wait_for(panel.wait(), 60)
    assert "Stopped" in panel.error_view.value
    assert panel.progress_view.snapshot["state"] == "stopped"
    assert panel.stop_button.description == "Stop"
    panel.stop()


async def test_a_report_that_cannot_be_shown_is_an_error_in_the_panel() -> None:
    async def step(on_event: OnEvent) -> object:
        return Unshowable()

    panel = Scripted(step)
    panel.start()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(panel.wait(), 60)
    assert "ZeroDivisionError" in panel.error_view.value
    assert not panel.run_button.disabled


class Unshowable:
    def __str__(self) -> str:
        return str(1 / 0)


def test_the_bench_panel_asks_for_what_is_chosen() -> None:
    panel = BenchPanel(homes.make_hostfile(4), model="/m", prompt="Hi", max_tokens=7, ranks=(1, 4), repeats=2)
    options = panel.options()
    assert (options.model, options.prompt, options.prompt_tokens) == ("/m", "Hi", None)
    assert (options.max_tokens, options.ranks, options.repeats, options.environment()) == (7, (1, 4), 2, {})
    panel.prompt_kind.value = "length"
    panel.form["prompt_tokens"].value = 99
    panel.form["fast_synch"].value = True
    options = panel.options()
    assert (options.prompt, options.prompt_tokens, options.environment()) == (None, 99, {FAST_SYNCH: "1"})


def test_the_risk_of_fast_synch_is_told_and_it_is_off() -> None:
    panel = BenchPanel(homes.make_hostfile(2))
    assert not panel.form["fast_synch"].value
    assert FAST_SYNCH_RISK.replace("'", "&#x27;") in text_of(panel)


def test_a_rehearsal_is_called_one_and_a_cluster_is_not() -> None:
    assert "REHEARSAL" in text_of(BenchPanel(homes.make_hostfile(2)))
    assert "REHEARSAL" not in text_of(BenchPanel(template(["a", "b"])))


def test_the_bench_panel_follows_the_notebooks_choices(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    template(["a.local", "b.local", "c.local"]).write(path)
    session.choose_hostfile(path)
    session.choose_model("org/name")
    panel = BenchPanel()
    assert panel.form["model"].value == "org/name"
    assert [count for count, box in panel.rank_boxes.items() if box.value] == [1, 3]


def test_the_interpreter_that_was_proven_on_the_macs_is_what_their_jobs_run_with(tmp_path: Path) -> None:
    """Proven by the environment's panel; nothing of it holds for simulated Macs."""
    python = "/Users/me/jaccl-env/bin/python"
    macs = template(["mac1.local", "mac2.local"])
    facts = PythonFacts(executable=python)
    nodes = tuple(NodeEnvironment(name, python=facts, proof="ok") for name in ("mac1", "mac2"))
    proven = EnvironmentReport(python, nodes, (), (), rehearsal=False)
    EnvironmentPanel(macs).show(replace(proven, rehearsal=True))
    assert BenchPanel(macs).options().python is None
    EnvironmentPanel(macs).show(proven)
    assert BenchPanel(macs).options().python == python
    assert ServePanel(macs).options().python == python
    assert BenchPanel(macs, python="/other").options().python == "/other"
    assert BenchPanel(homes.make_hostfile(2)).options().python is None


def test_ranks_that_the_hostfile_has_not_are_refused() -> None:
    with pytest.raises(InputError, match="the hostfile has 2 hosts"):
        BenchPanel(homes.make_hostfile(2), ranks=(1, 3))


def test_run_without_a_number_of_ranks_says_so_and_starts_nothing() -> None:
    panel = BenchPanel(homes.make_hostfile(2))
    for box in panel.rank_boxes.values():
        box.value = False
    panel.run_button.click()
    assert not panel.running
    assert "no number of ranks is selected" in panel.error_view.value


def point(ranks: int, rate: float) -> dict[str, Any]:
    spread = {"median": rate, "min": rate, "max": rate}
    return {
        "ranks": ranks,
        "prompt_tps": spread,
        "generation_tps": spread,
        "ttft_s": spread,
        "itl_s": {"p50": 0.1, "p95": 0.2},
        "load_s": 1.0,
        "peak_memory_bytes": [10**9] * ranks,
        "speedup": None,
        "efficiency": None,
        "text": "it <wrote> this",
    }


def test_the_table_fills_point_by_point() -> None:
    panel = BenchPanel(homes.make_hostfile(2))
    panel.on_event(Event(HOST, JobStarted("1", "/logs", "mlx.launch --first")))
    panel.on_event(Event(HOST, PointMeasured(point(1, 40.0))))
    assert "40.0" in panel.result.value
    panel.on_event(Event(HOST, PointMeasured(point(2, 60.0))))
    assert "<td>1.50</td><td>75%</td>" in panel.result.value
    assert "mlx.launch --first" in panel.result.value


def test_a_report_is_shown_with_table_verdict_figure_and_commands() -> None:
    parity = {"verdict": "near-tie", "first_difference": 5, "max_logprob_diff": 0.01, "tolerance": 0.6}
    record = {
        "points": [point(1, 40.0), point(2, 60.0)],
        "parity": parity | {"reference_ranks": 1},
        "provenance": {"rehearsal": True, "commands": ["mlx.launch --one", "mlx.launch --two"]},
    }
    report = BenchReport(record, Path("/somewhere/bench.json"))
    html = show(report).data
    for words in ("REHEARSAL", "near-tie", "<svg", "mlx.launch --two", "/somewhere/bench.json"):
        assert words in html
    assert "it &lt;wrote&gt; this" in html
    unsaved = "".join(report_blocks(BenchReport(record)))
    assert "not saved" in unsaved
    error = {"type": "RankDied", "what": "rank 1 died", "where": "mac2", "fix": "Wake it."}
    partly = "".join(report_blocks(BenchReport(record | {"failed": [{"ranks": 4, "error": error}]})))
    assert "4 ranks: rank 1 died" in partly
    assert "Wake it." in partly


def test_start_shows_the_rehearsal_and_links_to_the_steps() -> None:
    panel = StartPanel(NOTEBOOKS)
    text = text_of(panel)
    assert "REHEARSAL" in text
    assert "mac1, mac2, mac3, mac4" in text
    assert "No problems" in text
    (output,) = panel.steps.outputs
    assert 'href="05_bench.ipynb"' in output["data"]["text/html"]
    assert "00_start" not in output["data"]["text/html"]


def test_start_says_which_tools_this_machine_lacks(
    monkeypatch: pytest.MonkeyPatch, path_without_rsync: str
) -> None:
    monkeypatch.setenv("PATH", path_without_rsync)
    panel = StartPanel(NOTEBOOKS)
    assert "rsync is not installed: copying to other machines fails" in panel.tools.value
    assert "Install it: " in panel.tools.value
    assert "No problems" in panel.finding.value, "the rehearsal is as it was"
    program = Path(path_without_rsync) / "rsync"
    program.symlink_to("/bin/sh")
    try:
        panel.refresh()
        assert "rsync" not in panel.tools.value
    finally:
        program.unlink()


def test_start_takes_a_hostfile_and_shows_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    template(["a.local", "b.local"]).write(path)  # its coordinator is a placeholder still
    panel = StartPanel(NOTEBOOKS)
    panel.choice.value = OTHER
    panel.path.value = str(path)
    assert session.read().hostfile == str(path)
    assert "placeholder" in panel.finding.value
    assert "REHEARSAL" not in text_of(panel)
    panel.path.value = str(tmp_path / "none.json")
    assert "cannot read" in panel.finding.value
    assert session.read().hostfile == str(path)
    again = StartPanel(NOTEBOOKS)  # after a restart
    assert (again.choice.value, again.path.value) == (OTHER, str(path))
    again.choice.value = ""
    assert session.read().hostfile is None


def test_start_opens_even_when_the_chosen_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    template(["a.local", "b.local"]).write(path)
    session.choose_hostfile(path)
    path.unlink()
    assert "cannot read" in StartPanel(NOTEBOOKS).finding.value


def test_start_keeps_the_model_that_is_typed() -> None:
    panel = StartPanel(NOTEBOOKS)
    panel.model.value = "/no/such/model"
    assert session.read().model == "/no/such/model"
    assert "/no/such/model: on this machine" not in panel.summary.value
    panel.model.value = "demo"
    assert session.read().model is None


def test_a_record_that_is_not_whole_does_not_keep_start_from_opening(tmp_path: Path) -> None:
    from jaccl_kernel.core.paths import results_dir

    results_dir().mkdir(parents=True)
    (results_dir() / "bench-1.json").write_text(json.dumps({"schema": 1, "points": []}))
    assert "is incomplete" in StartPanel(NOTEBOOKS).summary.value
