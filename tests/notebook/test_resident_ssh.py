"""Ranks that stay, reached by real ssh: CURVE, fixed ports, and the same ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.core.errors import RankDied
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch.controller import FAR_PORTS
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.magics import run_cell
from jaccl_kernel.notebook.resident import Ranks
from tests.sshd import Macs, start_macs, wait_for

pytestmark = [pytest.mark.sshd, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Macs]:
    with start_macs(tmp_path / "macs") as started:
        monkeypatch.setenv("PATH", started.path)
        yield started


def test_far_ranks_join_answer_and_leave_and_strangers_are_kept_out(
    macs: Macs, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # several Macs at 127.0.0.1 are rightly refused; these share this machine, and reach each other there
    monkeypatch.setattr(resident, "check_hostfile", lambda hostfile, backend: None)
    hostfile = Hostfile(tuple(Host(name, ("127.0.0.1",)) for name in ("mac1", "mac2")), "ring")
    before = set(psutil.Process().children(recursive=True))
    with Ranks.start(hostfile) as ranks:
        family = set(psutil.Process().children(recursive=True)) - before
        assert ranks.load(tiny_model) > 0
        run_cell(ranks, "import os\nprint(rank, os.environ['HOME'])")
        shown = capsys.readouterr().out
        assert f"0 {macs['mac1'].home}\n" in shown
        assert f"[1] 1 {macs['mac2'].home}\n" in shown
        assert ranks.prompt("Hello", max_tokens=4, temperature=0, on_words=lambda *_: None).tokens <= 4
        listening = [
            (connection.laddr.ip, connection.laddr.port)
            for child in family
            if "jaccl_kernel.launch.controller" in child.cmdline()
            for connection in child.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        fixed = [port for _, port in listening if FAR_PORTS[0] <= port <= FAR_PORTS[1]]
        assert len(fixed) >= 6, listening
        assert {ip for ip, _ in listening} == {"127.0.0.1"}, "the one on the way to the far Macs"
        assert ranks.engines.client.curve_secretkey, (
            "what goes over the network is encrypted, and needs a key"
        )
        key = ranks.engines.client.curve_serverkey.decode()
        assert len(key) == 40
        assert not [one for one in macs.running() if key in " ".join(one.cmdline())]
        [victim] = [one for one in macs.running() if "resident" in one.cmdline() and _rank(one) == "1"]
        os.kill(victim.pid, signal.SIGKILL)
        wait_for(lambda: not ranks.alive, "the death to be seen")
        with pytest.raises(RankDied, match="rank 1"):
            ranks.prompt("x")
    wait_for(lambda: not macs.running(), "the far ranks to be gone")


def _rank(process: psutil.Process) -> str:
    return process.environ().get("MLX_RANK", "")
