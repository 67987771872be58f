"""Runs a coroutine off the main thread, so that a notebook stays responsive while a step works.

`Work` has one thread with its own asyncio loop for each run. A cell awaits it (`await work.wait()`) or polls
it; `stop()` cancels the coroutine, whose clean-up then completes. Contains no widgets.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from jaccl_kernel.core.errors import Busy, JacclError, Stopped

# ipykernel passes an interrupt of an awaiting cell to the event loop without waking it (tornado's
# add_callback assumes that the loop is awake when a signal handler calls it), so the loop must wake up by
# itself.
WAKE_S = 0.25

Start = Callable[[], Coroutine[Any, Any, Any]]


class Work:
    """Runs one coroutine at a time, on its own thread.

    All methods are safe from any thread.

    Args:
        name: the name of the work in errors, and of the thread.
        on_end: called on the work's thread at the end, with the result and None, or with None and the
            exception that ended the run (`Stopped` after a stop).
    """

    def __init__(self, name: str, on_end: Callable[[Any, BaseException | None], None] | None = None) -> None:
        self.name = name
        self._on_end = on_end
        self._lock = threading.Lock()
        self._future: concurrent.futures.Future[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether a run has started and not ended."""
        future = self._future
        return future is not None and not future.done()

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for and the run has not ended yet."""
        return self._stopping and self.running

    def start(self, coroutine_function: Start) -> None:
        """Start a run.

        Raises:
            Busy: the last run has not ended.
        """
        with self._lock:
            if self.running:
                raise Busy(
                    f"{self.name} is still running",
                    fix="Wait for it with `await panel.wait()`, or press Stop.",
                )
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_running_or_notify_cancel()  # so that a cancelled waiter does not cancel it
            self._future, self._stopping = future, False
        # a daemon: the kernel must be able to exit at once (the ranks exit with it, by their lifeline)
        threading.Thread(
            target=self._run, args=(coroutine_function, future), name=f"jaccl {self.name}", daemon=True
        ).start()

    def stop(self) -> bool:
        """Cancel the run; False if none is running or it is already stopping.

        Returns at once. A second stop does nothing, so that it does not interrupt the clean-up after the
        first.
        """
        with self._lock:
            if not self.running or self._stopping:
                return False
            self._stopping = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            return True

    async def wait(self) -> Any:
        """Wait for the end of the run, on any event loop; cancelling this wait does not stop the run.

        Returns the coroutine's result, or None if there was no run.

        Raises:
            Stopped: the run was stopped.
            BaseException: the coroutine's exception.
        """
        if self._future is None:
            return None
        ended = asyncio.wrap_future(self._future)
        # so that asyncio does not report the exception as never retrieved
        ended.add_done_callback(lambda future: future.exception())
        while not ended.done():
            await asyncio.wait([ended], timeout=WAKE_S)
        return ended.result()

    def _run(self, coroutine_function: Start, future: concurrent.futures.Future[Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = asyncio.run(self._supervise(coroutine_function))
        except asyncio.CancelledError:
            error = Stopped(f"{self.name} was stopped before it ended", fix="Run it again.")
        except BaseException as raised:  # for the waiter, also a SystemExit
            error = raised
        with self._lock:
            self._loop = self._task = None
        try:
            if self._on_end:
                self._on_end(result, error)
        except Exception as raised:  # an error of a view must not block the waiter
            error = error or raised
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    async def _supervise(self, coroutine_function: Start) -> Any:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._stopping:  # stopped before the thread started
                raise asyncio.CancelledError
        return await coroutine_function()


@contextlib.contextmanager
def without_traceback() -> Iterator[None]:
    """Make IPython show a JacclError as what, where and fix, without a traceback."""
    try:
        yield
    except JacclError as error:
        if hasattr(type(error), "_render_traceback_"):
            raise  # a CellError shows the rank's traceback
        text = f"{type(error).__name__}: {error}".splitlines()
        error._render_traceback_ = lambda: text  # type: ignore[attr-defined]  # IPython calls this method
        raise
