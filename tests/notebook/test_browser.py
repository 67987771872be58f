"""The notebooks in a real JupyterLab and a real Chromium. pytest -m browser tests/notebook/test_browser.py.

The model is the tests' tiny one, chosen the way a user chooses one: the notebooks run as they are.
"""

import re
import shutil
from typing import Any

import pytest

from jaccl_kernel.notebook import session
from jaccl_kernel.report import record
from tests.lab import Lab, NotebookPage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("nothing_left"),
]


def test_bench_runs_from_top_to_bottom_and_nothing_leaves_the_machine(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=5600)
    notebook.run_all()
    notebook.wait_idle()
    shown = notebook.page.locator(".jp-OutputArea-output")
    notebook.wait_outputs("REHEARSAL")
    [path] = record.saved()
    found = record.read(path)
    tables = shown.locator("table").filter(has_text="load s")
    notebook.until(lambda: tables.count() == 2, "two tables")  # in the panel, and in the output of a cell
    for table in tables.all():
        assert [row.inner_text() for row in table.locator("tbody th").all()] == ["1", "2"]
    rates = [row.locator("td").nth(2).inner_text() for row in tables.locator("tbody tr").all()]
    expected = [f"{point['generation_tps']['median']:.1f}" for point in found["points"]]
    assert rates == expected * 2
    notebook.until(lambda: shown.get_by_text("Parity: ").count() == 2, "two verdicts")
    notebook.until(lambda: shown.get_by_text("joined").count() > 0, "the log")

    [swept] = record.saved(kind="sweep")
    assert len(record.read(swept)["points"]) == 8
    assert swept.with_suffix(".html").exists()
    for name in (
        "Decode rate: ",
        "Decode rate by number of ranks",
        "Time per token",
        "Collectives: ",
    ):
        figure = shown.get_by_role("img", name=re.compile(f"^{name}"))
        notebook.until(lambda figure=figure: figure.count() == 2, name)  # type: ignore[misc]
        assert figure.first.bounding_box()["height"] > 100
    assert notebook.requests
    assert notebook.outsiders() == []
    notebook.keep("05_bench")


def test_stop_and_interrupt_work_while_a_cell_waits_and_the_log_stays(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/05_bench.ipynb", height=3600)
    notebook.run_cell(0)
    notebook.button("Run").wait_for()
    notebook.fill("Max tokens", "3000")
    notebook.fill("Runs each", "500")
    for press in (notebook.button("Stop").click, notebook.interrupt):
        notebook.run_cell(1)
        notebook.wait_disabled("Run")  # and what an earlier run showed is gone
        notebook.wait_for("run 1 of 500: ")
        press()
        notebook.wait_for("Stopped: Benchmark was stopped before it ended")
        notebook.wait_idle()
        notebook.wait_disabled("Stop")
    notebook.fill("Max tokens", "4")
    notebook.fill("Runs each", "1")
    notebook.button("Run").click()
    notebook.wait_for("Parity: equal")
    notebook.wait_enabled("Run")  # the kernel sent the whole log before

    log = notebook.page.get_by_role("log").first
    notebook.until(lambda: "[import]" in log.inner_text(), "the log's lines")
    chooser = notebook.page.get_by_label("Log: show lines of").first
    chooser.select_option("mac2")
    notebook.until(
        lambda: "mac2" in log.inner_text() and "mac1" not in log.inner_text(), "lines of mac2 only"
    )
    chooser.select_option("all sources")
    notebook.until(lambda: "mac1" in log.inner_text(), "all lines")
    whole = log.inner_text()
    notebook.save()
    notebook.page.reload()  # the kernel lives on, the page is new: it asks for the lines again
    again = notebook.page.get_by_role("log").first
    again.wait_for()
    notebook.until(lambda: again.inner_text() == whole, f"the same lines again:\n{whole}")


def test_start_shows_where_you_stand_and_leads_to_the_bench(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/00_start.ipynb", height=2000)
    notebook.run_all()
    notebook.wait_idle()
    notebook.wait_outputs("REHEARSAL", "mac1, mac2, mac3, mac4", "No problems found", "tiny llama")
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
    notebook.page.get_by_role("link", name="Bench: speed and parity").first.click()
    notebook.page.wait_for_url("**/tree/notebooks/05_bench.ipynb")
    assert notebook.outsiders() == []
