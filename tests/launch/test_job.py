"""Jobs from the host's side: protocol, dead ranks, deadlines and kills."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import Busy, DeadlineExceeded, InputError, JobError, RankDied
from jaccl_kernel.core.events import EVENT_LIMIT, Event, Hello, JobStarted, Joined, Line, SmokeResult
from jaccl_kernel.core.messages import Go
from jaccl_kernel.launch import lock, ports
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.run import Deadlines, run
from jaccl_kernel.launch.spec import LAUNCH_VARIABLES, JobSpec, scrubbed_environ
from jaccl_kernel.rehearsal.homes import make_hostfile
from tests.conftest import until
from tests.events import bodies, is_stage

pytestmark = pytest.mark.usefixtures("nothing_left")


def smoke(ranks: int, *options: str, **more: Any) -> JobSpec:
    more.setdefault("starting_port", ports.choose(ranks))
    return JobSpec(make_hostfile(ranks), ("smoke", *options), "ring", **more)


async def test_two_ranks_join_prove_the_group_and_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    # inherited launch variables must have no effect
    for name in LAUNCH_VARIABLES:
        monkeypatch.setenv(name, "/nowhere")
    events: list[Event] = []
    outcome = await run(smoke(2), on_event=events.append)
    results = outcome.results_of(SmokeResult)
    assert [result.size for result in results] == [2, 2]
    assert all(result.latency_s and result.latency_s > 0 for result in results)
    assert {event.rank for event in events if isinstance(event.body, Joined)} == {0, 1}
    assert [facts.packages["mlx"] is not None for facts in outcome.facts] == [True, True]
    [started] = bodies(events, JobStarted)
    assert started.id == outcome.job_id
    assert outcome.command == (Path(started.folder) / "command.txt").read_text().strip()


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "$(x)", "missing"])
async def test_the_size_is_right_whatever_the_name_of_tmpdir(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's script does not quote the names of its temporary files."""
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    results = (await run(smoke(2))).results_of(SmokeResult)
    assert [result.size for result in results] == [2, 2]
    assert list(tmp_path.glob("*/*")) == []


async def test_ranks_that_would_run_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of hosts is not written on any node: no rank may take that for a job of one rank."""
    (tmp_path / "mktemp").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "mktemp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RankDied, match="the job has 2") as caught:
        await run(smoke(2))
    assert "TMPDIR" in caught.value.fix


async def test_one_rank_has_no_group() -> None:
    outcome = await run(smoke(1))
    assert outcome.results == [SmokeResult(None, 1)]


async def test_the_logs_of_every_rank_are_kept() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
    for rank in (0, 1):
        assert '"kind":"ready"' in (job.folder / f"rank{rank}.log").read_text()
    assert (job.folder / "command.txt").read_text().startswith("mlx.launch ")


async def test_no_temporary_file_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    await run(smoke(2))
    assert list(tmp_path.iterdir()) == []


async def test_a_rank_that_fails_at_import_is_named_with_its_last_lines(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$MLX_RANK" = 1 ] && { echo "ModuleNotFoundError: No module named \'mlx\'" >&2; '
        "exit 1; }\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    with pytest.raises(RankDied) as caught:
        await run(smoke(2, python=str(python)))
    assert caught.value.rank == 1
    assert caught.value.where == "mac2"
    assert caught.value.returncode == 1
    assert caught.value.last_lines == ("ModuleNotFoundError: No module named 'mlx'",)
    assert "the package mlx is missing" in caught.value.what


async def test_a_missing_interpreter_is_reported() -> None:
    with pytest.raises(RankDied, match="interpreter was not found"):
        await run(smoke(2, python="/nowhere/python"))


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_rank_that_is_killed_during_its_work_is_the_root_cause(victim: int) -> None:
    def kill(event: Event) -> None:
        if isinstance(event.body, Hello) and event.rank == victim:
            pids.append(event.body.pid)
        if is_stage(event, "idle", victim):
            os.kill(pids[0], signal.SIGKILL)

    pids: list[int] = []
    with pytest.raises(RankDied, match="killed by SIGKILL") as caught:
        await run(smoke(2, "--linger"), on_event=kill)
    assert (caught.value.rank, caught.value.returncode) == (victim, -9)


async def test_a_result_over_the_size_limit_is_reported_as_missing(tmp_path: Path) -> None:
    """A line over the limit counts as plain output, so the rank finishes without a result."""
    rank = tmp_path / "rank.py"
    rank.write_text(
        textwrap.dedent(
            f"""
            import os
            from jaccl_kernel.core.events import BenchResult, Joined, Ready
            from jaccl_kernel.core.messages import Go
            from jaccl_kernel.core.results import Power
            from jaccl_kernel.ranks.host_channel import Link

            link = Link.open()
            link.send(Ready())
            link.receive(Go, deadline=60)
            link.send(Joined(1, "none"))
            link.send(BenchResult(1, "9" * {EVENT_LIMIT + (1 << 20)}, Power("mac1")))
            link.finish(0)
            """
        )
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {rank}\n")
    python.chmod(0o755)
    with pytest.raises(JobError, match="rank 0 finished, but its result did not arrive") as caught:
        await run(smoke(1, python=str(python)))
    assert caught.value.where == "mac1"


async def test_a_rank_that_dies_during_the_join_does_not_block_the_others() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
        assert job.ranks[1].pid
        os.kill(job.ranks[1].pid, signal.SIGKILL)
        await job.send(Go(60))
        await _wait_stage(job, 0, "join")
    assert job.ranks[0].returncode is not None


async def test_a_deadline_names_the_missing_ranks(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$MLX_RANK" = 1 ] && exec sleep 600\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(DeadlineExceeded, match=r"rank 1 \(mac2\) to be ready"):
        await run(smoke(2, python=str(python)), deadlines=Deadlines(ready=3.0))


async def test_a_stuck_join_ends_at_its_deadline() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
        await job.send(Go(1.0), to=0)  # rank 1 gets no "go"
        await until(lambda: job.ranks[0].returncode is not None, "the stuck rank to leave")
        assert job.ranks[0].returncode == 1


async def test_cancellation_stops_every_process() -> None:
    idle = asyncio.Event()
    task = asyncio.create_task(
        run(smoke(2, "--linger"), on_event=lambda e: idle.set() if is_stage(e, "idle") else None)
    )
    await asyncio.wait_for(idle.wait(), 120)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_killed_launcher_is_reported_and_its_ranks_end() -> None:
    async with Job(smoke(2, "--linger")) as job:
        await _wait_ready(job)
        assert job.pid
        os.kill(job.pid, signal.SIGKILL)
        await until(lambda: job.ended, "the job to end")
    assert job.returncode == -9


@pytest.mark.parametrize("stage", ["idle", "join"])
async def test_a_sigkill_of_the_parent_ends_every_process(tmp_path: Path, stage: str) -> None:
    """Like a killed notebook kernel. Ranks in the join exit at the join's deadline."""
    script = textwrap.dedent(
        f"""
        import asyncio, json
        from jaccl_kernel.core.messages import Go
        from jaccl_kernel.launch.job import Job
        from tests.launch.test_job import smoke, _wait_ready, _wait_stage

        async def main():
            async with Job(smoke(2, "--linger")) as job:
                await _wait_ready(job)
                # a single rank cannot join and exits at this deadline; two ranks join long before theirs
                to, deadline = (0, 2.0) if "{stage}" == "join" else (None, 30.0)
                await job.send(Go(deadline), to=to)
                await _wait_stage(job, 0, "{stage}")
                print(json.dumps([job.pid]), flush=True)
                await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout
    [launcher] = json.loads(starter.stdout.readline())
    starter.kill()
    if stage == "join":  # a living launcher would end the ranks first
        os.kill(launcher, signal.SIGKILL)
    with starter:
        starter.wait(timeout=60)


async def test_a_second_job_on_this_machine_is_refused_with_the_name_of_the_first() -> None:
    with lock.hold(["127.0.0.1"], "a benchmark"), pytest.raises(Busy, match=f"a benchmark.*{os.getpid()}"):
        await run(smoke(1))


async def test_a_port_in_use_is_reported_before_anything_starts() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Busy, match=f"port {port}"):
            await run(smoke(2, starting_port=port))


async def test_an_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(JobError, match="cannot write") as caught:
        await run(smoke(2))
    assert "JACCL_CACHE" in caught.value.fix


def test_the_plain_command_equals_the_job_without_events() -> None:
    spec = smoke(2, env={"A": "b c"}, starting_port=40000)
    assert spec.plain_command("h.json") == (
        f"mlx.launch --backend ring --hostfile h.json --python {sys.executable} --starting-port 40000 "
        "--env HF_HUB_OFFLINE=1 --env TRANSFORMERS_OFFLINE=1 --env MLX_METAL_FAST_SYNCH=0 "
        f"--env OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // 2)} --env 'A=b c' -- "
        "-m jaccl_kernel.ranks smoke"
    )
    wired = spec.launch_arguments("h.json", wired=True, job="j")
    assert "JACCL_KERNEL_WIRE=1" in wired


def test_math_threads_are_divided_only_among_ranks_of_one_machine() -> None:
    assert "OMP_NUM_THREADS" not in smoke(1).environment()
    assert smoke(8, starting_port=1).environment()["OMP_NUM_THREADS"] == str(
        max(1, (os.cpu_count() or 1) // 8)
    )
    assert smoke(2, env={"OMP_NUM_THREADS": "5"}).environment()["OMP_NUM_THREADS"] == "5"


async def test_fast_synch_is_off_even_if_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local ranks inherit this environment; MLX treats 0 as off."""
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", "1")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "fast synch: $MLX_METAL_FAST_SYNCH"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    events: list[Event] = []
    await run(smoke(1, python=str(python)), on_event=events.append)
    assert "fast synch: 0" in [line.text for line in bodies(events, Line)]


def test_job_variables_override_the_hostfile_which_overrides_the_defaults() -> None:
    hostfile = replace(
        make_hostfile(2),
        envs=("HF_HUB_OFFLINE=0", "OMP_NUM_THREADS=3", "MLX_METAL_FAST_SYNCH=1", "A", "B-=1"),
    )
    spec = JobSpec(hostfile, ("smoke",), "ring", env={"OMP_NUM_THREADS": "5"})
    # mlx.launch exports the hostfile's first, then these
    assert spec.environment() == {"TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "5"}
    assert spec.full_environment() == spec.environment() | {
        "HF_HUB_OFFLINE": "0",
        "MLX_METAL_FAST_SYNCH": "1",
        "A": "",
    }


def test_invalid_values_are_refused() -> None:
    with pytest.raises(InputError, match="unknown backend 'nccl'"):
        JobSpec(make_hostfile(1), ("smoke",), "nccl")
    assert scrubbed_environ({"JACCL_RING": "0", "HOME": "/h"}) == {"HOME": "/h"}


async def _wait_ready(job: Job) -> None:
    while not all(rank.ready for rank in job.ranks):
        assert await job.next_event(60) is not None, list(job.ranks[0].tail)


async def _wait_stage(job: Job, rank: int, stage: str) -> None:
    while job.ranks[rank].stage != stage:
        assert await job.next_event(60) is not None, list(job.ranks[rank].tail)
