"""Fixtures of all rooms: a cache of the test's own, and a check that no process outlives its test."""

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.needs import path_without, pytest_runtest_setup, pytest_terminal_summary  # noqa: F401 - hooks
from tests.tiny import make_tiny_model

pytest_plugins = ("tests.split",)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background by a shell that ignores it: tests press ■ on themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)

# a busy machine is no reason to fail
settings.register_profile(
    "unhurried", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

MARK = "JACCL_TEST_MARK"
GONE_DEADLINE_S = (
    30.0  # a bound for a hang: benchmarks hold the design's 5 s, on a machine that does nothing else
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, locks, logs and records go to a folder of the test's own."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("JACCL_CACHE", str(folder / "cache"))
    monkeypatch.setenv("JACCL_RESULTS", str(folder / "results"))


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a process that the test started, at whatever remove, is there after it; end it then."""
    value = secrets.token_hex(8)
    monkeypatch.setenv(MARK, value)  # inherited by all that the test starts, and by what those start
    yield
    end = time.monotonic() + GONE_DEADLINE_S
    while (left := marked(value)) and time.monotonic() < end:
        time.sleep(0.05)  # until they are gone, at the most until the deadline
    told = [f"{process.pid}: {describe(process)}" for process in left]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not told, "left running:\n" + "\n".join(told)


def marked(value: str) -> list[psutil.Process]:
    """The living processes, but for this one, that carry the test's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and process.environ().get(MARK) == value
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:300]
    return "gone"


async def until(condition: object, what: str, deadline: float = 60.0) -> None:
    """Wait until `condition()` is true, at most `deadline` seconds."""
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def path_without_rsync(tmp_path_factory: pytest.TempPathFactory) -> str:
    return path_without("rsync", tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama that splits over 1, 2 and 4 ranks."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny llama")
