"""Clean-up that completes even when the task that awaits it is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def finish_cleanup(cleanup: Coroutine[Any, Any, None]) -> None:
    """Await `cleanup` until it completes; re-raise a cancellation of the caller only afterwards.

    `asyncio.shield` alone is not enough: when the caller is cancelled, `asyncio.run` cancels the shielded
    task too.
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
