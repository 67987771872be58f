"""Texts that are known, and jobs that nobody owns."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.cli.main import main
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.launch import servers
from jaccl_kernel.notebook.panels.troubleshoot import TroubleshootPanel, look_blocks
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps import troubleshoot
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.serve.detached import Running

pytestmark = pytest.mark.usefixtures("nothing_left")

LOG = """[jaccl] Recv failed with errno=60
mac2 | [jaccl] Changing queue pair to RTR failed with errno 22
something that nobody knows
"""


def orphan(home: Path, *, stubborn: bool = False) -> "subprocess.Popen[bytes]":
    """A process with a rank's command line and a Mac's home, which nobody owns."""
    code = "import signal,time\n"
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    code += "print('up', flush=True)\ntime.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-m", "jaccl_kernel.ranks", "serve", "--model", "a b'c"],
        env=os.environ | {"HOME": str(home)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    return process


def reap(process: "subprocess.Popen[bytes]") -> int:
    return process.wait(timeout=60)


def test_a_root_cause_is_listed_before_secondary_ones() -> None:
    found = troubleshoot.explain(LOG)
    assert [one.secondary for one in found] == [False, True]
    assert "index 1" in found[0].causes[0].cause
    assert found[0].line == "mac2 | [jaccl] Changing queue pair to RTR failed with errno 22"
    assert troubleshoot.explain("all is well") == []


def test_the_newest_logs_with_known_errors_are_listed() -> None:
    for job, text in (("20260101-1", LOG), ("20260102-1", "fine"), ("20260103-1", "Can't parse address x")):
        folder = cache_dir() / "jobs" / job
        folder.mkdir(parents=True)
        (folder / "rank0.log").write_text(text)
    assert [(one.job, len(one.findings)) for one in troubleshoot.read_logs()] == [
        ("20260103-1", 1), ("20260101-1", 2)
    ]  # fmt: skip


@pytest.mark.usefixtures("with_and_without_ps")
async def test_leftover_processes_are_found_on_their_mac_and_ended_only_after_confirmation() -> None:
    hostfile = make_hostfile(2)
    cluster = Cluster.of(hostfile)
    home = homes.prepare(hostfile)[1].home
    polite, stubborn = orphan(home), orphan(home, stubborn=True)
    report = await troubleshoot.look(cluster)
    assert [sorted(one.pid for one in node.processes) for node in report.nodes] == [
        [], sorted([polite.pid, stubborn.pid])
    ]  # fmt: skip
    assert not report.ok
    with pytest.raises(InputError, match="not confirmed"):
        await troubleshoot.end(cluster, report)
    ended = await troubleshoot.end(cluster, report, yes=True)
    assert {one.pid: one.outcome for one in ended.ended} == {polite.pid: "ended", stubborn.pid: "killed"}
    assert "reboot" in ended.note
    assert (reap(polite), reap(stubborn)) == (-15, -9)
    again = await troubleshoot.end(cluster, report, yes=True)
    assert {one.outcome for one in again.ended} == {"gone"}
    assert (await troubleshoot.look(cluster)).ok


async def test_a_program_of_somebody_else_is_listed_and_never_ended() -> None:
    hostfile = make_hostfile(2)
    cluster = Cluster.of(hostfile)
    env = os.environ | {"HOME": str(homes.prepare(hostfile)[1].home)}
    with subprocess.Popen(["exo", "600"], executable=shutil.which("sleep"), env=env) as process:
        report = await troubleshoot.look(cluster)
        [found] = report.nodes[1].processes
        assert (found.pid, found.what, found.ours) == (process.pid, "exo", False)
        ended = await troubleshoot.end(cluster, report, yes=True)
        assert ended.ended == ()
        assert process.poll() is None
        process.kill()


async def test_a_running_server_is_not_a_leftover(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = servers.ServerFolder.create()
    state = servers.ServerState(folder.id, "", ("mac1",), "m", "http://127.0.0.1:8080")
    running = Running(folder, state)
    monkeypatch.setattr(troubleshoot, "find_running", lambda: [running])
    report = await troubleshoot.look(Cluster.of(make_hostfile(1)))
    [told] = report.servers
    assert told.startswith(f"Server {folder.id} is running at http://127.0.0.1:8080")
    assert f"`jaccl stop {folder.id}` ends it" in told
    assert folder.id in "".join(look_blocks(report))


@pytest.mark.usefixtures("with_and_without_ps")
async def test_another_process_with_that_pid_is_not_ended() -> None:
    hostfile = make_hostfile(1)
    cluster = Cluster.of(hostfile)
    process = orphan(homes.prepare(hostfile)[0].home)
    found = await troubleshoot.look(cluster)
    [one] = found.nodes[0].processes
    other = troubleshoot.Stuck("mac1", (type(one)(one.pid, one.age, "another command", one.what),))
    ended = await troubleshoot.end(cluster, troubleshoot.LookReport((other,)), yes=True)
    assert [each.outcome for each in ended.ended] == ["gone"]
    assert psutil.pid_exists(process.pid)
    await troubleshoot.end(cluster, found, yes=True)
    assert reap(process) == -15


async def test_the_panel_explains_finds_and_ends() -> None:
    panel = TroubleshootPanel(make_hostfile(2))
    panel.text.value = LOG
    panel.explain_button.click()
    assert "index 1" in panel.meaning.value
    process = orphan(homes.prepare(panel.hostfile())[0].home)
    await panel.run()
    assert str(process.pid) in panel.result.value
    panel.end_button.click()
    assert "not confirmed" in panel.error_view.value
    panel.yes.value = True
    panel.end_button.click()
    await panel.wait()
    assert f"process {process.pid} ended" in panel.result.value
    assert panel.end_button.disabled
    assert reap(process) == -15


def test_the_command_explains_finds_and_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str) -> object:
        with pytest.raises(SystemExit) as caught:
            main(["troubleshoot", *words])
        return caught.value.code

    monkeypatch.setattr(sys, "stdin", io.StringIO(LOG))
    assert run("--explain", "-") == 0
    assert "result of another failure" in capsys.readouterr().out
    assert run("--explain", str(tmp_path / "none")) == 2
    assert run("--end") == 2
    assert run() == 0
    make_hostfile(2).write(tmp_path / "two.json")
    hostfile = str(tmp_path / "two.json")
    assert run(hostfile) == 0
    capsys.readouterr()
    process = orphan(homes.prepare(make_hostfile(2))[0].home)
    assert run(hostfile) == 1
    assert f"{process.pid}  a rank of a job" in capsys.readouterr().out
    assert run(hostfile, "--end") == 2, "nobody to ask"
    assert run(hostfile, "--end", "--yes") == 0
    assert reap(process) == -15
