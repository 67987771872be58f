"""The walk 00 to 04 in a real JupyterLab and a real Chromium. pytest -m browser tests/notebook."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.rehearsal import plan
from tests.lab import Lab, NotebookPage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture
def clone(clone: Path) -> Path:
    plan.make_hostfile(3).write(clone / "hostfiles" / "rehearsal.json")
    return clone


def walk(browser: Any, lab: Lab, name: str, *expected: str) -> NotebookPage:
    """Open a notebook, run all of it, and see these texts, and that nothing was asked of another machine."""
    notebook = NotebookPage.open(browser, lab, f"notebooks/{name}.ipynb", height=3600)
    notebook.run_all()
    notebook.wait_idle()
    notebook.wait_outputs(*expected)
    assert "Traceback" not in notebook.outputs()
    assert notebook.outsiders() == []
    return notebook


def test_the_path_is_walked_from_enable_to_sync_on_healthy_macs(lab: Lab, browser: Any) -> None:
    walk(browser, lab, "01_enable", "3 of 3 Macs are ready for RDMA")
    hostfile = walk(browser, lab, "03_hostfile", "All notebooks use it now")
    hostfile.page.locator(".jp-OutputArea-output svg").first.wait_for()
    walk(browser, lab, "02_verify", "checks are ok")
    walk(browser, lab, "04_sync", "3 of 3 nodes have a complete copy, checksums match")


def test_faults_set_at_the_start_are_diagnosed_where_they_belong(
    lab: Lab, browser: Any, tmp_path: Path
) -> None:
    start = NotebookPage.open(browser, lab, "notebooks/00_start.ipynb", height=2400)
    start.run_all()
    start.wait_idle()
    faults = start.page.get_by_label("Faults", exact=True)
    faults.fill("rdma-off:2, missing-cable:1-3")
    faults.press("Enter")
    start.page.locator(".jk-facts").get_by_text("rehearsal.local.json").first.wait_for()
    chosen = json.loads((tmp_path / "clone" / "hostfiles" / "rehearsal.local.json").read_text())
    assert chosen["rehearsal"]["faults"] == ["rdma-off:2", "missing-cable:1-3"]
    walk(browser, lab, "01_enable", "2 of 3 Macs are ready for RDMA", "rdma_ctl enable")
    walk(browser, lab, "03_hostfile", "cable")
