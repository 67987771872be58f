"""Panels in a real kernel, without a page: how a run ends there."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from jaccl_kernel.notebook import session

pytestmark = pytest.mark.usefixtures("nothing_left")

DEADLINE_S = 120.0
REPOSITORY = Path(__file__).resolve().parents[2]
# long enough that nothing ends by itself while a test looks
LONG = "BenchPanel(ranks=(2,), max_tokens=3000, repeats=100, prompt='Hi')"


class Kernel:
    """A kernel and a client of it."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.client = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=DEADLINE_S)

    def send(self, code: str) -> str:
        """Begin to run a cell; its message id."""
        # after an error Jupyter aborts, for a moment, what the same client sent on: not what is tested here
        asked: str = self.client.execute(code, stop_on_error=False)
        return asked

    def reply(self, asked: str) -> dict[str, Any]:
        """The reply to a cell that was sent."""
        end = time.monotonic() + DEADLINE_S
        while True:
            message = self.client.get_shell_msg(timeout=max(0.0, end - time.monotonic()))
            if message["parent_header"]["msg_id"] == asked:
                content: dict[str, Any] = message["content"]
                return content

    def run(self, code: str) -> dict[str, Any]:
        """Run a cell to its end."""
        return self.reply(self.send(code))

    def until_a_rank_measures(self) -> None:
        """Wait until the progress that goes to the page shows a rank in its measurement."""
        end = time.monotonic() + DEADLINE_S
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.0, end - time.monotonic()))
            state = message["content"].get("data", {}).get("state", {})
            ranks = state.get("snapshot", {}).get("ranks", [])
            if any(rank["name"] == "measure" for rank in ranks):
                return


@pytest.fixture
def kernel(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    session.choose_model(str(tiny_model))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    found = None
    try:
        found = Kernel(manager)
        assert found.run("from jaccl_kernel.notebook.panels.bench import BenchPanel")["status"] == "ok"
        yield found
    finally:
        if found:
            found.client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_an_interrupted_cell_stops_the_job_and_says_so_in_a_line(kernel: Kernel) -> None:
    assert kernel.run(f"panel = {LONG}")["status"] == "ok"
    asked = kernel.send("await panel.run()")
    kernel.until_a_rank_measures()
    kernel.manager.interrupt_kernel()
    told = kernel.reply(asked)
    assert told["ename"] == "Stopped"
    assert told["traceback"][0].startswith("Stopped: Benchmark was stopped")
    assert len(told["traceback"]) == 2
    assert kernel.run("assert not panel.running and not panel.run_button.disabled")["status"] == "ok"


def test_stop_ends_a_run_that_no_cell_waits_for(kernel: Kernel) -> None:
    assert kernel.run(f"panel = {LONG}; panel.run_button.click()")["status"] == "ok"
    kernel.until_a_rank_measures()
    told = kernel.run("panel.stop_button.click(); panel.stop(); await panel.wait()")
    assert told["ename"] == "Stopped"


def test_a_killed_kernel_leaves_no_rank(kernel: Kernel) -> None:
    assert kernel.run(f"panel = {LONG}; panel.start()")["status"] == "ok"
    kernel.until_a_rank_measures()
    os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
    # `nothing_left` looks for what its ranks and its launcher do now


def test_errors_of_ours_reach_a_cell_without_a_traceback(kernel: Kernel) -> None:
    told = kernel.run("BenchPanel(ranks=(1, 9))")
    assert told["traceback"] == [
        "InputError: requested 1, 9 ranks; the hostfile has 4 hosts",
        "  Fix: Use numbers from 1 to 4.",
    ]


def test_the_host_side_of_a_notebook_never_imports_mlx(kernel: Kernel) -> None:
    code = "report = await BenchPanel(ranks=(1,), max_tokens=4, repeats=1).run()"
    assert kernel.run(code)["status"] == "ok"
    assert kernel.run("import sys; assert 'mlx' not in sys.modules, 'mlx'")["status"] == "ok"
    assert kernel.run("assert report.points[0]['generated_tokens'] == 4")["status"] == "ok"
