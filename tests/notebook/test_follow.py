"""Panels follow the notebooks' cluster: changes are shown, and no action goes to the wrong Macs."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.hostfile.template import template
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.bench import BenchPanel
from jaccl_kernel.notebook.panels.bringup import BringUpPanel
from jaccl_kernel.notebook.panels.enable import EnablePanel
from jaccl_kernel.notebook.panels.environment import EnvironmentPanel
from jaccl_kernel.notebook.panels.hostfile import HostfilePanel
from jaccl_kernel.notebook.panels.serve import ServePanel
from jaccl_kernel.notebook.panels.start import OTHER, StartPanel
from jaccl_kernel.notebook.panels.sweep import SweepPanel
from jaccl_kernel.notebook.panels.sync import SyncPanel
from jaccl_kernel.notebook.panels.troubleshoot import TroubleshootPanel
from jaccl_kernel.notebook.panels.verify import VerifyPanel
from jaccl_kernel.rehearsal import plan
from tests.conftest import until

pytestmark = pytest.mark.usefixtures("nothing_left")
PANELS = (
    BenchPanel,
    EnablePanel,
    EnvironmentPanel,
    HostfilePanel,
    ServePanel,
    SweepPanel,
    SyncPanel,
    TroubleshootPanel,
    VerifyPanel,
)
MACS = ["a.local", "b.local", "c.local"]


@pytest.fixture(autouse=True)
def macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hostfile of three real Macs, which nothing here may contact, and a rehearsal of two."""
    (tmp_path / "hostfiles").mkdir()
    plan.make_hostfile(2, ["no-ipv4:2"]).write(tmp_path / "hostfiles" / "rehearsal.json")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "three.json"
    template(MACS).write(path)
    return path


def in_another_process(path: Path) -> None:
    """Choose a hostfile as another notebook's kernel does."""
    code = "import sys; from jaccl_kernel.notebook import session; session.choose_hostfile(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=240, env=os.environ)


@pytest.mark.parametrize("panel", PANELS)
async def test_a_choice_of_another_process_is_shown(panel: Callable[[], BringUpPanel], macs: Path) -> None:
    shown = panel()
    assert "REHEARSAL" in shown.heading_view.value
    in_another_process(macs)
    await until(lambda: "a.local, b.local, c.local" in shown.heading_view.value, "the new hosts")
    assert "REHEARSAL" not in shown.heading_view.value
    shown.progress_view.handle(Event(2, Stage("load", "the weights")))
    assert [rank["label"] for rank in shown.progress_view.snapshot["ranks"]] == ["rank 2 · c.local"]


async def test_a_changed_hostfile_is_shown_without_a_new_choice(macs: Path) -> None:
    session.choose_hostfile(macs)
    panel = EnablePanel()
    template(["a.local", "d.local"]).write(macs)
    await until(lambda: "a.local, d.local" in panel.heading_view.value, "the new hosts")


async def test_what_was_found_on_simulated_macs_is_never_applied_to_real_ones(
    macs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = HostfilePanel()
    found = await panel.run()
    assert found.network.steps
    panel.yes.value = True

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("commands were run")

    monkeypatch.setattr("jaccl_kernel.notebook.panels.hostfile.network.apply", never)
    session.choose_hostfile(macs)
    panel.apply()  # before the panel has followed, or after
    assert not panel.running
    assert "the cluster changed" in panel.error_view.value or "not confirmed" in panel.error_view.value
    await until(lambda: "a.local" in panel.heading_view.value, "the new hosts")
    assert panel.apply_button.disabled
    assert panel.write_button.disabled
    assert not panel.yes.value
    assert "Found on rehearsal.json: mac1, mac2, before the cluster changed" in panel.outdated_view.value
    panel.yes.value = True
    panel.apply()
    assert "not confirmed" in panel.error_view.value
    assert not panel.running


@pytest.mark.parametrize("panel", [EnvironmentPanel, TroubleshootPanel])
async def test_an_action_that_was_planned_for_other_macs_is_refused(
    panel: type[EnvironmentPanel | TroubleshootPanel], macs: Path
) -> None:
    shown = panel()
    if isinstance(shown, EnvironmentPanel):
        shown.plan()
    else:
        shown.start()
    await shown.wait()
    session.choose_hostfile(macs)
    await until(lambda: "a.local" in shown.heading_view.value, "the new hosts")
    shown.yes.value = True
    act = shown.apply if isinstance(shown, EnvironmentPanel) else shown.end
    act()
    assert not shown.running
    assert "not confirmed" in shown.error_view.value


async def test_a_run_ends_on_its_own_cluster_and_its_result_is_marked_then(macs: Path) -> None:
    panel = EnablePanel()
    may_end = threading.Event()
    scan = panel.prepare()

    async def step(on_event: Any) -> Any:
        report = await scan(on_event)
        while not may_end.is_set():
            await until(may_end.is_set, "the test's word")
        return report

    panel.act(step)
    await until(lambda: panel.progress_view.snapshot["state"] == "running", "the run")
    in_another_process(macs)
    assert "REHEARSAL" in panel.heading_view.value
    may_end.set()
    await panel.wait()
    assert "a.local" in panel.heading_view.value
    assert "before the cluster changed" in panel.outdated_view.value


async def test_a_hostfile_that_the_panel_wrote_itself_outdates_nothing() -> None:
    panel = HostfilePanel()
    await panel.run()
    assert panel.write()
    assert "rehearsal.local.json" in panel.heading_view.value
    assert not panel.follow()
    assert "before the cluster changed" not in panel.outdated_view.value


async def test_choices_fit_the_new_cluster(macs: Path) -> None:
    bench, serve, sweep = BenchPanel(), ServePanel(), SweepPanel()
    assert sorted(bench.rank_boxes) == [1, 2]
    session.choose_python("/Users/me/env/bin/python")
    session.choose_hostfile(macs)
    for panel in (bench, serve, sweep):
        await until(lambda panel=panel: "a.local" in panel.heading_view.value, "the new hosts")
    assert [count for count, box in bench.rank_boxes.items() if box.value] == [1, 3]
    assert bench.options().python == serve.options().python == "/Users/me/env/bin/python"
    assert (serve.ranks.max, serve.ranks.value) == (3, 3)
    assert sweep.grid().ranks == [1, 3]


async def test_the_start_panel_shows_choices_that_are_made_elsewhere(macs: Path) -> None:
    panel = StartPanel(Path.cwd())
    assert panel.choice.value == ""
    in_another_process(macs)
    await until(lambda: "a.local, b.local, c.local" in panel.summary.value, "the new hosts")
    assert (panel.choice.value, panel.path.value) == (OTHER, str(macs))
    assert session.read().hostfile == str(macs), "to show a choice is not to make one"


async def test_a_given_cluster_stays(macs: Path) -> None:
    panel = EnablePanel(session.current())
    session.choose_hostfile(macs)
    assert not panel.follow()
    assert "REHEARSAL" in panel.heading_view.value
