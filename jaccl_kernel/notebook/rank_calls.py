"""Calls on resident ranks: one at a time, on all ranks; interrupts; the first rank's error as one of ours.

ipyparallel carries calls and results. The engines' own watch fails a call when a rank dies.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipyparallel

from jaccl_kernel.core import errors
from jaccl_kernel.core.errors import Busy, DeadlineExceeded, InputError, JacclError, JobError
from jaccl_kernel.core.messages import Call, Interrupt
from jaccl_kernel.notebook.answer import CellError
from jaccl_kernel.notebook.engines import TICK_S, Engines

OUTPUT_S = 10.0  # after the end of a cell, for its last outputs: they arrive apart from its result
ASK_S = 3.0  # for a completion: a person is typing
AGAIN_S = 2.0  # a second interrupt within this time closes the ranks
ERRORS = {
    name: getattr(errors, name)
    for name in ("InputError", "JobError", "ModelError", "UnknownModel", "Stopped", "Busy")
}


class RankCalls:
    """Calls on the ranks of these engines.

    Args:
        engines: the ranks' engines.

    Attributes:
        number: the number of the present or last call.
        serving: whether the present call is a server.
    """

    def __init__(self, engines: Engines) -> None:
        self.number = 0
        self.serving = False
        self._engines = engines
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def run(self, call: Call) -> list[Any]:
        """Run a call on all ranks, and return each rank's result.

        Raises:
            Busy: another call is running.
            RankDied: a rank has died.
            JacclError: the first error of a rank.
        """
        with self.exclusive():
            self._engines.measurable = True
            results: list[Any] = self.wait(self.submit(call))
            return results

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the ranks for one call."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Reserve the ranks for one call, until `end`.

        Raises:
            Busy: another call is running.
        """
        self._engines.refuse_if_down()
        if not self._lock.acquire(blocking=False):
            doing = "are serving" if self.serving else "are busy"
            raise Busy(f"the ranks {doing}", fix="Wait for the present call, or stop it.")
        self.number = next(self._numbers)
        self._engines.busy = True

    def end(self) -> None:
        """Release the ranks."""
        self._engines.busy = self._engines.measurable = False
        self._lock.release()

    def submit(self, call: Call) -> Any:
        """Send a call to all ranks; returns its AsyncResult."""
        return self._engines.client[:].apply_async(ipyparallel.Reference("_jaccl.call"), self.number, call)

    def interrupt(self) -> None:
        """Ask the ranks to stop the present call, after the same token on every rank."""
        self._engines.send(Interrupt(self.number))

    def execute(self, code: str, *, rank: int | None = None, watch: Callable[[Any], None]) -> None:
        """Run a cell on all ranks or on one; `watch` is called with its AsyncResult repeatedly.

        Raises:
            CellError: the cell raised; the error of the rank that failed first.
            InputError: there is no such rank.
        """
        engines = self._engines
        size = len(engines.names)
        if rank is not None and not 0 <= rank < size:
            raise InputError(f"there is no rank {rank}", fix=f"Use 0 to {size - 1}.")
        with self.exclusive():
            view = engines.client[:] if rank is None else engines.client[[rank]]
            view.apply_async(ipyparallel.Reference("_jaccl.begin"), self.number)
            pending = view.execute(code, silent=False)
            try:
                self._until_ready(pending, lambda: watch(pending))
                pending.get()
            except ipyparallel.error.CompositeError as error:
                at = _first_failure(pending)
                raise self._cell_error(error.elist[min(at, len(error.elist) - 1)]) from None
            except ipyparallel.error.RemoteError as error:
                failure = (error.ename, error.evalue, error.traceback, error.engine_info)
                raise self._cell_error(failure) from None
            finally:
                if engines.alive:
                    pending.wait_for_output(OUTPUT_S)
                watch(pending)

    def ask_kernel(self, what: str, code: str, *more: int) -> Any:
        """The reply of rank 0's IPython kernel to `do_complete` or `do_inspect`.

        Raises:
            Busy: another call is running.
            DeadlineExceeded: rank 0 does not answer.
        """
        with self.exclusive():
            ask = ipyparallel.Reference("_jaccl.ask_kernel")
            pending = self._engines.client[0].apply_async(ask, what, code, *more)
            if not pending.wait(ASK_S):
                raise DeadlineExceeded(f"rank 0 did not answer within {ASK_S:.0f} s")
            return self.result(pending)

    def wait(self, pending: Any, each: Callable[[], None] = lambda: None) -> Any:
        """Wait for an AsyncResult, calling `each` repeatedly, and return its result.

        ■ asks the ranks to stop the call (prompts, benchmarks, `stopping()` in a cell); a second interrupt
        within 2 s closes the ranks.

        Raises:
            RankDied: a rank has died.
            KeyboardInterrupt: the ranks were closed by a second interrupt.
        """
        self._until_ready(pending, each)
        return self.result(pending)

    def result(self, pending: Any) -> Any:
        """The result of an AsyncResult that is ready, or the first rank's error as one of ours."""
        try:
            return pending.get()
        except ipyparallel.error.CompositeError as error:
            raise self._translate(error.elist[_first_failure(pending)]) from None
        except ipyparallel.error.RemoteError as error:
            raise self._translate((error.ename, error.evalue)) from None

    def _until_ready(self, pending: Any, each: Callable[[], None]) -> None:
        interrupted = 0.0
        while True:
            try:
                if pending.ready():
                    break
                self._engines.refuse_if_down()
                each()
                pending.wait(TICK_S)
            except KeyboardInterrupt:
                if time.monotonic() - interrupted < AGAIN_S:
                    sys.stderr.write("Closing the ranks …\n")
                    self._engines.close()
                    raise
                interrupted = time.monotonic()
                self.interrupt()
                sys.stderr.write("Asked the ranks to stop. A second interrupt within 2 s closes them.\n")
        each()

    def _translate(self, failure: Sequence[Any]) -> Exception:
        """A rank's (name, text, traceback, engine) as one of our errors."""
        if self._engines.error:
            return self._engines.error
        name, text = str(failure[0]), str(failure[1])
        where = ""
        if len(failure) > 3 and failure[3]:
            rank = failure[3]["engine_id"]
            where = f"rank {rank} ({self._engines.names[rank]})"
        what, _, fix = text.partition("\n  Fix: ")
        if name in ERRORS:
            where = "" if name in ("Stopped", "InputError") else where
            error: Exception = ERRORS[name](what, where=where, fix=fix)
            return error
        return JobError(f"{name}: {what}", where=where)

    def _cell_error(self, failure: Sequence[Any]) -> JacclError:
        if self._engines.error:
            return self._engines.error
        rank = failure[3]["engine_id"] if failure[3] else 0
        name = self._engines.names[rank]
        return CellError(rank, name, str(failure[0]), str(failure[1]), str(failure[2] or ""))


def _first_failure(pending: Any) -> int:
    """Which of the failed results completed first; the others may be its consequence."""
    failed = [one for one in pending.metadata if one["status"] == "error"]
    completed = [one for one in failed if one["completed"] is not None]
    return failed.index(min(completed, key=lambda one: one["completed"])) if completed else 0
