"""What every command does at a terminal: report progress, run a step, print tables, JSON and errors.

On a terminal, progress is shown as live bars with elapsed and remaining time; elsewhere, as plain lines.
Colour follows rich: none when piped or with NO_COLOR.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from jaccl_kernel.core.errors import JacclError, RankDied
from jaccl_kernel.core.events import Event, JobStarted, Line, Stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

T = TypeVar("T")
STYLES = {
    "ok": "green", "ready": "green", "running": "green", "warning": "yellow", "skipped": "yellow",
    "not tested": "yellow", "failed": "bold red", "down": "bold red", "error": "bold red",
}  # fmt: skip
"""The colours of the state words."""


class Reporter:
    """Reports the progress of a step on a stream.

    Args:
        stream: where to.
        live: whether to show bars if the stream is a terminal.
    """

    def __init__(self, stream: TextIO, *, live: bool = True) -> None:
        self._stream = stream
        self._live = live and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._last: dict[str, str] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        """Print one or more lines."""
        with contextlib.suppress(OSError, ValueError):  # a closed terminal, a full disk
            if self._bars is not None:
                self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    def wait_closed(self, seconds: float) -> bool:
        """Wait; returns early, and True, when the reader of the stream's pipe has gone."""
        poll = select.poll()
        with contextlib.suppress(OSError, ValueError):
            poll.register(self._stream.fileno(), 0)  # POLLERR and POLLHUP are always reported
        return any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(seconds * 1e3))

    def event(self, event: Event) -> None:
        """Report one event of a step."""
        who = f"rank {event.rank}" if event.rank >= 0 else "jaccl"
        match event.body:
            case Stage(name, text, fraction):
                # every text of the host is worth a line; of a rank, only the last one
                detail = text if event.rank < 0 or (fraction or 0.0) >= 1 else ""
                self.progress(who, f"{name}: {text}", fraction, f"{name} {detail}")
            case Line(text):
                self.note(f"[{who}] {text}")
            case JobStarted(_, folder, command):
                self.note(f"[{who}] logs: {folder}\n[{who}] equivalent command: {command}")

    def stage(self, text: str, fraction: float | None = None) -> None:
        """Report a stage of the host's own work."""
        self.progress("jaccl", f"prepare: {text}", fraction, f"prepare {text}")

    def progress(self, who: str, text: str, fraction: float | None, key: str) -> None:
        """Report how far one rank or node is: as a bar, or as one line for each `key` and tenth.

        Args:
            who: the rank or node.
            text: what it does.
            fraction: how much of it is done; None if unknown.
            key: a line is printed when it changes.
        """
        if self._live and fraction is not None and fraction < 1:
            self._show_bar(who, text, fraction)
            return
        self._remove_bar(who)
        tenths = "" if fraction is None else str(int(fraction * 10))
        if self._last.get(who) != f"{key} {tenths}":
            self._last[who] = f"{key} {tenths}"
            self.note(f"[{who}] {text}{'' if fraction is None else f' ({fraction:.0%})'}")

    def close(self) -> None:
        """Remove the bars. Harmless if there are none."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a step; the first SIGINT, SIGTERM or SIGHUP cancels it and waits for its end.

        The second exits at once. The handlers are set even if the process was started with SIGINT ignored;
        SIGHUP stays ignored (nohup). An exit at once is safe: a job's launcher ends its ranks when our end of
        its stdin closes.
        """

        async def guarded() -> T:
            task = asyncio.ensure_future(work)
            received: list[int] = []

            def on_signal(signum: int) -> None:
                if received:
                    self.close()
                    os._exit(128 + signum)
                received.append(signum)
                task.cancel()  # before the output, which may fail
                self.note("Stopping …")

            hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
            for signum in (signal.SIGINT, signal.SIGTERM, *hangup):
                asyncio.get_running_loop().add_signal_handler(signum, on_signal, signum)
            try:
                return await task
            except asyncio.CancelledError:
                self.close()
                if received:
                    self.note("Stopped. No process is left running.")
                    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed
                        sys.stdout.flush()
                    # at once: a second signal during the interpreter's shutdown would change the exit status
                    os._exit(128 + received[0])
                raise
            finally:
                self.close()

        return asyncio.run(guarded())

    def _show_bar(self, who: str, text: str, fraction: float) -> None:
        from rich import progress

        if self._bars is None:
            columns = (
                progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
                progress.TaskProgressColumn(), progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
            )  # fmt: skip
            self._bars = progress.Progress(*columns, console=_console(self._stream), transient=True)
            self._bars.start()
        bar: dict[str, Any] = {"description": f"[{who}] {text}", "completed": fraction}
        if who in self._tasks:
            self._bars.update(self._tasks[who], **bar)
        else:
            self._tasks[who] = self._bars.add_task(total=1.0, **bar)

    def _remove_bar(self, who: str) -> None:
        if self._bars is not None and who in self._tasks:
            self._bars.remove_task(self._tasks.pop(who))


def reporter_for(hostfile: Any) -> Reporter:
    """A reporter on stderr, which first says whether the hostfile is a rehearsal's."""
    reporter = Reporter(sys.stderr)
    note_rehearsal(hostfile, reporter)
    return reporter


def note_rehearsal(hostfile: Any, reporter: Reporter) -> None:
    """Say that a hostfile is a rehearsal's, if it is."""
    from jaccl_kernel.rehearsal import homes

    if homes.is_rehearsal(hostfile):
        reporter.note(homes.NOTE)


def confirm(question: str, *, yes: bool = False, ask: bool = True) -> bool:
    """Whether the user agrees: by --yes, or at a terminal; without a terminal, no."""
    if yes:
        return True
    if not ask or not sys.stdin.isatty():
        print(f"{question} Not confirmed; pass --yes.", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say(text: str) -> None:
    """Print a text on stdout; nothing for an empty one."""
    if text:
        print(text)


def say_state(state: str, text: str) -> None:
    """Print a line that begins with a state word, in its colour on a terminal."""
    if not sys.stdout.isatty():
        print(f"{state:<10}  {text}")
        return
    from rich.text import Text

    line = Text.assemble((f"{state:<10}", STYLES.get(state, "")), f"  {text}")
    _console(sys.stdout).print(line, highlight=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout: ruled on a terminal, aligned plain text elsewhere."""
    if not sys.stdout.isatty():
        from jaccl_kernel.report import table

        print(table.render(columns, list(rows)))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    _console(sys.stdout).print(made)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def fail(error: JacclError, status: int) -> int:
    """Print an error on stderr; returns the exit status."""
    if sys.stderr.isatty():
        from rich.text import Text

        text = Text.assemble(("error: ", STYLES["error"]), str(error))
        _console(sys.stderr).print(text, highlight=False, soft_wrap=True)
    else:
        print(f"error: {error}", file=sys.stderr)
    if isinstance(error, RankDied):
        for line in last_lines(error.last_lines):
            print(line, file=sys.stderr)
    return status


def last_lines(lines: Sequence[str]) -> list[str]:
    """The last lines of a rank's output below its error, with a heading; none without any."""
    return ["  Last lines of its output:", *(f"    {line}" for line in lines)] if lines else []


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream)
