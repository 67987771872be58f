"""What every command of `jaccl` does at a terminal: tell progress, run a step, print JSON, fail."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TextIO, TypeVar

from jaccl_kernel.errors import JacclError, RankDied
from jaccl_kernel.wire import Event

T = TypeVar("T")


class Teller:
    """Tells progress on a stream: one line a stage of a rank, and one each tenth of what has a measure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[int, str] = {}

    def note(self, text: str) -> None:
        """A line for the person."""
        with contextlib.suppress(BrokenPipeError):
            print(text, file=self._stream, flush=True)

    def stage(self, text: str, fraction: float | None = None) -> None:
        """A stage of the host's own work."""
        self.event(Event(-1, "stage", {"name": "prepare", "text": text, "fraction": fraction}))

    def event(self, event: Event) -> None:
        """Whatever a step tells."""
        who = f"rank {event.rank}" if event.rank >= 0 else "jaccl"
        if event.kind == "stage":
            self._stage(who, event)
        elif event.kind == "line":
            self.note(f"[{who}] {event.data['text']}")
        elif event.kind == "job":
            self.note(
                f"[{who}] logs: {event.data['folder']}\n[{who}] the same by hand: {event.data['command']}"
            )

    def _stage(self, who: str, event: Event) -> None:
        name, text, fraction = event.data["name"], event.data["text"], event.data.get("fraction")
        tenths = "" if fraction is None else str(int(fraction * 10))
        # the host's own stages are few, and a last word says how it went
        words = text if event.rank < 0 or (fraction or 0.0) >= 1 else ""
        key = f"{name} {tenths} {words}"
        if self._last.get(event.rank) != key:
            self._last[event.rank] = key
            done = "" if fraction is None else f" ({fraction:.0%})"
            self.note(f"[{who}] {name}: {text}{done}")


def tell_rehearsal(hostfile: Any, teller: Teller) -> None:
    """Say that a hostfile is of simulated Macs, if it is."""
    from jaccl_kernel.rehearsal import homes

    if homes.is_rehearsal(hostfile):
        teller.note(homes.NOTE)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a step; the first SIGINT or SIGTERM cancels it and waits for its end, the second leaves at once.

    The handlers are set even if the process was started with SIGINT ignored. Leaving at once is safe: a
    job's launcher ends its ranks when our end of its stdin is gone.
    """

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        got: list[int] = []

        def on_signal(signum: int) -> None:
            if got:
                os._exit(128 + signum)
            got.append(signum)
            print("Stopping …", file=sys.stderr, flush=True)
            task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, on_signal, signum)
        try:
            return await task
        except asyncio.CancelledError:
            if got:
                print("Stopped: nothing was left running.", file=sys.stderr, flush=True)
                sys.stdout.flush()
                # at once: a second signal while the interpreter winds down would change the exit status
                os._exit(128 + got[0])
            raise

    return asyncio.run(guarded())


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def fail(error: JacclError, status: int) -> int:
    """Tell an error on stderr; returns the exit status."""
    print(f"error: {error}", file=sys.stderr)
    if isinstance(error, RankDied) and error.last_words:
        print("  Its last words:", file=sys.stderr)
        for line in error.last_words:
            print(f"    {line}", file=sys.stderr)
    return status
