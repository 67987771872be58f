"""Which tests are fast: those that start no process, drive no browser and load no model.

A test is marked by what it uses: `processes` if that is the fixture `nothing_left`, `model` if a model's;
`browser`, `sshd` and `demo` stand where they hold. All others are `fast`: `make test-fast` runs them. One of
them that starts a process fails, in every run, so that the split stays true.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import core

BY_FIXTURE = {"nothing_left": "processes", "tiny_model": "model", "demo_model": "model"}
SLOW = {*BY_FIXTURE.values(), "browser", "sshd", "demo"}
STARTS = {
    *("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn"),
}

_watched: list[str] | None = None  # the processes that the running fast test tried to start


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the seed of the order be hypothesis's too: one number repeats a whole run."""
    if core.global_force_seed is None:
        core.global_force_seed = config.getoption("randomly_seed", None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it uses, before `-m` selects; files of fast tests come last, browsers first.

    Two test processes share the files in this order: short ones at the end let both end at the same time.
    """
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in BY_FIXTURE:
                item.add_marker(BY_FIXTURE[fixture])
        if not SLOW & {mark.name for mark in item.iter_markers()}:
            item.add_marker("fast")
    turn: dict[object, int] = {}
    for item in items:
        kind = 0 if item.get_closest_marker("browser") else 2 if item.get_closest_marker("fast") else 1
        turn[item.path] = min(kind, turn.get(item.path, kind))
    items.sort(key=lambda item: turn[item.path])


def _audit(event: str, details: tuple[Any, ...]) -> None:
    if _watched is not None and event in STARTS:
        _watched.append(f"{event} {details[:2]}")
        raise RuntimeError(f"a fast test starts a process: {_watched[-1]}")


sys.addaudithook(_audit)


def _watch(item: pytest.Item) -> Iterator[None]:
    """Fail a fast test that starts a process, even if it catches our refusal."""
    global _watched  # one test runs at a time
    _watched = [] if item.get_closest_marker("fast") else None
    try:
        result = yield
    finally:
        started, _watched = _watched, None
    if started:
        pytest.fail(
            f"a test that starts a process uses the fixture `nothing_left`: {'; '.join(started)}",
            pytrace=False,
        )
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """A fast test's fixtures start no process."""
    return (yield from _watch(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Nor does the test."""
    return (yield from _watch(item))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how this run can be had again; with -q nothing else does."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"Order and examples: --randomly-seed={seed} repeats them.")
