"""The bring-up panels with the real steps on the rehearsal, healthy and broken; no browser."""

import html
import json
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.events import HOST, Event
from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.enable import EnablePanel
from jaccl_kernel.notebook.panels.environment import EnvironmentPanel
from jaccl_kernel.notebook.panels.hostfile import HostfilePanel
from jaccl_kernel.notebook.panels.start import StartPanel
from jaccl_kernel.notebook.panels.sync import SyncPanel
from jaccl_kernel.notebook.panels.verify import VerifyPanel
from jaccl_kernel.rehearsal import homes, plan
from jaccl_kernel.steps import checklist
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync.events import CopyKept
from jaccl_kernel.steps.sync.report import Kept, NodeSync, SyncReport

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def own_hostfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notebooks of a test's own, so that nothing is written into the project."""
    (tmp_path / "hostfiles").mkdir()
    (tmp_path / "notebooks").mkdir()
    plan.make_hostfile(3).write(tmp_path / "hostfiles" / "rehearsal.json")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def broken(folder: Path, *faults: str) -> Hostfile:
    path = folder / "broken.json"
    plan.make_hostfile(3, faults).write(path)
    return session.choose_hostfile(path)


async def test_healthy_macs_are_ready() -> None:
    panel = EnablePanel()
    report = await panel.run()
    assert report.ok
    assert "3 of 3 Macs are ready" in panel.result.value
    assert panel.tasks.children == ()
    assert "REHEARSAL" in panel.children[0].value


async def test_a_mac_with_rdma_off_gets_its_steps_and_keeps_its_ticks(tmp_path: Path) -> None:
    broken(tmp_path, "rdma-off:2")
    panel = EnablePanel()
    report = await panel.run()
    assert [light.kind for light in report.lights] == ["ready", "off", "ready"]
    assert "RDMA is off" in panel.result.value
    first = panel.tasks.children[1]
    first.value = True
    assert checklist.load(rehearsal=True)[report.lights[1].name] == {first.description}
    again = EnablePanel()
    await again.run()
    assert again.tasks.children[1].value is True


async def test_the_environment_is_checked_and_made_only_after_a_yes() -> None:
    panel = EnvironmentPanel()
    report = await panel.run()
    assert report.ok, report.problems
    assert "mlx-lm" in panel.result.value
    panel.apply()
    assert "not confirmed" in panel.error_view.value


async def test_a_hostfile_is_proposed_written_and_then_passes_every_check(own_hostfiles: Path) -> None:
    panel = HostfilePanel()
    report = await panel.run()
    assert report.ok
    assert "<svg" in panel.result.value
    assert not panel.write_button.disabled
    path = panel.write()
    assert path == (own_hostfiles / "hostfiles" / "rehearsal.local.json").resolve()
    assert "rdma" not in (own_hostfiles / "hostfiles" / "rehearsal.json").read_text(), "the shared file stays"
    assert session.read().hostfile == str(path)
    checks = await VerifyPanel().run()
    assert checks.ok, checks.summary
    assert checks.rehearsal


@pytest.mark.parametrize(
    ("fault", "told"),
    [("missing-cable:1-3", "cable"), ("no-ipv4:2", "IPv4"), ("bridged-port:2", "bridge")],
)
async def test_each_fault_is_told_with_what_to_do(tmp_path: Path, fault: str, told: str) -> None:
    broken(tmp_path, fault)
    panel = HostfilePanel()
    report = await panel.run()
    assert not report.ready
    assert told in panel.result.value
    assert report.proposal.moves or report.network.steps


async def test_the_network_is_changed_only_after_a_yes_and_can_be_undone(tmp_path: Path) -> None:
    broken(tmp_path, "no-ipv4:2")
    panel = HostfilePanel()
    before = await panel.run()
    panel.apply()
    assert "not confirmed" in panel.error_view.value
    panel.yes.value = True
    panel.apply()
    applied = await panel.wait()
    assert applied.ok
    healed = await panel.run()
    assert not healed.network.steps
    panel.yes.value = True
    panel.undo()
    assert (await panel.wait()).ok
    after = await panel.run()
    assert [step.line for step in after.network.steps] == [step.line for step in before.network.steps]


async def test_where_sudo_wants_a_password_the_commands_and_their_undo_are_there_to_paste(
    tmp_path: Path,
) -> None:
    mac = homes.prepare(broken(tmp_path, "no-ipv4:2"))[1]
    panel = HostfilePanel()
    found = await panel.run()
    (mac.commands / "sudo").write_text("#!/bin/sh\nexit 1\n")
    panel.yes.value = True
    panel.apply()
    assert not (await panel.wait()).ok
    (step,) = found.network.steps
    told = html.unescape(panel.result.value).partition("<pre")[2]
    assert f"\n  {step.line}\n" in told
    assert f"\n  #   {step.undo_line}\n" in told


async def test_verify_shows_the_shut_check_its_cause_and_fix(tmp_path: Path) -> None:
    broken(tmp_path, "ssh-fails:2")
    panel = VerifyPanel()
    report = await panel.run()
    assert not report.ok
    assert "failed" in panel.result.value
    assert (report.checks[0].name, report.checks[0].verdict) == ("ssh", "failed")
    assert html.escape(report.checks[0].fix[:40]) in panel.result.value
    assert "not tested" in panel.result.value


async def test_a_model_is_looked_for_then_copied_to_the_macs_that_lack_it(tiny_model: Path) -> None:
    panel = SyncPanel(model=str(tiny_model))
    look = await panel.run()
    assert not look.ok
    assert not panel.copy_button.disabled
    report = await panel.copy()
    assert report.ok
    assert "3 of 3 nodes have a complete copy" in panel.result.value
    assert (await panel.run()).ok


async def test_an_empty_model_box_means_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SyncOptions] = []

    async def record(cluster: Cluster, options: SyncOptions, **_: Any) -> SyncReport:
        asked.append(options)
        return SyncReport({}, (), ())

    monkeypatch.setattr("jaccl_kernel.notebook.panels.sync.sync", record)
    panel = SyncPanel()
    panel.form["model"].value = ""
    await panel.run()
    assert [options.model for options in asked] == ["demo"]


async def test_what_a_stopped_or_failed_copy_leaves_is_told(tiny_model: Path) -> None:
    panel = SyncPanel(model=str(tiny_model))
    kept = Kept("/m/.x.partial", 5_000_000_000)
    panel.on_event(Event(HOST, CopyKept("mac2", kept)))
    assert "mac2: 5.00 GB are kept in /m/.x.partial" in panel.result.value
    failed = NodeSync(
        "mac2", "/m/x", "missing", "failed", error="broke", kept=kept, notes=("no way by cable",)
    )
    panel.show(SyncReport({}, (failed,), ()))
    assert "5.00 GB are kept" in panel.result.value
    assert "no way by cable" in panel.result.value


async def test_a_hostfile_that_cannot_be_read_is_told(own_hostfiles: Path) -> None:
    (own_hostfiles / "hostfiles" / "rehearsal.local.json").write_text("{")
    panel = HostfilePanel()
    await panel.run()
    assert "Cannot read the current hostfile; a copy is kept" in panel.result.value


def test_the_start_panel_breaks_and_mends_the_rehearsal(own_hostfiles: Path) -> None:
    panel = StartPanel(own_hostfiles / "notebooks")
    panel.faults.value = "rdma-off:2, missing-cable:1-3"
    path = own_hostfiles / "hostfiles" / "rehearsal.local.json"
    assert json.loads(path.read_text())["rehearsal"]["faults"] == ["rdma-off:2", "missing-cable:1-3"]
    assert session.read().hostfile == str(path.resolve())
    panel.faults.value = "nonsense"
    assert "nonsense" in panel.finding.value
    panel.faults.value = ""
    assert json.loads(path.read_text())["rehearsal"].get("faults", []) == []
