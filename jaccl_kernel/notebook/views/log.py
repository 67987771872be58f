"""A live log of many sources, drawn by static/log.js.

Lines are sent to the browser as messages, at most a few times per second; a growing trait would send all text
again for each line. The last lines are kept here, for a page that is opened or reloaded later.
"""

import threading
from collections import deque
from typing import Any

import anywidget
import traitlets

from jaccl_kernel.core.events import Event, Exited, JobStarted, Joined, Line, RankError, Stage
from jaccl_kernel.notebook.views.blocks import STATIC

KEPT_LINES = 2000  # here and in the browser
FLUSH_S = 0.1
LINE_LIMIT = 4000  # characters: a very long line must not block the page

LogLine = tuple[str, str]  # source, text


class LogView(anywidget.AnyWidget):
    """Lines of text with their sources; the reader can select a source.

    Args:
        label: the log's title.
        kept: number of lines to keep.
    """

    _esm = STATIC / "log.js"
    _css = STATIC / "log.css"
    label = traitlets.Unicode("Log").tag(sync=True)
    kept = traitlets.Int(KEPT_LINES).tag(sync=True)

    def __init__(self, label: str = "Log", kept: int = KEPT_LINES, **traits: Any) -> None:
        self._lines: deque[LogLine] = deque(maxlen=kept)
        self._pending: deque[LogLine] = deque(maxlen=kept)  # drops the oldest lines if there are too many
        self._flush_timer: threading.Timer | None = None
        self._lines_lock = threading.Lock()
        super().__init__(label=label, kept=kept, **traits)
        self.on_msg(self._handle_message)

    @property
    def lines(self) -> list[LogLine]:
        """The kept lines, oldest first."""
        with self._lines_lock:
            return list(self._lines)

    def append(self, source: str, text: str) -> None:
        """Add a line (or several: `text` is split at line ends)."""
        with self._lines_lock:
            for line in text.splitlines() or [""]:
                cut = line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + " …"
                self._lines.append((source, cut))
                self._pending.append((source, cut))
            if self._flush_timer is None:
                self._flush_timer = threading.Timer(FLUSH_S, self.flush)
                self._flush_timer.daemon = True
                self._flush_timer.start()

    def clear(self) -> None:
        """Remove all lines."""
        with self._lines_lock:
            self._lines.clear()
            self._pending.clear()
            self.send({"type": "replay", "lines": []})

    def flush(self) -> None:
        """Send the pending lines."""
        with self._lines_lock:
            self._flush_timer = None
            if self._pending:
                self.send({"type": "lines", "lines": list(self._pending)})
                self._pending.clear()

    def _handle_message(self, _: Any, message: Any, __: Any) -> None:
        if isinstance(message, dict) and message.get("type") == "ready":
            with self._lines_lock:  # so that no line is lost between the replay and the next lines
                self.send({"type": "replay", "lines": list(self._lines)})
                self._pending.clear()


def describe(event: Event) -> str:
    """An event as a line of the log, or "" if it is not shown."""
    match event.body:
        case Line(text):
            return text
        case Stage(name, text, fraction) if not fraction:  # the start of a stage, not each percent of it
            return f"[{name}] {text}".rstrip()
        case JobStarted(job_id, folder):
            return f"[job] {job_id}, logs in {folder}"
        case Joined(size):
            return f"[joined] a group of {size}"
        case RankError() as error:
            return f"[error] {error.type} at {error.stage or '?'}: {error.message}"
        case Exited(returncode) if returncode:
            return f"[exit] status {returncode}"
    return ""
