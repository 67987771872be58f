"""The watchdog of jobs: silence and collectives that do not end are told by name; its own pauses are not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.core.errors import DeadlineExceeded
from jaccl_kernel.core.events import Event, Hello, Pulse
from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.core.process import is_suspended
from jaccl_kernel.launch.job import RankState
from jaccl_kernel.launch.run import OnEvent, run
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.launch.watchdog import FIRST_S, LOAD_S, SILENCE_S, SLOW_SILENCE_S, STILL_S, Watchdog
from jaccl_kernel.ranks.host_channel import Progress
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.bench import bench
from tests.events import is_stage
from tests.lab import REPOSITORY

pytestmark = pytest.mark.usefixtures("nothing_left")


class Cluster:
    """Two ranks that send pulses, and a clock: what the watchdog sees."""

    def __init__(self, stage: str = "measure", *, still_s: float | None = STILL_S) -> None:
        self.now = 1000.0
        self.still_s = still_s
        self.ranks = [RankState(number, f"mac{number + 1}", stage=stage, program_pid=1) for number in (0, 1)]
        self.watchdog = Watchdog(self.ranks)
        self.pulses = {0: Pulse(0.0, 1.0, 50, 50), 1: Pulse(0.0, 1.0, 50, 50)}

    def pass_s(self, seconds: float, *, silent: tuple[int, ...] = (), still: tuple[int, ...] = ()) -> str:
        """Let time pass; what is told first, or ""."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for rank in self.ranks:
                one = self.pulses[rank.number]
                grown = one.still_s + 0.5 if rank.number in still else 0.0
                self.pulses[rank.number] = Pulse(grown, one.longest_s, one.points, one.steps)
                if rank.number not in silent:
                    rank.heard_at, rank.pulse = self.now, self.pulses[rank.number]
            if told := self.watchdog.look(self.now, still_s=self.still_s):
                return str(told)
        return ""


def test_pulses_and_progress_are_ok_for_ever() -> None:
    assert Cluster().pass_s(7200) == ""


def test_a_silent_rank_is_told_by_name_and_stage() -> None:
    cluster = Cluster()
    cluster.pass_s(5)
    assert cluster.pass_s(SILENCE_S - 0.5, silent=(1,)) == ""
    told = cluster.pass_s(2, silent=(1,))
    assert told.startswith("mac2: rank 1 (mac2) has sent nothing for 8 s in stage 'measure'")


def test_a_load_may_be_silent_for_longer() -> None:
    cluster = Cluster("load")
    cluster.pass_s(5)
    assert cluster.pass_s(SLOW_SILENCE_S - 0.5, silent=(1,)) == ""
    assert "rank 1 (mac2)" in cluster.pass_s(2, silent=(1,))


def test_the_silence_of_a_join_has_its_own_deadline() -> None:
    cluster = Cluster("join", still_s=None)
    cluster.pass_s(5)
    assert cluster.pass_s(600, silent=(0, 1)) == ""


def test_if_no_rank_is_heard_of_the_launcher_is_told() -> None:
    cluster = Cluster()
    cluster.pass_s(5)
    assert "the launcher on this machine is stopped" in cluster.pass_s(20, silent=(0, 1))


def test_ranks_of_which_none_makes_progress_wait_in_a_collective() -> None:
    cluster = Cluster()
    cluster.pass_s(5)
    assert cluster.pass_s(STILL_S - 0.5, still=(0, 1)) == ""
    told = cluster.pass_s(2, still=(0, 1))
    assert "no rank made progress for" in told
    assert "all ranks are at the same step" in told


def test_a_rank_that_is_behind_is_named_with_its_link() -> None:
    cluster = Cluster()
    cluster.pulses[1] = Pulse(0.0, 1.0, 50, 49)
    told = cluster.pass_s(60, still=(0, 1))
    assert told.startswith("mac2: ")
    assert "rank 1 (mac2) is behind: the link between mac2 and mac1" in told


def test_while_one_rank_makes_progress_the_others_may_wait() -> None:
    assert Cluster().pass_s(7200, still=(0,)) == ""


def test_long_steps_make_the_bound_long() -> None:
    cluster = Cluster()
    for rank in (0, 1):
        cluster.pulses[rank] = Pulse(0.0, 12.0, 50, 50)
    assert cluster.pass_s(59, still=(0, 1)) == ""
    assert "no rank made progress" in cluster.pass_s(5, still=(0, 1))


@pytest.mark.parametrize(("stage", "bound"), [("measure", FIRST_S), ("load", LOAD_S), ("sums", STILL_S)])
def test_the_first_steps_of_a_stage_have_a_bound_of_their_own(stage: str, bound: float) -> None:
    cluster = Cluster(stage)
    for rank in (0, 1):
        cluster.pulses[rank] = Pulse(0.0, 0.0, 0)
    assert cluster.pass_s(bound - 0.5, still=(0, 1)) == ""
    assert "no rank made progress" in cluster.pass_s(5, still=(0, 1))


def test_idle_ranks_make_no_progress_and_that_is_right() -> None:
    assert Cluster("idle", still_s=None).pass_s(7200, still=(0, 1)) == ""


def test_a_pause_of_the_whole_machine_is_neither_silence_nor_a_stall() -> None:
    cluster = Cluster()
    cluster.pass_s(5)
    cluster.now += 3600  # the lid was closed
    for rank in (0, 1):
        cluster.pulses[rank] = Pulse(3600.0, 1.0, 50, 50)
    assert cluster.pass_s(4, silent=(0, 1)) == ""
    assert cluster.pass_s(60) == ""


def test_finished_and_ended_ranks_are_not_judged() -> None:
    cluster = Cluster()
    cluster.pass_s(5)
    cluster.ranks[0].done = True
    cluster.ranks[1].returncode = 1
    assert cluster.pass_s(600, silent=(0, 1), still=(0, 1)) == ""


def test_progress_is_each_report_of_a_stage_and_each_step_of_the_model() -> None:
    progress = Progress()
    progress.begin("load")
    assert progress.pulse().points == 0
    progress.begin("load")
    assert progress.pulse().points == 1
    progress.begin("measure")
    assert progress.pulse().points == 0
    steps = 0
    progress.steps = lambda: steps
    steps = 7
    pulse = progress.pulse()
    assert (pulse.points, pulse.steps) == (1, 7)
    assert progress.pulse().points == 1
    assert pulse.longest_s >= pulse.still_s >= 0


def when(stage: str, act: Callable[[int], None]) -> OnEvent:
    """A listener that acts once on the process of rank 1 when it reports this stage."""
    pids: dict[int, int] = {}
    done: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event.body, Hello):
            pids[event.rank] = event.body.pid
        # only rank 0 reports that it measures, which takes long enough
        if is_stage(event, stage, rank=0 if stage == "measure" else 1) and not done:
            done.append(pids[1])
            act(pids[1])

    return listen


def suspend(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("stage", ["import", "wait", "join", "load", "measure"])
async def test_a_suspended_rank_is_named_in_every_phase_of_a_job(stage: str, tiny_model: Path) -> None:
    options = BenchOptions(model=str(tiny_model), ranks=(2,), max_tokens=4000, repeats=1, prompt_tokens=64)
    with pytest.raises(DeadlineExceeded, match=r"rank 1 \(mac2\) is suspended") as caught:
        await bench(make_hostfile(2), options, on_event=when(stage, suspend))
    assert caught.value.where == "mac2"


def without_its_half(folder: Path, where: str) -> str:
    """A Python whose rank 1 never takes part in this function's collectives."""
    module, name = where.rsplit(".", 1)
    (folder / "sitecustomize.py").write_text(
        "import os, threading\n"
        "if os.environ.get('MLX_RANK') == '1':\n"
        f"    import {module} as module\n"
        f"    module.{name} = lambda *_, **__: threading.Event().wait()\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}:{REPOSITORY} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


async def test_a_collective_that_does_not_end_is_told(tmp_path: Path) -> None:
    python = without_its_half(tmp_path, "jaccl_kernel.ranks.smoke.small_all_sum")
    spec = JobSpec(make_hostfile(2), ("smoke",), "ring", python=python)
    with pytest.raises(DeadlineExceeded, match=r"no rank made progress for 1. s in stage 'sums'") as caught:
        await run(spec)
    assert "jaccl verify" in caught.value.fix


async def test_a_suspended_launcher_is_told_and_ended() -> None:
    started: list[psutil.Process] = []
    spec = JobSpec(make_hostfile(2), ("smoke", "--linger"), "ring")

    def stop_the_launcher(event: Event) -> None:
        if is_stage(event, "idle") and not started:
            [launcher] = [
                child
                for child in psutil.Process().children()
                if "jaccl_kernel.launch.launcher" in child.cmdline()
            ]
            started.append(launcher)
            launcher.suspend()

    with pytest.raises(DeadlineExceeded, match="the launcher on this machine is stopped"):
        await run(spec, on_event=stop_the_launcher)
    assert started


def test_a_suspended_process_is_known_and_a_running_one_is_not() -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        assert not is_suspended(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert is_suspended(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not is_suspended(process.pid)
