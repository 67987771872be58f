"""Jobs from the host's side: the protocol, deaths, deadlines, kills. pytest tests/jobs/test_job.py."""

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

from jaccl_kernel.errors import Busy, DeadlineExceeded, InputError, JobError, RankDied
from jaccl_kernel.jobs import lock, ports
from jaccl_kernel.jobs.job import Job
from jaccl_kernel.jobs.run import Deadlines, run
from jaccl_kernel.jobs.spec import LAUNCH_VARIABLES, JobSpec, parse_env, scrubbed_environ
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.wire import EVENT_LIMIT, Event
from tests.conftest import until

pytestmark = pytest.mark.usefixtures("nothing_left")


def smoke(ranks: int, *options: str, **more: Any) -> JobSpec:
    more.setdefault("starting_port", ports.choose(ranks))
    return JobSpec(make_hostfile(ranks), ("smoke", *options), "ring", **more)


async def test_two_ranks_join_prove_the_group_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # inherited launch variables would join another job, or none
    for name in LAUNCH_VARIABLES:
        monkeypatch.setenv(name, "/nowhere")
    events: list[Event] = []
    outcome = await run(smoke(2), on_event=events.append)
    assert [result["size"] for result in outcome.results] == [2, 2]
    assert all(result["latency_s"] > 0 for result in outcome.results)
    assert {event.rank for event in events if event.kind == "joined"} == {0, 1}
    assert [facts["packages"]["mlx"] is not None for facts in outcome.facts] == [True, True]
    [started] = [event.data for event in events if event.kind == "job"]
    assert started["id"] == outcome.job_id
    assert outcome.command == (Path(started["folder"]) / "command.txt").read_text().strip()


async def test_one_rank_has_no_group() -> None:
    outcome = await run(smoke(1))
    assert outcome.results == [{"latency_s": None, "size": 1}]


async def test_the_logs_of_every_rank_stay() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
    for rank in (0, 1):
        assert '"kind":"ready"' in (job.folder / f"rank{rank}.log").read_text()
    assert (job.folder / "command.txt").read_text().startswith("mlx.launch ")


async def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    await run(smoke(2))
    assert list(tmp_path.iterdir()) == []


async def test_a_rank_that_fails_at_import_is_named_with_its_last_words(tmp_path: Path) -> None:
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
    assert caught.value.last_words == ("ModuleNotFoundError: No module named 'mlx'",)
    assert "a package is missing" in caught.value.what


async def test_a_missing_interpreter_is_said() -> None:
    with pytest.raises(RankDied, match="interpreter was not found"):
        await run(smoke(2, python="/nowhere/python"))


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_rank_that_is_killed_while_it_works_is_the_first_cause(victim: int) -> None:
    def kill(event: Event) -> None:
        if event.kind == "hello" and event.rank == victim:
            pids.append(event.data["pid"])
        if event.kind == "stage" and event.data["name"] == "idle" and event.rank == victim:
            os.kill(pids[0], signal.SIGKILL)

    pids: list[int] = []
    with pytest.raises(RankDied, match="killed by SIGKILL") as caught:
        await run(smoke(2, "--linger"), on_event=kill)
    assert (caught.value.rank, caught.value.returncode) == (victim, -9)


async def test_a_result_beyond_every_bound_is_missed_by_its_rank_s_name(tmp_path: Path) -> None:
    """The rank says so much that it counts as chatter; then it is done."""
    rank = tmp_path / "rank.py"
    rank.write_text(
        textwrap.dedent(
            f"""
            import os
            from jaccl_kernel.ranks.link import Link

            link = Link.open()
            link.say("ready")
            link.receive("go", deadline=60)
            link.say("joined")
            link.say("result", tokens="9" * {EVENT_LIMIT + (1 << 20)})
            link.finish(0)
            """
        )
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {rank}\n")
    python.chmod(0o755)
    with pytest.raises(JobError, match="rank 0 was done, but its result did not arrive") as caught:
        await run(smoke(1, python=str(python)))
    assert caught.value.where == "mac1"


async def test_a_rank_that_dies_while_the_others_join_does_not_leave_them_waiting() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
        assert job.ranks[1].pid
        os.kill(job.ranks[1].pid, signal.SIGKILL)
        await job.send("go", join_deadline=60)
        await _wait_stage(job, 0, "join")
    assert job.ranks[0].returncode is not None


async def test_a_wait_that_takes_too_long_names_who_was_waited_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$MLX_RANK" = 1 ] && exec sleep 600\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(DeadlineExceeded, match=r"rank 1 \(mac2\) to be ready"):
        await run(smoke(2, python=str(python)), deadlines=Deadlines(ready=3.0))


async def test_a_join_that_never_ends_is_ended_at_its_deadline() -> None:
    async with Job(smoke(2)) as job:
        await _wait_ready(job)
        await job.send("go", to=0, join_deadline=1.0)  # rank 1 is never told to come
        await until(lambda: job.ranks[0].returncode is not None, "the stuck rank to leave")
        assert job.ranks[0].returncode == 1


async def test_cancelling_ends_everything() -> None:
    idle = asyncio.Event()
    task = asyncio.create_task(
        run(smoke(2, "--linger"), on_event=lambda e: idle.set() if e.data.get("name") == "idle" else None)
    )
    await asyncio.wait_for(idle.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_killed_launcher_is_said_and_its_ranks_end() -> None:
    async with Job(smoke(2, "--linger")) as job:
        await _wait_ready(job)
        assert job.pid
        os.kill(job.pid, signal.SIGKILL)
        await until(lambda: job.ended, "the job to end")
    assert job.returncode == -9


@pytest.mark.parametrize("stage", ["idle", "join"])
async def test_a_sigkill_of_the_starter_leaves_nothing(tmp_path: Path, stage: str) -> None:
    """As a notebook's kernel that is killed; while joining, the ranks leave at the join's deadline."""
    script = textwrap.dedent(
        f"""
        import asyncio, json
        from jaccl_kernel.jobs.job import Job
        from tests.jobs.test_job import smoke, _wait_ready, _wait_stage

        async def main():
            async with Job(smoke(2, "--linger")) as job:
                await _wait_ready(job)
                # one rank alone never joins: it leaves at this deadline; two join well before the other
                go = {{"to": 0, "join_deadline": 2.0}} if "{stage}" == "join" else {{"join_deadline": 30.0}}
                await job.send("go", **go)
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
    if stage == "join":  # the launcher would end the ranks at once; without it only their own deadline does
        os.kill(launcher, signal.SIGKILL)
    with starter:
        starter.wait(timeout=10)


async def test_a_second_job_on_this_machine_is_refused_by_name() -> None:
    with lock.hold(["127.0.0.1"], "a benchmark"), pytest.raises(Busy, match=f"a benchmark.*{os.getpid()}"):
        await run(smoke(1))


async def test_a_port_in_use_is_said_before_anything_starts() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Busy, match=f"port {port}"):
            await run(smoke(2, starting_port=port))


async def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(JobError, match="cannot write") as caught:
        await run(smoke(2))
    assert "JACCL_CACHE" in caught.value.fix


def test_the_plain_command_is_what_the_job_runs_without_the_wire() -> None:
    spec = smoke(2, env={"A": "b c"}, starting_port=40000)
    assert spec.plain_command("h.json") == (
        f"mlx.launch --backend ring --hostfile h.json --python {sys.executable} --starting-port 40000 "
        "--env HF_HUB_OFFLINE=1 --env TRANSFORMERS_OFFLINE=1 --env MLX_METAL_FAST_SYNCH=0 "
        f"--env OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // 2)} --env 'A=b c' -- "
        "-m jaccl_kernel.ranks smoke"
    )
    wired = spec.launch_arguments("h.json", wired=True, job="j")
    assert "JACCL_KERNEL_WIRE=1" in wired


def test_math_threads_are_shared_only_where_ranks_share_a_machine() -> None:
    assert "OMP_NUM_THREADS" not in smoke(1).environment()
    assert smoke(8, starting_port=1).environment()["OMP_NUM_THREADS"] == str(
        max(1, (os.cpu_count() or 1) // 8)
    )
    assert smoke(2, env={"OMP_NUM_THREADS": "5"}).environment()["OMP_NUM_THREADS"] == "5"


async def test_fast_synch_is_off_whatever_this_process_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks of this machine inherit our environment, and MLX reads 0 as off."""
    monkeypatch.setenv("MLX_METAL_FAST_SYNCH", "1")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "fast synch: $MLX_METAL_FAST_SYNCH"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    events: list[Event] = []
    await run(smoke(1, python=str(python)), on_event=events.append)
    assert "fast synch: 0" in [event.data["text"] for event in events if event.kind == "line"]


def test_the_hostfile_s_choice_wins_over_a_default_and_ours_over_both() -> None:
    hostfile = replace(
        make_hostfile(2),
        envs=("HF_HUB_OFFLINE=0", "OMP_NUM_THREADS=3", "MLX_METAL_FAST_SYNCH=1", "A", "B-=1"),
    )
    spec = JobSpec(hostfile, ("smoke",), "ring", env={"OMP_NUM_THREADS": "5"})
    # mlx.launch exports the hostfile's first, then these
    assert spec.environment() == {"TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "5"}
    assert spec.whole_environment() == spec.environment() | {
        "HF_HUB_OFFLINE": "0",
        "MLX_METAL_FAST_SYNCH": "1",
        "A": "",
    }


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="unknown backend 'nccl'"):
        JobSpec(make_hostfile(1), ("smoke",), "nccl")
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_env(["OOPS"])
    assert parse_env(["A=b=c", "D="]) == {"A": "b=c", "D": ""}
    assert scrubbed_environ({"JACCL_RING": "0", "HOME": "/h"}) == {"HOME": "/h"}


async def _wait_ready(job: Job) -> None:
    while not all(rank.ready for rank in job.ranks):
        assert await job.next_event(60) is not None, list(job.ranks[0].tail)


async def _wait_stage(job: Job, rank: int, stage: str) -> None:
    while job.ranks[rank].stage != stage:
        assert await job.next_event(60) is not None, list(job.ranks[rank].tail)
