"""Runs a coroutine off the main thread, so that a notebook stays answerable while a step works.

`Work` owns one thread with an asyncio loop of its own for each run. It knows no widgets. A cell awaits it
(`await work.wait()`) or polls it; `stop()` cancels the coroutine, whose clean-up then runs to its end.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from jaccl_kernel.errors import Busy, JacclError, Stopped

# ipykernel hands an interrupt of an awaiting cell to the event loop without waking it (tornado's add_callback
# takes the loop for awake when a signal handler calls it): a loop that only waits would never see it.
WAKE_S = 0.25

Start = Callable[[], Coroutine[Any, Any, Any]]


class Work:
    """One piece of work at a time, on a thread of its own.

    All methods are safe from any thread.

    Args:
        name: what the work is called, in errors and as the thread's name.
        on_end: called on the work's thread when it has ended, with its result and None, or with None and the
            exception that ended it (`Stopped` after a stop).
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
        """Begin a run.

        Raises:
            Busy: the last one has not ended.
        """
        with self._lock:
            if self.running:
                raise Busy(
                    f"{self.name} is still running",
                    fix="Wait for it with `await panel.wait()`, or press Stop.",
                )
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_running_or_notify_cancel()  # whoever waits on it cannot cancel it by leaving
            self._future, self._stopping = future, False
        # a daemon: a kernel that is told to leave must not wait (the ranks leave with it, by their lifeline)
        threading.Thread(
            target=self._run, args=(coroutine_function, future), name=f"jaccl {self.name}", daemon=True
        ).start()

    def stop(self) -> bool:
        """Cancel the run, if there is one; False if there was nothing left to stop.

        Returns at once. A second stop changes nothing: it must not cut short the clean-up after the first.
        """
        with self._lock:
            if not self.running or self._stopping:
                return False
            self._stopping = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            return True

    async def wait(self) -> Any:
        """Wait for the run's end, on any event loop; leaving this wait leaves the run alone.

        Returns the coroutine's result, or None if there never was a run.

        Raises:
            Stopped: it was stopped.
            BaseException: whatever the coroutine raised.
        """
        if self._future is None:
            return None
        ended = asyncio.wrap_future(self._future)
        ended.add_done_callback(lambda future: future.exception())  # heard, even if nobody waits any more
        while not ended.done():
            await asyncio.wait([ended], timeout=WAKE_S)
        return ended.result()

    def _run(self, coroutine_function: Start, future: concurrent.futures.Future[Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = asyncio.run(self._supervise(coroutine_function))
        except asyncio.CancelledError:
            error = Stopped(f"{self.name} was stopped before it ended", fix="Run it again when you like.")
        except BaseException as raised:  # kept for whoever waits, also a SystemExit
            error = raised
        with self._lock:
            self._loop = self._task = None
        try:
            if self._on_end:
                self._on_end(result, error)
        except Exception as raised:  # a view's fault must not leave anyone waiting
            error = error or raised
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    async def _supervise(self, coroutine_function: Start) -> Any:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._stopping:  # stopped before the thread was up
                raise asyncio.CancelledError
        return await coroutine_function()


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Let IPython show our own errors as what, where and fix, without the traceback under them."""
    try:
        yield
    except JacclError as error:
        if hasattr(type(error), "_render_traceback_"):
            raise  # it has something better to show: where a rank's cell failed
        text = f"{type(error).__name__}: {error}".splitlines()
        error._render_traceback_ = lambda: text  # type: ignore[attr-defined]  # IPython asks for this name
        raise
