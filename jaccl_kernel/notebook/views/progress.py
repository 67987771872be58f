"""Where a run is: its stages with their times, and a line for each rank. Drawn by static/progress.js."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from jaccl_kernel.notebook.views.blocks import STATIC
from jaccl_kernel.notebook.views.timeline import State, Timeline
from jaccl_kernel.wire import Event


class ProgressView(anywidget.AnyWidget):
    """Shows a `Timeline`. Elapsed time ticks in the browser: nothing is sent while nothing happens.

    Args:
        names: the nodes' names, by rank.
        label: what is in progress, for those who hear the page instead of seeing it.
    """

    _esm = STATIC / "progress.js"
    _css = STATIC / "progress.css"
    label = traitlets.Unicode().tag(sync=True)
    snapshot = traitlets.Dict().tag(sync=True)

    def __init__(self, names: Sequence[str] = (), label: str = "Progress", **traits: Any) -> None:
        self._timeline = Timeline(tuple(names))
        self._timeline_lock = threading.Lock()
        super().__init__(label=label, snapshot=self._timeline.snapshot(time.time()), **traits)

    def begin(self) -> None:
        """A run starts."""
        with self._timeline_lock:
            self._timeline.begin(time.time())
            self._show()

    def hear(self, event: Event) -> None:
        """Take an event of the run in."""
        with self._timeline_lock:
            if self._timeline.hear(event):
                self._show()

    def end(self, state: State) -> None:
        """The run has ended as "done", "failed" or "stopped"."""
        with self._timeline_lock:
            self._timeline.end(state, time.time())
            self._show()

    def _show(self) -> None:
        self.snapshot = self._timeline.snapshot(time.time())
