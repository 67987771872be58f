"""The JACCL kernel, through Jupyter's own protocol."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from jaccl_kernel.cli.main import main
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.kernel import everywhere, is_local
from jaccl_kernel.rehearsal.homes import make_hostfile
from tests.conftest import GONE_DEADLINE_S

pytestmark = pytest.mark.usefixtures("nothing_left")
DEADLINE_S = 120


class Kernel:
    """A running JACCL kernel, and what a cell of it shows."""

    def __init__(self, folder: Path) -> None:
        specs = KernelSpecManager(kernel_dirs=[str(folder / "share" / "jupyter" / "kernels")])
        self.manager = KernelManager(kernel_name="jaccl", kernel_spec_manager=specs)
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=DEADLINE_S)

    def run(self, code: str) -> tuple[str, str]:
        """A cell's status, and all that it shows as text."""
        shown: list[str] = []
        answer = self.client.execute_interactive(
            code,
            stop_on_error=False,  # else Jupyter aborts, for a moment, the cells that follow an error
            timeout=DEADLINE_S,
            output_hook=lambda message: shown.append(_text(message["content"])),
        )
        return str(answer["content"]["status"]), "\n".join(shown)

    def join(self) -> None:
        """Run a first cell, which starts the ranks."""
        status, shown = self.run("x = 1")
        assert status == "ok", shown

    @property
    def pid(self) -> int:
        provisioner: Any = self.manager.provisioner
        return int(provisioner.pid)

    def reply(self) -> Any:
        return self.client.get_shell_msg(timeout=DEADLINE_S)["content"]


def _text(content: dict[str, Any]) -> str:
    if "traceback" in content:
        return "\n".join(content["traceback"])
    return str(content.get("text") or content.get("data", {}).get("text/plain", ""))


@pytest.fixture
def kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Kernel]:
    make_hostfile(2).write(tmp_path / "two.local.json")
    session.choose_hostfile(tmp_path / "two.local.json")
    with pytest.raises(SystemExit) as caught:
        main(["kernel", "--prefix", str(tmp_path / "env")])
    assert caught.value.code == 0
    assert str(tmp_path) in capsys.readouterr().out
    made = Kernel(tmp_path / "env")
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel()


def test_cells_run_on_all_ranks_local_ones_here_and_rank_0_completes(kernel: Kernel) -> None:
    status, shown = kernel.run("print('hi', rank)\nx = 7 * rank\nx")
    assert status == "ok"
    assert {"hi 0", "0", "[1] hi 1", "[1] 7"} <= set(shown.splitlines())
    assert "REHEARSAL" in shown
    assert kernel.run("%%local\nimport os\nhere = os.getpid()\nprint(here)")[1].split() == [str(kernel.pid)]
    status, shown = kernel.run("if rank == 1:\n    1 / 0")
    assert (status, "ZeroDivisionError" in shown, "first on rank 1 (mac2)" in shown) == ("error", True, True)
    assert "rank 1  mac2" in kernel.run("%jaccl status")[1]
    kernel.client.complete("group.si", 8)
    assert kernel.reply()["matches"] == ["size"]
    kernel.client.inspect("stopping", 4)
    assert "Whether any rank has" in kernel.reply()["data"]["text/plain"]
    kernel.client.complete("%%local\nher", 11)
    assert "here" in kernel.reply()["matches"]


def test_an_interrupt_stops_a_cell_and_a_restart_begins_clean(kernel: Kernel) -> None:
    kernel.join()
    before = psutil.Process(kernel.pid).children(recursive=True)
    assert len(before) >= 5
    kernel.client.execute("n = 0\nprint('begun')\nwhile not stopping():\n    n += 1")
    while "begun" not in _text(kernel.client.get_iopub_msg(timeout=DEADLINE_S)["content"]):
        pass
    kernel.manager.interrupt_kernel()
    assert kernel.reply()["status"] == "ok"
    turns = kernel.run("print(n)")[1].replace("[1]", "").split()
    assert turns[0] == turns[1], "both ranks left after the same turn"
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=DEADLINE_S)
    assert psutil.wait_procs(before, timeout=GONE_DEADLINE_S)[1] == []
    status, shown = kernel.run("x")
    assert status == "error"
    assert "NameError" in shown, shown


def test_a_killed_kernel_takes_its_ranks_along(kernel: Kernel) -> None:
    kernel.join()
    family = psutil.Process(kernel.pid).children(recursive=True)
    os.kill(kernel.pid, signal.SIGKILL)
    assert psutil.wait_procs(family, timeout=GONE_DEADLINE_S)[1] == []


def test_which_cells_stay_here() -> None:
    for cell in ("%%local\nx = 1", "\n%%local\nx", "%jaccl status", "%%jaccl --rank 1\nx", "%%prompt\nhello"):
        assert is_local(cell), cell
    for cell in ("x = 1", "%%time\nx = 1", "%timeit x", "!ls", "# %%local\nx"):
        assert not is_local(cell), cell
    assert everywhere(["x = 1\n"]) == ["%%jaccl --start\n", "x = 1\n"]
    assert everywhere(["\n", "%%local\n", "x\n"]) == ["x\n"]
    assert everywhere(["\n"]) == ["\n"]


def test_the_spec_can_be_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")  # this environment may have one: `jaccl lab` makes it
    for words, code in ((["--user"], 0), (["--remove"], 0)):
        with pytest.raises(SystemExit) as caught:
            main(["kernel", *words])
        assert caught.value.code == code
        if words == ["--user"]:
            spec = json.loads((tmp_path / "kernels" / "jaccl" / "kernel.json").read_text())
            assert spec["display_name"] == "JACCL"
    assert not (tmp_path / "kernels" / "jaccl").exists()
    assert str(tmp_path) in capsys.readouterr().out
