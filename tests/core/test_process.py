"""The lifeline by itself, in each shell that may be /bin/sh on a Mac or on Linux."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaccl_kernel.core import process as child
from tests.needs import find
from tests.sshd import is_alive, wait_for

pytestmark = pytest.mark.usefixtures("nothing_left")

# macOS's /bin/sh is bash 3.2 in POSIX mode, or, if so chosen, dash or zsh; Linux has dash, bash or busybox
SHELLS = {
    "dash": ["dash"],
    "bash": ["bash", "--posix"],
    "zsh": ["zsh", "--emulate", "sh"],
    "ksh": ["mksh"],
    "busybox": ["busybox", "sh"],
}

# says its own number and that of a child of its own, then stays
STAY = "sleep 1000 & echo $$ $! >pids.new; mv pids.new pids; wait"
STUBBORN = f"trap '' TERM; {STAY}; wait"


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(words[0])) for name, words in SHELLS.items()]
)
def shell(request: pytest.FixtureRequest) -> list[str]:
    program, *options = SHELLS[request.param]
    return [str(find(program)), *options]


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """The file in which STAY leaves its process ids; they must have ended when the test has."""
    path = tmp_path / "pids"
    yield path
    if path.exists():
        all_gone(path)


def all_gone(pids: Path) -> None:
    numbers = [int(word) for word in pids.read_text().split()]
    assert numbers
    wait_for(lambda: not any(map(is_alive, numbers)), f"the processes {numbers} still run")


def guarded(shell: list[str], *argv: str, size: int = 0) -> list[str]:
    return [*shell, *child.guarded(argv, size)[1:]]


async def test_a_command_receives_its_arguments_and_returns_its_output_and_status(shell: list[str]) -> None:
    script = 'printf "%s|" "$@"; echo oh >&2; exit 7'
    ended = await child.run(guarded(shell, "/bin/sh", "-c", script, "sh", "a b", "", "-n", "é"), deadline=60)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("a b||-n|é|", "oh\n", 7)
    assert ended.began
    assert not ended.noise


async def test_a_commands_own_255_is_marked_and_the_mark_not_shown(shell: list[str]) -> None:
    lines: list[str] = []
    argv = guarded(shell, "/bin/sh", "-c", "printf oh >&2; exit 255")
    ended = await child.run(argv, deadline=60, on_line=lines.append)
    assert (ended.returncode, ended.own_255, ended.stderr, lines) == (255, True, "oh", ["oh"])


async def test_input_is_complete_and_the_command_sees_its_end(shell: list[str]) -> None:
    data = bytes(range(256)) * 2000
    ended = await child.run(guarded(shell, "cksum", size=len(data)), deadline=60, input=data)
    expected = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout.decode()
    assert ended.stdout == expected


def test_half_an_input_is_never_run(shell: list[str]) -> None:
    argv = guarded(shell, "/bin/sh", size=1000)
    done = subprocess.run(argv, input=b"echo harm", capture_output=True, check=False, start_new_session=True)
    assert b"harm" not in done.stdout
    assert done.returncode == 125


def test_a_command_ends_with_its_lifeline(shell: list[str], pids: Path) -> None:
    process = subprocess.Popen(
        guarded(shell, "/bin/sh", "-c", STAY), stdin=subprocess.PIPE, cwd=pids.parent, start_new_session=True
    )
    wait_for(pids.exists, "the command does not start")
    assert process.poll() is None
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    all_gone(pids)


def test_a_command_that_ignores_sigterm_ends_too(shell: list[str], pids: Path) -> None:
    process = subprocess.Popen(
        guarded(shell, "/bin/sh", "-c", STUBBORN),
        stdin=subprocess.PIPE,
        cwd=pids.parent,
        start_new_session=True,
    )
    wait_for(pids.exists, "the command does not start")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    all_gone(pids)


async def test_a_commands_child_processes_end_with_it(shell: list[str], pids: Path) -> None:
    script = "sleep 1000 & echo $$ $! >pids"
    ended = await child.run(guarded(shell, "/bin/sh", "-c", script), deadline=60, cwd=pids.parent)
    assert ended.returncode == 0
    all_gone(pids)


async def test_a_second_cancel_does_not_wait_for_the_first(pids: Path) -> None:
    argv = child.guarded(["/bin/sh", "-c", STUBBORN])
    task = asyncio.create_task(child.run(argv, deadline=60, cwd=pids.parent))
    await asyncio.to_thread(wait_for, pids.exists, "the command does not start")
    task.cancel()
    await asyncio.sleep(0)  # into the first end
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    all_gone(pids)


async def test_output_that_another_process_holds_open_is_not_waited_for(pids: Path) -> None:
    # a daemon in a session of its own keeps our stdout; it is not ours to end
    daemon = "import os, time; os.setsid(); open('pids', 'w').write(str(os.getpid())); time.sleep(600)"
    script = '"$0" -c "$1" & while [ ! -s pids ]; do sleep 0.01; done; echo out'
    argv = child.guarded(["/bin/sh", "-c", script, sys.executable, daemon])
    try:
        ended = await child.run(argv, deadline=60, cwd=pids.parent)
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)
    assert (ended.stdout, ended.returncode, ended.timed_out) == ("out\n", 0, False)
