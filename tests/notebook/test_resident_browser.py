"""Ranks that stay, in a real JupyterLab and a real Chromium.

A chat that streams, %%jaccl on two ranks, ■ in the middle of an answer, the JACCL kernel. With JACCL_SHOTS
set to a folder, what was on the screen is kept there.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.notebook import kernelspec
from tests.lab import Lab, NotebookPage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("nothing_left"),
]
ENDLESS = "logit_bias={'257': -1000}"  # the tiny model's end of text never comes
EMPTY: dict[str, Any] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def notebook_of(*cells: str) -> str:
    """A notebook of the JACCL kernel."""
    empty: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    made = [empty | {"id": f"c{at}", "source": code} for at, code in enumerate(cells)]
    spec = {"kernelspec": {"name": "jaccl", "display_name": "JACCL", "language": "python"}}
    return json.dumps(EMPTY | {"cells": made, "metadata": spec})


@pytest.fixture
def clone(clone: Path, tmp_path: Path) -> Path:
    cells = ("x = rank + 1\nprint('hello from', rank)", "%%local\nprint('here', 6 * 7)", "x")
    (clone / "notebooks" / "jaccl.ipynb").write_text(notebook_of(*cells))
    spec = tmp_path / "own" / "data" / "kernels" / "jaccl"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(kernelspec.SPEC))
    return clone


def test_a_chat_streams_and_stops_and_cells_run_on_both_ranks(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/07_prompt.ipynb", height=4000)
    notebook.write_cell(
        1, f"from jaccl_kernel.notebook.panels.prompt import PromptPanel\nPromptPanel({ENDLESS})"
    )
    for cell in (0, 1):
        notebook.run_cell(cell)
        notebook.wait_idle()
    notebook.fill("Max tokens", "4000")
    notebook.fill("Temperature", "1")
    notebook.page.get_by_label("You").fill("Go on and on")
    notebook.button("Send").click()
    answer = notebook.page.locator(".jk-answer").last
    lengths: set[int] = set()
    while len(lengths) < 4:  # it grows while it comes
        notebook.page.wait_for_timeout(50)
        lengths.add(len(answer.inner_text()) if answer.count() else 0)
    notebook.button("Stop").click()
    notebook.wait_for(", stopped")
    notebook.wait_outputs("REHEARSAL")
    notebook.fill("Max tokens", "5")
    notebook.button("Retry").click()
    notebook.page.locator(".jk-turn").get_by_text("5 tokens,").wait_for()

    # ■ in the middle of an answer, then another prompt
    cell = notebook.page.locator(".jp-CodeCell").nth(3)
    notebook.write_cell(3, f"said = prompt('Go on', max_tokens=4000, {ENDLESS})")
    notebook.run_cell(3)
    cell.locator(".jp-OutputArea-output").first.wait_for()
    notebook.interrupt()
    cell.get_by_text("stopped").first.wait_for()
    notebook.wait_idle()
    for number in (4, 5):
        notebook.run_cell(number)
        notebook.wait_idle()
    notebook.wait_for("40 tokens,")
    for number in (7, 8):
        notebook.run_cell(number)
        notebook.wait_idle()
    notebook.wait_outputs("rank 0 of 2: the sum is 3", "[1] rank 1 of 2: the sum is 3")
    assert notebook.outsiders() == []
    notebook.keep("07_prompt")


def test_a_notebook_of_the_jaccl_kernel_runs_every_cell_on_all_ranks(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/jaccl.ipynb", height=1500)
    notebook.run_all()
    notebook.wait_idle()
    notebook.wait_outputs("hello from 0", "[1] hello from 1", "here 42", "[1] 2", "REHEARSAL")
    notebook.keep("jaccl_kernel")


def test_what_somebody_saw_is_explained(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/08_troubleshoot.ipynb", height=2500)
    notebook.run_all()
    notebook.wait_idle()
    notebook.page.get_by_label("Error or log").fill("[jaccl] Changing queue pair to RTR failed with errno 96")
    notebook.button("Explain").click()
    notebook.wait_for("no IPv4 GID at index 1")
    notebook.wait_for("a leftover rank process")
    notebook.wait_outputs("mac4: 0 job processes")
    notebook.keep("08_troubleshoot")
