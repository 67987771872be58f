"""Clean-up that no cancellation cuts short."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_its_end(cleanup: Coroutine[Any, Any, None]) -> None:
    """Await it to its end, however often its waiter is cancelled meanwhile; that counts afterwards.

    `asyncio.shield` alone is not enough: the loop that a cancelled task leaves behind cancels the rest.
    """
    task = asyncio.ensure_future(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled:
        raise cancelled
