"""Work off the main thread."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from jaccl_kernel.core.errors import Busy, InputError, Stopped
from jaccl_kernel.notebook.work import Start, Work
from tests.conftest import until

DEADLINE_S = 60.0


async def ended(work: Work) -> object:
    return await asyncio.wait_for(work.wait(), DEADLINE_S)


async def nothing() -> None:
    return None


def forever(began: threading.Event, cleaned: list[str], may_end: Callable[[], bool] = lambda: True) -> Start:
    """Work without end, whose clean-up waits until it may end."""

    async def run() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            while not may_end():
                await asyncio.sleep(0.01)
            cleaned.append("whole")

    return run


async def test_work_runs_on_another_thread_and_gives_its_result() -> None:
    async def where() -> str:
        return threading.current_thread().name

    heard: list[object] = []
    work = Work("a test", on_end=lambda result, error: heard.append((result, error)))
    work.start(where)
    assert await ended(work) == "jaccl a test"
    assert heard == [("jaccl a test", None)]
    assert not work.running


async def test_an_error_is_kept_for_whoever_waits() -> None:
    async def fail() -> None:
        raise InputError("no", fix="yes")

    heard: list[BaseException | None] = []
    work = Work("a test", on_end=lambda _, error: heard.append(error))
    work.start(fail)
    with pytest.raises(InputError, match="no"):
        await ended(work)
    assert [type(error) for error in heard] == [InputError]


async def test_stop_cancels_and_a_second_stop_does_not_cut_the_clean_up_short() -> None:
    began, may_end, cleaned = threading.Event(), threading.Event(), list[str]()
    work = Work("a test")
    work.start(forever(began, cleaned, may_end.is_set))
    await until(began.is_set, "the work to begin")
    assert work.stop()
    assert work.stopping
    assert not work.stop()
    assert not cleaned
    may_end.set()
    with pytest.raises(Stopped):
        await ended(work)
    assert cleaned == ["whole"]
    assert not work.stop()


async def test_a_stop_right_after_the_start_is_not_lost() -> None:
    for _ in range(20):
        work = Work("a test")
        work.start(forever(threading.Event(), []))
        assert work.stop()
        with pytest.raises(Stopped):
            await ended(work)


async def test_one_work_at_a_time() -> None:
    began = threading.Event()
    work = Work("a test")
    work.start(forever(began, []))
    with pytest.raises(Busy, match="a test is still running"):
        work.start(forever(began, []))
    work.stop()
    with pytest.raises(Stopped):
        await ended(work)
    work.start(nothing)
    assert await ended(work) is None


async def test_whoever_leaves_the_wait_leaves_the_work_alone() -> None:
    began = threading.Event()
    work = Work("a test")
    work.start(forever(began, []))
    waiting = asyncio.create_task(work.wait())
    await until(began.is_set, "the work to begin")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.running
    work.stop()
    with pytest.raises(Stopped):
        await ended(work)


async def test_a_view_that_fails_at_the_end_is_told_and_keeps_nobody_waiting() -> None:
    def broken(_: object, __: object) -> None:
        raise ValueError("a view")

    work = Work("a test", on_end=broken)
    work.start(nothing)
    with pytest.raises(ValueError, match="a view"):
        await ended(work)


async def test_there_isnothing_to_wait_for_before_the_first_start() -> None:
    assert await ended(Work("a test")) is None
