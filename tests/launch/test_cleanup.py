"""Clean-up under cancellation."""

import asyncio

import pytest

from jaccl_kernel.launch.cleanup import finish_cleanup


async def test_cleanup_completes_after_repeated_cancellation() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    done = []

    async def cleanup() -> None:
        begun.set()
        await may_end.wait()
        done.append("all")

    task = asyncio.create_task(finish_cleanup(cleanup()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)  # the cancellation arrives
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["all"]


async def test_the_error_of_the_cleanup_is_raised() -> None:
    async def cleanup() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await finish_cleanup(cleanup())
