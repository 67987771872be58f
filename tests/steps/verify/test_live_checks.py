"""Other jobs on the Macs, imports, and what a small job proves."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.events import SmokeResult
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.verify import live_checks
from jaccl_kernel.steps.verify.verify import verify
from jaccl_kernel.topology.wiring import build_wiring
from tests.conftest import until
from tests.sshd import start_macs
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_package_that_does_not_import_fails_the_environment_check(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    problems = await live_checks.import_problems(
        [LocalNode("mac1"), LocalNode("mac2")], build_wiring(seen(configured(2))), str(bare)
    )
    assert {problem.where for problem in problems} == {"mac1", "mac2"}
    assert "No module named 'jaccl_kernel'" in problems[0].message


@pytest.fixture
def dummy() -> Iterator[list[asyncio.Task[Any]]]:
    tasks: list[asyncio.Task[Any]] = []
    yield tasks
    for task in tasks:
        task.cancel()


@pytest.mark.usefixtures("with_and_without_ps")
async def test_a_stale_rank_is_listed_with_its_mac_and_pid_and_not_ended(
    dummy: list[asyncio.Task[Any]],
) -> None:
    hostfile = configured(2)
    cluster = Cluster.of(hostfile)
    pids: list[int] = []
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    run = cluster.nodes[1].run(
        [sys.executable, "-c", code, "-m", "jaccl_kernel.ranks", "bench"],
        deadline=600,
        on_line=lambda line: pids.append(int(line)),
    )
    dummy.append(asyncio.create_task(run))
    await until(lambda: pids, "the dummy to start")
    report = await verify(cluster, facts=seen(hostfile))
    found = next(check for check in report.checks if check.name == "stale")
    assert found.verdict == "failed"
    assert [problem.where for problem in found.problems] == ["mac2"]
    assert f"Process {pids[0]} is a rank of a job" in found.cause
    assert f"kill {pids[0]}" in found.fix
    os.kill(pids[0], 0)  # it lives: nobody else's process is ended
    assert report.checks[-1].verdict == "not tested"
    os.kill(pids[0], signal.SIGKILL)


@pytest.mark.usefixtures("with_and_without_ps")
async def test_a_search_for_the_ranks_and_the_shell_around_it_are_no_ranks(
    tmp_path: Path, dummy: list[asyncio.Task[Any]]
) -> None:
    home = LocalNode("mac1", home=tmp_path)
    started: list[str] = []
    reader = ["sh", "-c", "echo up; exec tail -f /dev/null jaccl_kernel.ranks"]
    dummy.append(asyncio.create_task(home.run(reader, deadline=600, check=False, on_line=started.append)))
    await until(lambda: started, "the reader to start")
    assert await live_checks.processes(home, only_own=True) == []


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
    found = live_checks._process(f"  417    02:11 {command}")
    assert found is not None
    assert (found.pid, found.age, found.command) == (417, "02:11", command)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("/Users/a/exo/.venv/bin/python3 /Users/a/exo/.venv/bin/exo -v", "exo"),
        ("python3.13 -m exo.main --force-master", "exo"),
        ("uv run exo", None),  # its child is found
        ("/Applications/EXO.app/Contents/MacOS/EXO", "exo"),
        ("/bin/bash /Library/Application Support/EXO/exo-network-setup.sh", None),
        ("/usr/local/libexec/exo-network-daemon", "exo"),
        ("python -m omlx serve --model-dir m", "oMLX"),
        ("/Applications/oMLX.app/Contents/MacOS/oMLX", "oMLX"),
        ("python3 -m mlx_vlm.server --port 8080", "a program of mlx_vlm"),
        ("/x/bin/python /x/bin/mlx_vlm.generate --model m", "a program of mlx_vlm"),
        ("python /x/mlx-jaccl-cluster/server/openai_cluster_server.py", "an MLX cluster server"),
        ("/x/bin/python /x/bin/vllm-mlx serve m", "another MLX server"),
        ("/x/python -m jaccl_kernel.launch.launcher --backend ring", "a job's launcher"),
        ("/Applications/LM Studio.app/Contents/MacOS/LM Studio", "LM Studio"),
        ("/x/.lmstudio/bin/node llmworker.js", "LM Studio"),
        ("python /x/exorcise/train.py", None),
        ("git -C /x/exo pull", None),
        ("vim exo", None),
    ],
)
def test_other_programs_that_use_the_macs_are_called_by_their_names(command: str, what: str | None) -> None:
    found = live_checks._process(f"  417    02:11 {command}")
    assert (found.what if found else None) == what
    assert found is None or found.blocks is (what != "LM Studio")


@pytest.mark.parametrize(
    "command",
    ["vim mlx_lm/server.py", "python -m pip install mlx_lm-0.32.whl", "git -C /x/mlx_lm pull", "python x.py"],
)
def test_a_command_line_that_only_mentions_mlx_lm_is_not_a_job(command: str) -> None:
    assert live_checks._process(f"  417    02:11 {command}") is None


@pytest.mark.usefixtures("with_and_without_ps")
async def test_a_plain_script_that_mlx_launch_started_is_found_by_its_environment(
    tmp_path: Path, dummy: list[asyncio.Task[Any]]
) -> None:
    home = LocalNode("mac1", home=tmp_path)
    pids: list[int] = []
    (tmp_path / "bench.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    run = home.run(
        [sys.executable, "bench.py"],
        deadline=600,
        env={"MLX_RANK": "1"},
        on_line=lambda line: pids.append(int(line)),
    )
    dummy.append(asyncio.create_task(run))
    await until(lambda: pids, "the script to start")
    (found,) = await live_checks.processes(home, only_own=True)
    assert found.pid == pids[0]
    assert "MLX_RANK" in found.what
    assert found.command == f"{sys.executable} bench.py"
    assert re.fullmatch(r"\d+s|[\d:-]+", found.age)
    os.kill(pids[0], signal.SIGKILL)


def test_the_environments_of_macos_processes_are_parsed(tmp_path: Path) -> None:
    env = "HOME=/Users/me MLX_RANK=1 MLX_HOSTFILE=/x"
    listed = f"  417 python x.py HOME=/Users/me MLX_RANKS=2\n 1234 python y.py {env} \udce9\n"
    (tmp_path / "listed").write_text(listed, errors="surrogateescape")
    (tmp_path / "ps").write_text(f'#!/bin/sh\ncase "$1" in -axwwE) exec cat {tmp_path}/listed;; esac\n')
    (tmp_path / "ps").chmod(0o755)
    script = live_checks._PS.replace("/proc/self/environ", "/nowhere")
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
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        command = [sys.executable, "-c", code, "-m", "jaccl_kernel.ranks"]
        dummy.append(
            asyncio.create_task(node.run(command, deadline=600, on_line=lambda line: pids.append(int(line))))
        )
        await until(lambda: pids, "the dummy to start")
        assert pids[0] in [process.pid for process in await live_checks.processes(node)]
        os.kill(pids[0], signal.SIGKILL)


def spec(backend: str) -> JobSpec:
    return JobSpec(configured(2), ("smoke",), backend)


def test_a_latency_typical_of_tcp_fails_over_rdma_and_is_ok_over_tcp() -> None:
    assert live_checks.latency(spec("jaccl"), [2.5e-5, 3.1e-5]).proof == (
        "A 4 KB all_sum takes 31.0 us (median on the slowest rank) over jaccl."
    )
    slow = live_checks.latency(spec("jaccl"), [2.5e-5, 4e-3])
    assert slow.verdict == "failed"
    assert "takes 4.0 ms" in slow.cause
    assert live_checks.latency(spec("ring"), [4e-3, 4e-3]).verdict == "ok"


def test_a_rank_without_latency_or_with_another_size_fails_its_check() -> None:
    assert live_checks.latency(spec("jaccl"), [2.5e-5, None]).verdict == "failed"
    group = live_checks.judge_outcome(spec("jaccl"), [SmokeResult(1e-5, 2), SmokeResult(None, 1)])[0]
    assert group.verdict == "failed"
    assert "mac2: It joined a group of 1." in group.cause


def test_a_job_that_could_not_start_leaves_the_rest_untested() -> None:
    found = live_checks.after_failure(
        JobError("another job is running on this node", where="127.0.0.1", fix="Wait.")
    )
    assert [one.verdict for one in found] == ["failed", "not tested", "not tested"]
    assert found[0].fix == "Wait."
