"""Other jobs on the Macs, imports, and what a small job proves. Run: pytest tests/steps/test_live_gates.py"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cluster.shell import LocalNode, SshNode
from jaccl_kernel.cluster.wiring import wire
from jaccl_kernel.errors import JobError
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.steps import live_gates
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.verify import verify
from tests.conftest import until
from tests.sshd import start_macs
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_package_that_does_not_import_fails_the_environment_gate(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    problems = await live_gates.import_problems(
        [LocalNode("mac1"), LocalNode("mac2")], wire(seen(configured(2))), str(bare)
    )
    assert {problem.where for problem in problems} == {"mac1", "mac2"}
    assert "No module named 'jaccl_kernel'" in problems[0].message


@pytest.fixture
def dummy() -> Iterator[list[asyncio.Task[Any]]]:
    tasks: list[asyncio.Task[Any]] = []
    yield tasks
    for task in tasks:
        task.cancel()


async def test_a_stale_rank_is_listed_with_its_mac_and_pid_and_left_alive(
    dummy: list[asyncio.Task[Any]],
) -> None:
    hostfile = configured(2)
    cluster = Cluster.of(hostfile)
    pids: list[int] = []
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(120)"
    run = cluster.nodes[1].run(
        [sys.executable, "-c", code, "-m", "jaccl_kernel.ranks", "bench"],
        deadline=120,
        on_line=lambda line: pids.append(int(line)),
    )
    dummy.append(asyncio.create_task(run))
    await until(lambda: pids, "the dummy to start")
    report = await verify(cluster, facts=seen(hostfile))
    found = next(gate for gate in report.gates if gate.name == "stale")
    assert found.verdict == "failed"
    assert [problem.where for problem in found.problems] == ["mac2"]
    assert f"process {pids[0]} is a rank of a job" in found.cause
    assert f"kill {pids[0]}" in found.fix
    os.kill(pids[0], 0)  # it lives: nobody else's process is ended
    assert report.gates[-1].verdict == "not tested"
    os.kill(pids[0], signal.SIGKILL)


async def test_a_search_for_the_ranks_and_the_shell_around_it_are_no_ranks(
    tmp_path: Path, dummy: list[asyncio.Task[Any]]
) -> None:
    home = LocalNode("mac1", home=tmp_path)
    started: list[str] = []
    reader = ["sh", "-c", "echo up; exec tail -f /dev/null jaccl_kernel.ranks"]
    dummy.append(asyncio.create_task(home.run(reader, deadline=60, check=False, on_line=started.append)))
    await until(lambda: started, "the reader to start")
    assert await live_gates.processes(home, only_own=True) == []


@pytest.mark.parametrize(
    "command",
    [
        "python -m mlx_lm.server --model m",
        "/opt/homebrew/bin/python3.12 -m mlx_lm server",
        "/x/Python.app/Contents/MacOS/Python /x/bin/mlx_lm.generate --prompt hi",
        "python3 -u /x/site-packages/mlx_lm/chat.py",
        "python -m mlx._distributed_utils.launch -n 2 x.py",
        "/x/bin/python /x/bin/mlx.launch -n 2 x.py",
    ],
)
def test_every_way_to_run_mlx_lm_or_mlx_launch_is_found(command: str) -> None:
    found = live_gates._process(f"  417    02:11 {command}")
    assert found is not None
    assert (found.pid, found.age, found.command) == (417, "02:11", command)


@pytest.mark.parametrize(
    "command",
    ["vim mlx_lm/server.py", "python -m pip install mlx_lm-0.32.whl", "git -C /x/mlx_lm pull", "python x.py"],
)
def test_what_only_names_mlx_lm_is_no_job(command: str) -> None:
    assert live_gates._process(f"  417    02:11 {command}") is None


async def test_a_plain_script_that_mlx_launch_started_is_found_by_its_environment(
    tmp_path: Path, dummy: list[asyncio.Task[Any]]
) -> None:
    home = LocalNode("mac1", home=tmp_path)
    pids: list[int] = []
    (tmp_path / "bench.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(120)")
    run = home.run(
        [sys.executable, "bench.py"],
        deadline=120,
        env={"MLX_RANK": "1"},
        on_line=lambda line: pids.append(int(line)),
    )
    dummy.append(asyncio.create_task(run))
    await until(lambda: pids, "the script to start")
    (found,) = await live_gates.processes(home, only_own=True)
    assert found.pid == pids[0]
    assert "MLX_RANK" in found.what
    os.kill(pids[0], signal.SIGKILL)


def test_what_macos_tells_of_environments_is_read(tmp_path: Path) -> None:
    env = "HOME=/Users/me MLX_RANK=1 MLX_HOSTFILE=/x"
    listed = f"  417 python x.py HOME=/Users/me MLX_RANKS=2\n 1234 python y.py {env} \udce9\n"
    (tmp_path / "listed").write_text(listed, errors="surrogateescape")
    (tmp_path / "ps").write_text(f'#!/bin/sh\ncase "$1" in -axwwE) exec cat {tmp_path}/listed;; esac\n')
    (tmp_path / "ps").chmod(0o755)
    script = live_gates._PS.replace("/proc/self/environ", "/nowhere")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["launched 1234", ""]


@pytest.mark.sshd
async def test_a_stale_rank_is_found_over_real_ssh(tmp_path: Path, dummy: list[asyncio.Task[Any]]) -> None:
    with start_macs(tmp_path / "macs", ("mac1",)) as macs:
        node = SshNode("mac1", options=macs.options)
        pids: list[int] = []
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(120)"
        command = [sys.executable, "-c", code, "-m", "jaccl_kernel.ranks"]
        dummy.append(
            asyncio.create_task(node.run(command, deadline=120, on_line=lambda line: pids.append(int(line))))
        )
        await until(lambda: pids, "the dummy to start")
        assert pids[0] in [process.pid for process in await live_gates.processes(node)]
        os.kill(pids[0], signal.SIGKILL)


def spec(backend: str) -> JobSpec:
    return JobSpec(configured(2), ("smoke",), backend)


def test_a_latency_of_tcps_pace_fails_over_rdma_and_is_only_told_over_tcp() -> None:
    assert live_gates.latency(spec("jaccl"), [2.5e-5, 3.1e-5]).proof == (
        "A 4 KB all_sum takes 31.0 us (median on the slowest rank) over jaccl."
    )
    slow = live_gates.latency(spec("jaccl"), [2.5e-5, 4e-3])
    assert slow.verdict == "failed"
    assert "takes 4.0 ms" in slow.cause
    assert live_gates.latency(spec("ring"), [4e-3, 4e-3]).verdict == "passed"


def test_a_rank_that_tells_no_latency_or_another_size_fails_its_gate() -> None:
    assert live_gates.latency(spec("jaccl"), [2.5e-5, None]).verdict == "failed"
    group = live_gates.judge_outcome(spec("jaccl"), [{"size": 2, "latency_s": 1e-5}, {"size": 1}])[0]
    assert group.verdict == "failed"
    assert "mac2: It joined a group of 1." in group.cause


def test_a_job_that_could_not_start_leaves_the_rest_untested() -> None:
    found = live_gates.after_failure(JobError("another job is running here", where="127.0.0.1", fix="Wait."))
    assert [one.verdict for one in found] == ["failed", "not tested", "not tested"]
    assert found[0].fix == "Wait."
