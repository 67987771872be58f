"""Ranks that stay, in a real JupyterLab and a real Chromium. pytest tests/notebook/test_resident_browser.py.

A sweep with its figures, a chat that streams, %%jaccl on two ranks, ■ in the middle of an answer, the JACCL
kernel. With JACCL_SHOTS set to a folder, what was on the screen is kept there.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.notebook import kernelspec, session
from jaccl_kernel.paths import results_dir
from jaccl_kernel.report import record
from tests.lab import REPOSITORY, Lab, NotebookPage, missing, open_browser, start_lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(missing()), reason=missing() or "all there"),
    pytest.mark.usefixtures("nothing_left"),
]
EMPTY: dict[str, Any] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def notebook_of(*cells: str) -> str:
    """A notebook of the JACCL kernel."""
    empty: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    made = [empty | {"id": f"c{at}", "source": code} for at, code in enumerate(cells)]
    spec = {"kernelspec": {"name": "jaccl", "display_name": "JACCL", "language": "python"}}
    return json.dumps(EMPTY | {"cells": made, "metadata": spec})


@pytest.fixture
def lab(tiny_model: Path, tmp_path: Path) -> Iterator[Lab]:
    root = tmp_path / "clone"
    for folder in ("notebooks", "hostfiles"):
        shutil.copytree(
            REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("*.local.json", ".ipynb_*")
        )
    cells = ("x = rank + 1\nprint('hello from', rank)", "%%local\nprint('here', 6 * 7)", "x")
    (root / "notebooks" / "jaccl.ipynb").write_text(notebook_of(*cells))
    session.choose_model(str(tiny_model))
    own = tmp_path / "own"
    spec = own / "data" / "kernels" / "jaccl"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(kernelspec.SPEC))
    with start_lab(root, own) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def keep(notebook: NotebookPage, name: str) -> None:
    if shots := os.environ.get("JACCL_SHOTS"):
        notebook.page.screenshot(path=str(Path(shots) / f"{name}.png"), full_page=True)


def fill(notebook: NotebookPage, label: str, value: str) -> None:
    box = notebook.page.get_by_label(label, exact=True).last
    box.fill(value)
    box.press("Tab")


def test_a_sweep_draws_its_figures_and_is_saved_with_a_page(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=5000)
    cells = notebook.page.locator(".jp-CodeCell")
    at = next(number for number in range(cells.count()) if "SweepPanel(" in cells.nth(number).inner_text())
    notebook.run_cell(at)
    notebook.button("Run").wait_for()
    for label, value in (("Prompt tokens", "16"), ("Batch", "1, 2"), ("New tokens", "8")):
        fill(notebook, label, value)
    notebook.run_cell(at + 1)
    notebook.wait_for("The record is", 120)
    notebook.run_cell(at + 2)
    notebook.wait_idle()
    for name in ("Decode rate over ranks", "Where the time of a token went", "Collectives: latency"):
        figure = notebook.page.locator(".jp-OutputArea-output").get_by_role("img", name=name)
        assert figure.count() == 2, "in the panel, and in the output of a cell"
        assert figure.first.bounding_box()["height"] > 100
    assert "REHEARSAL" in notebook.outputs()
    [path] = record.saved(results_dir(), "sweep")
    assert len(record.read(path)["points"]) == 4
    assert path.with_suffix(".html").exists()
    assert notebook.outsiders() == []
    keep(notebook, "05_sweep")


def test_a_chat_streams_and_stops_and_cells_run_on_both_ranks(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/07_prompt.ipynb", height=4000)
    for cell in (0, 1):
        notebook.run_cell(cell)
        notebook.wait_idle()
    fill(notebook, "Max tokens", "4000")
    fill(notebook, "Temperature", "1")
    notebook.page.get_by_label("You").fill("Go on and on")
    notebook.button("Send").click()
    answer = notebook.page.locator(".jk-answer").last
    lengths: set[int] = set()
    while len(lengths) < 4:  # it grows while it comes
        notebook.page.wait_for_timeout(50)
        lengths.add(len(answer.inner_text()) if answer.count() else 0)
    notebook.button("Stop").click()
    notebook.wait_for(", stopped")
    assert "REHEARSAL" in notebook.outputs()
    fill(notebook, "Max tokens", "5")
    notebook.button("Retry").click()
    notebook.page.locator(".jk-turn").get_by_text("5 tokens,").wait_for()

    # ■ in the middle of an answer, then another prompt
    cell = notebook.page.locator(".jp-CodeCell").nth(3)
    notebook.write_cell(3, "said = prompt('Go on', max_tokens=4000, temperature=1)")
    notebook.run_cell(3)
    cell.locator(".jp-OutputArea-output").first.wait_for()
    notebook.interrupt()
    notebook.wait_for("stopped")
    notebook.wait_idle()
    for number in (4, 5):
        notebook.run_cell(number)
        notebook.wait_idle()
    notebook.wait_for("40 tokens,")
    for number in (7, 8):
        notebook.run_cell(number)
        notebook.wait_idle()
    shown = notebook.outputs()
    assert "rank 0 of 2: the sum is 3" in shown
    assert "[1] rank 1 of 2: the sum is 3" in shown
    assert notebook.outsiders() == []
    keep(notebook, "07_prompt")


def test_a_notebook_of_the_jaccl_kernel_runs_every_cell_on_all_ranks(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/jaccl.ipynb", height=1500)
    notebook.run_all()
    notebook.wait_idle()
    shown = notebook.outputs()
    for words in ("hello from 0", "[1] hello from 1", "here 42", "[1] 2"):
        assert words in shown
    assert "REHEARSAL" in shown
    keep(notebook, "jaccl_kernel")


def test_what_somebody_saw_is_explained(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/08_troubleshoot.ipynb", height=2500)
    notebook.run_all()
    notebook.wait_idle()
    notebook.page.get_by_label("What you saw").fill("[jaccl] Changing queue pair to RTR failed with errno 96")
    notebook.button("Explain").click()
    notebook.wait_for("the port's GID table is empty")
    assert "mac4: nothing of a job runs" in notebook.outputs()
    keep(notebook, "08_troubleshoot")
