"""The notebooks in a real JupyterLab and a real Chromium. pytest -m browser tests/notebook/test_browser.py.

The model is the tests' tiny one, chosen the way a user chooses one: the notebooks run as they are.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.notebook import session
from jaccl_kernel.paths import results_dir
from jaccl_kernel.report import record
from tests.lab import REPOSITORY, Lab, NotebookPage, missing, open_browser, start_lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(missing()), reason=missing() or "all there"),
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def lab(tiny_model: Path, tmp_path: Path) -> Iterator[Lab]:
    root = tmp_path / "clone"
    for folder in ("notebooks", "hostfiles"):
        shutil.copytree(
            REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("*.local.json", ".ipynb_*")
        )
    own = tmp_path / "own"
    own.mkdir()
    session.choose_model(str(tiny_model))
    with start_lab(root, own) as running:
        yield running


@pytest.fixture
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def test_bench_runs_from_top_to_bottom_and_nothing_leaves_the_machine(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=3600)
    notebook.run_all()
    notebook.wait_idle()
    shown = notebook.page.locator(".jp-OutputArea-output")
    assert "REHEARSAL" in notebook.outputs()
    (path,) = results_dir().glob("bench-*.json")
    found = record.read(path)
    for table in shown.locator("table").all():
        assert [row.inner_text() for row in table.locator("tbody th").all()] == ["1", "2"]
    rates = [row.locator("td").nth(2).inner_text() for row in shown.locator("tbody tr").all()]
    expected = [f"{point['generation_tps']['median']:.1f}" for point in found["points"]]
    assert rates == expected * 2  # in the panel, and in the output of a cell
    assert shown.get_by_text("Parity: ").count() == 2
    figures = shown.get_by_role("img", name="Decode rate")
    assert figures.count() == 2
    assert figures.first.bounding_box()["height"] > 100
    assert shown.get_by_text("joined").count() > 0  # the log
    assert notebook.requests
    assert notebook.outsiders() == []


def test_stop_and_interrupt_work_while_a_cell_waits_and_the_panel_runs_again(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=3600)
    notebook.run_cell(0)
    notebook.button("Run").wait_for()
    fill(notebook, "New tokens", "3000")
    fill(notebook, "Runs each", "500")
    for press in (notebook.button("Stop").click, notebook.interrupt):
        notebook.run_cell(1)
        notebook.wait_for("run 1 of 500: ")
        assert notebook.button("Run").is_disabled()
        press()
        notebook.wait_for("Stopped: Benchmark was stopped before it ended")
        notebook.wait_idle()
        assert notebook.button("Stop").is_disabled()
    fill(notebook, "New tokens", "4")
    fill(notebook, "Runs each", "1")
    notebook.button("Run").click()
    notebook.wait_for("Parity: equal")


def fill(notebook: NotebookPage, label: str, value: str) -> None:
    notebook.page.get_by_label(label).fill(value)
    notebook.page.get_by_label(label).press("Tab")


def test_the_log_can_be_filtered_and_opened_again(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=3600)
    notebook.run_cell(0)
    notebook.button("Run").wait_for()
    fill(notebook, "New tokens", "4")
    fill(notebook, "Runs each", "1")
    notebook.button("Run").click()
    notebook.wait_for("Parity: equal")
    log = notebook.page.get_by_role("log").first
    whole = log.inner_text()
    assert "[import]" in whole
    chooser = notebook.page.get_by_label("Log: show lines of").first
    chooser.select_option("mac2")
    assert "mac2" in log.inner_text()
    assert "mac1" not in log.inner_text()
    chooser.select_option("all sources")
    notebook.save()
    notebook.page.reload()  # the kernel lives on, the page is new: it asks for the lines again
    again = notebook.page.get_by_role("log").first
    again.wait_for()
    assert again.inner_text() == whole


def test_start_shows_where_you_stand_and_leads_to_the_bench(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/00_start.ipynb", height=2000)
    notebook.run_all()
    notebook.wait_idle()
    shown = notebook.outputs()
    for words in ("REHEARSAL", "mac1, mac2, mac3, mac4", "No problems found", "tiny llama"):
        assert words in shown
    notebook.page.get_by_label("Cluster", exact=True).select_option("Another hostfile …")
    template = lab.root / "hostfiles" / "two-macs.template.json"
    shutil.copy(next((lab.root / "hostfiles").glob("*.template.json")), template)
    path = notebook.page.get_by_label("Path")
    path.fill(str(template))
    path.press("Enter")
    notebook.wait_for("placeholder")
    assert session.read().hostfile == str(template)
    cluster = notebook.page.get_by_label("Cluster", exact=True)
    cluster.select_option("Rehearsal: simulated Macs on this machine")
    notebook.wait_for("No problems found")
    notebook.page.get_by_role("link", name="Bench: how fast").first.click()
    notebook.page.wait_for_url("**/tree/notebooks/05_bench.ipynb")
    assert notebook.outsiders() == []
