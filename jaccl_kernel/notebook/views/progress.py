"""The progress of a run: its stages with times, and a line for each rank. Drawn by static/progress.js."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from jaccl_kernel.core.events import Event
from jaccl_kernel.notebook.views.blocks import STATIC
from jaccl_kernel.notebook.views.timeline import State, Timeline


class ProgressView(anywidget.AnyWidget):
    """Shows a `Timeline`. The browser counts elapsed time: without events, nothing is sent.

    Args:
        names: the nodes' names, by rank.
        label: the name of the progress, for screen readers.
    """

    _esm = STATIC / "progress.js"
    _css = STATIC / "progress.css"
    label = traitlets.Unicode().tag(sync=True)
    snapshot = traitlets.Dict().tag(sync=True)

    def __init__(self, names: Sequence[str] = (), label: str = "Progress", **traits: Any) -> None:
        self._timeline = Timeline(tuple(names))
        self._timeline_lock = threading.Lock()
        super().__init__(label=label, snapshot=self._timeline.snapshot(time.time()), **traits)

    def rename(self, names: Sequence[str]) -> None:
        """Show these nodes from now on, before any run."""
        with self._timeline_lock:
            self._timeline = Timeline(tuple(names))
            self._show()

    def begin(self) -> None:
        """Start a run."""
        with self._timeline_lock:
            self._timeline.begin(time.time())
            self._show()

    def handle(self, event: Event) -> None:
        """Handle an event of the run."""
        with self._timeline_lock:
            if self._timeline.handle(event):
                self._show()

    def end(self, state: State) -> None:
        """End the run as "done", "failed" or "stopped"."""
        with self._timeline_lock:
            self._timeline.end(state, time.time())
            self._show()

    def _show(self) -> None:
        self.snapshot = self._timeline.snapshot(time.time())
