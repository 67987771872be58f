"""A module as a child that neither hangs nor outlives us: pytest tests/models/test_child.py."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.models.child import OUTPUT_LIMIT, run_module

pytestmark = pytest.mark.usefixtures("nothing_left")

# A module that starts a process of its own, tells both pids, and goes on for ever.
STUBBORN = """
import os, pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids.part").write_text(f"{os.getpid()} {other.pid}")
os.rename("pids.part", "pids")
time.sleep(600)
"""


def write_module(folder: Path, text: str) -> str:
    (folder / "a_module.py").write_text(text)
    return "a_module"  # found since a child's working folder is on its path


async def pids(folder: Path) -> list[int]:
    ends = time.monotonic() + 20
    while not (folder / "pids").exists():
        assert time.monotonic() < ends, "the module did not start"
        await asyncio.sleep(0.02)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


async def gone(numbers: list[int]) -> None:
    ends = time.monotonic() + 5
    while any(psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE for n in numbers):
        assert time.monotonic() < ends, f"still there: {numbers}"
        await asyncio.sleep(0.02)


async def test_it_runs_as_main_with_its_arguments_and_its_output_is_kept(tmp_path: Path) -> None:
    module = write_module(
        tmp_path, "import sys; print(__name__, sys.argv[1:]); print('grüße', file=sys.stderr); sys.exit(3)"
    )
    done = await run_module(module, "a b", "'", "", folder=tmp_path, deadline=20)
    assert done.returncode == 3
    assert "__main__ ['a b', \"'\", '']" in done.output
    assert done.last_line == "grüße"


async def test_only_the_end_of_much_output_is_kept(tmp_path: Path) -> None:
    module = write_module(tmp_path, "for i in range(100_000): print('line', i)")
    done = await run_module(module, folder=tmp_path, deadline=20)
    assert len(done.output) <= OUTPUT_LIMIT
    assert done.last_line == "line 99999"


async def test_variables_reach_it(tmp_path: Path) -> None:
    module = write_module(tmp_path, "import os; print(os.environ['TMPDIR'], os.getcwd())")
    done = await run_module(module, folder=tmp_path, deadline=20, env={"TMPDIR": "/else where"})
    assert done.last_line == f"/else where {tmp_path}"


async def test_a_deadline_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    module = write_module(tmp_path, STUBBORN)
    waiting = asyncio.create_task(run_module(module, folder=tmp_path, deadline=3))
    started = await pids(tmp_path)
    with pytest.raises(TimeoutError):
        await waiting
    await gone(started)


async def test_a_cancelled_wait_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    module = write_module(tmp_path, STUBBORN)
    waiting = asyncio.create_task(run_module(module, folder=tmp_path, deadline=60))
    started = await pids(tmp_path)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await gone(started)


async def test_what_it_leaves_running_ends_with_it(tmp_path: Path) -> None:
    module = write_module(tmp_path, STUBBORN.replace("time.sleep(600)\n", "") + "os.close(1); os.close(2)")
    started = asyncio.create_task(pids(tmp_path))
    done = await run_module(module, folder=tmp_path, deadline=20)
    assert done.returncode == 0
    await gone(await started)


async def test_it_dies_when_its_starter_is_killed(tmp_path: Path) -> None:
    module = write_module(tmp_path, STUBBORN)
    code = (
        "import asyncio, pathlib, sys; from jaccl_kernel.models.child import run_module;"
        "asyncio.run(run_module(sys.argv[1], folder=pathlib.Path(sys.argv[2]), deadline=600))"
    )
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", code, module, str(tmp_path))
    started = await pids(tmp_path)
    os.kill(starter.pid, signal.SIGKILL)
    await starter.wait()
    await gone(started)
