"""Clean-up and cancellation."""

import asyncio

import pytest

from jaccl_kernel.jobs.ending import to_its_end


async def test_it_is_awaited_to_its_end_through_any_number_of_cancellations() -> None:
    done = []

    async def cleanup() -> None:
        await asyncio.sleep(0.2)
        done.append("all")

    task = asyncio.create_task(to_its_end(cleanup()))
    for _ in range(3):
        await asyncio.sleep(0.02)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["all"]


async def test_its_own_error_is_raised() -> None:
    async def cleanup() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await to_its_end(cleanup())
