"""06_serve in a real JupyterLab and a real Chromium."""

import urllib.request
from typing import Any

import pytest

from jaccl_kernel.launch import ports
from jaccl_kernel.steps.serve.detached import find_running
from tests.lab import Lab, NotebookPage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("nothing_left"),
]


def test_start_try_restart_the_kernel_find_it_again_and_end(lab: Lab, browser: Any) -> None:
    notebook = NotebookPage.open(browser, lab, "notebooks/06_serve.ipynb", height=3000)
    notebook.run_cell(0)
    notebook.button("Start").wait_for()
    port = notebook.page.get_by_label("Port")
    port.fill(str(ports.choose(1)))
    port.press("Tab")
    notebook.run_cell(1)
    notebook.wait_for("ready: serving")
    notebook.button("POST chat").click()
    notebook.wait_for('"object": "chat.completion"')
    notebook.wait_outputs(
        "REHEARSAL", "Base URL for clients", "running, 0 waiting", "mac2", "curl -s http://127.0.0.1"
    )
    notebook.keep("06_serve")
    [kernel] = lab.kernels()
    request = urllib.request.Request(
        f"{lab.url}/api/kernels/{kernel['id']}/restart",
        data=b"",
        headers={"Authorization": f"token {lab.token}"},
        method="POST",
    )
    urllib.request.urlopen(request, timeout=120).close()
    [running] = find_running()
    notebook.reload()
    notebook.button("POST chat").wait_for(state="detached")
    notebook.run_cell(0)
    notebook.wait_for("ready: serving")
    notebook.wait_disabled("Start")
    [found] = find_running()
    assert found.id == running.id
    notebook.button("Stop server").click()
    notebook.wait_for("Server: stopped")
    assert find_running() == []
    assert notebook.outsiders() == []
