"""What a command tells at a terminal."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaccl_kernel.cli import main
from jaccl_kernel.cli.terminal import Reporter
from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.launch import servers


def told(*stages: tuple[int, str, str, float | None]) -> list[str]:
    """The lines for these stages: rank, name, text, fraction."""
    stream = io.StringIO()
    reporter = Reporter(stream)
    for rank, name, text, fraction in stages:
        reporter.event(Event(rank, Stage(name, text, fraction)))
    return stream.getvalue().splitlines()


def test_a_long_load_is_told_by_tenths_and_how_fast_it_was() -> None:
    loading = [(0, "load", f"{at / 10:.2f} of 10.00 GB", at / 100) for at in range(101)]
    lines = told((0, "load", "loading big", None), *loading, (0, "load", "loaded 10.00 GB (2.50 GB/s)", 1.0))
    assert lines[:3] == [
        "[rank 0] load: loading big",
        "[rank 0] load: 0.00 of 10.00 GB (0%)",
        "[rank 0] load: 1.00 of 10.00 GB (10%)",
    ]
    assert lines[-1] == "[rank 0] load: loaded 10.00 GB (2.50 GB/s) (100%)"
    assert len(lines) == 13


def test_each_rank_is_told_once_a_stage() -> None:
    lines = told(
        (0, "join", "", None), (1, "join", "", None), (0, "join", "again", None), (-1, "prepare", "a", None),
        (-1, "prepare", "b", None), (1, "serve", "following rank 0", None),
    )  # fmt: skip
    assert lines == [
        "[rank 0] join: ", "[rank 1] join: ", "[jaccl] prepare: a", "[jaccl] prepare: b",
        "[rank 1] serve: following rank 0",
    ]  # fmt: skip


WAITING = """
import asyncio, sys, pathlib
from jaccl_kernel.cli import main, terminal
async def work():
    pathlib.Path(sys.argv[1]).touch()
    try:
        await asyncio.Event().wait()
    finally:
        pathlib.Path(sys.argv[2]).touch()
main._open_streams()
terminal.Reporter(sys.stderr).run(work())
"""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-", "2>/dev/full", ""])
def test_a_signal_is_obeyed_whatever_the_output(tmp_path: Path, signum: signal.Signals, closed: str) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    shell = f'exec "$0" -c "$1" "$2" "$3" {closed}'
    if "/dev/full" in closed and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = ["/bin/sh", "-c", shell, sys.executable, WAITING, str(ready), str(ended)]

    def obey() -> None:
        signal.signal(signum, signal.SIG_DFL)  # nohup, and a shell's &, start programs that ignore it

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=obey) as process:
        try:
            end = time.monotonic() + 60
            while not ready.exists():
                assert time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(signum)
            assert process.wait(60) == 128 + signum
        finally:
            process.kill()
    assert ended.exists()  # the step has cleaned up


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "Free disk space"), (errno.EROFS, "JACCL_CACHE"), (errno.EMFILE, "ulimit")],
)
def test_a_limit_of_the_system_is_a_sentence(
    number: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/the/file")

    monkeypatch.setattr(servers, "folders", full)
    assert main.run(["logs"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: /the/file: {os.strerror(number)}")
    assert fix in told
