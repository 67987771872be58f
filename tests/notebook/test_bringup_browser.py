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


def walk(browser: Any, lab: Lab, name: str) -> NotebookPage:
    """Open a notebook, run all of it, and see that nothing was asked of another machine."""
    notebook = NotebookPage.open(browser, lab, f"notebooks/{name}.ipynb", height=3600)
    notebook.run_all()
    notebook.wait_idle()
    assert "Traceback" not in notebook.outputs()
    assert notebook.outsiders() == []
    return notebook


def test_the_path_is_walked_from_enable_to_sync_on_healthy_macs(lab: Lab, browser: Any) -> None:
    assert "3 of 3 Macs are ready for RDMA" in walk(browser, lab, "01_enable").outputs()
    hostfile = walk(browser, lab, "03_hostfile")
    assert "All notebooks use it now" in hostfile.outputs()
    assert hostfile.page.locator(".jp-OutputArea-output svg").count() > 0
    assert "checks are ok" in walk(browser, lab, "02_verify").outputs()
    assert "3 of 3 nodes have a complete copy, checksums match" in walk(browser, lab, "04_sync").outputs()


def test_faults_set_at_the_start_are_diagnosed_where_they_belong(
    lab: Lab, browser: Any, tmp_path: Path
) -> None:
    start = NotebookPage.open(browser, lab, "notebooks/00_start.ipynb", height=2400)
    start.run_all()
    start.wait_idle()
    faults = start.page.get_by_label("Faults", exact=True)
    faults.fill("rdma-off:2, missing-cable:1-3")
    faults.press("Enter")
    start.wait_for("rehearsal.local.json")
    chosen = json.loads((tmp_path / "clone" / "hostfiles" / "rehearsal.local.json").read_text())
    assert chosen["rehearsal"]["faults"] == ["rdma-off:2", "missing-cable:1-3"]
    enable = walk(browser, lab, "01_enable").outputs()
    assert "2 of 3 Macs are ready for RDMA" in enable
    assert "rdma_ctl enable" in enable
    assert "cable" in walk(browser, lab, "03_hostfile").outputs()
