"""A live log of many sources, drawn by static/log.js.

Lines go to the browser as messages, not as a growing trait (which would send all text again for each line), a
few times a second at the most. The last ones are kept here, for a page that is opened or reloaded later.
"""

import threading
from collections import deque
from typing import Any

import anywidget
import traitlets

from jaccl_kernel.notebook.views.blocks import STATIC
from jaccl_kernel.wire import HOST, Event

KEPT_LINES = 2000  # here and in the browser
FLUSH_S = 0.1
LINE_LIMIT = 4000  # characters: one endless line must not stall the page

Line = tuple[str, str]  # source, text


class LogView(anywidget.AnyWidget):
    """Lines of text, each with its source; the reader can choose one source.

    Args:
        label: the log's title.
        kept: how many lines to keep.
    """

    _esm = STATIC / "log.js"
    _css = STATIC / "log.css"
    label = traitlets.Unicode("Log").tag(sync=True)
    kept = traitlets.Int(KEPT_LINES).tag(sync=True)

    def __init__(self, label: str = "Log", kept: int = KEPT_LINES, **traits: Any) -> None:
        self._lines: deque[Line] = deque(maxlen=kept)
        self._pending: deque[Line] = deque(maxlen=kept)  # a flood pushes its own oldest lines out
        self._flush_timer: threading.Timer | None = None
        self._lines_lock = threading.Lock()
        super().__init__(label=label, kept=kept, **traits)
        self.on_msg(self._hear_page)

    @property
    def lines(self) -> list[Line]:
        """The lines that are kept, oldest first."""
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
        """Forget all lines."""
        with self._lines_lock:
            self._lines.clear()
            self._pending.clear()
            self.send({"type": "replay", "lines": []})

    def flush(self) -> None:
        """Send what has not been sent yet."""
        with self._lines_lock:
            self._flush_timer = None
            if self._pending:
                self.send({"type": "lines", "lines": list(self._pending)})
                self._pending.clear()

    def _hear_page(self, _: Any, message: Any, __: Any) -> None:
        if isinstance(message, dict) and message.get("type") == "ready":
            with self._lines_lock:  # so that no line falls between the replay and what follows it
                self.send({"type": "replay", "lines": list(self._lines)})
                self._pending.clear()


def describe(event: Event) -> str:
    """An event as a line for the log, or "" for one that is not worth a line."""
    data = event.data
    if event.kind == "line":
        return str(data["text"])
    if event.kind == "stage" and not data.get("fraction"):  # the beginning of a stage, not its every percent
        return f"[{data['name']}] {data.get('text') or ''}".rstrip()
    if event.kind == "job" and event.rank == HOST:
        return f"[job] {data['id']}, logs in {data['folder']}"
    if event.kind == "joined":
        return f"[joined] a group of {data.get('size', '?')}"
    if event.kind == "error":
        return f"[error] {data.get('type', 'Error')} at {data.get('stage', '?')}: {data.get('message', '')}"
    if event.kind == "exit" and data.get("returncode"):
        return f"[exit] status {data['returncode']}"
    return ""
