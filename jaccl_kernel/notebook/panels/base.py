"""The base of every step's panel: title, choices, Run and Stop, progress, error, result and log.

A panel defines the coroutine to run (`prepare`), and how to show its result (`show`) and events (`on_event`).
The work runs on a thread of its own; Run starts it, and so does a cell with `await panel.run()`, which waits
for its end. Stop and the kernel's interrupt (■) both cancel the step, which then ends its processes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from jaccl_kernel.core.errors import JacclError, Stopped
from jaccl_kernel.core.events import HOST, Event
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.views.log import LogView, describe
from jaccl_kernel.notebook.views.progress import ProgressView
from jaccl_kernel.notebook.work import Work, without_traceback

LABEL_WIDTH = "120px"
STYLE = {"description_width": LABEL_WIDTH}

OnEvent = Callable[[Event], None]


class StepPanel(widgets.VBox):
    """The base of the panels.

    Args:
        title: the step's name.
        subtitle: the cluster or the server.
        banner: HTML above the title (a rehearsal's), or "".
        names: the nodes' names, by rank.
        choices: the widgets of the options; disabled while the step runs.
    """

    def __init__(
        self,
        title: str,
        *,
        subtitle: str = "",
        banner: str = "",
        names: Sequence[str] = (),
        choices: Sequence[widgets.Widget] = (),
    ) -> None:
        self.report: Any = None
        self._title = title
        self._names = tuple(names)
        self._choices = tuple(choices)
        self._work = Work(title, on_end=self._ended)
        self.run_button = widgets.Button(description="Run", icon="play", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress_view = ProgressView(names, label=f"{title}: progress")
        self.log_view = LogView()
        self.heading_view = html_block(banner, blocks.heading(title, subtitle))
        self.error_view = html_block()
        self.outdated_view, self.result = html_block(), html_block()
        self.run_button.on_click(lambda _: self._click_run())
        self.stop_button.on_click(lambda _: self.stop())
        super().__init__(
            [
                self.heading_view,
                *choices,
                widgets.HBox([self.run_button, self.stop_button], layout=widgets.Layout(margin="8px 0")),
                self.progress_view,
                self.error_view,
                self.outdated_view,
                self.result,
                self.log_view,
            ],
            layout=widgets.Layout(padding="4px 2px", max_width="1000px"),
        )
        self.add_class("jk-panel")

    # what each panel defines

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """Read the choices; returns the step as a function of its event handler.

        Raises:
            JacclError: a choice is invalid.
        """
        raise NotImplementedError

    def on_event(self, event: Event) -> None:
        """Show an event beyond progress and log; called on the work's thread."""

    def show(self, report: Any) -> None:
        """Show the result; called on the work's thread."""
        raise NotImplementedError

    # what all panels share

    @property
    def running(self) -> bool:
        """Whether the step is running."""
        return self._work.running

    def start(self) -> None:
        """Start the step and return at once.

        Raises:
            JacclError: a choice is invalid, or the step is already running (Busy).
        """
        step = self.prepare()
        self._work.start(lambda: self._step(step))

    def stop(self) -> None:
        """Ask the step to stop, and return at once. Harmless if nothing runs, and the second time."""
        if self._work.stop():
            self.stop_button.disabled = True
            self.stop_button.description = "Stopping"

    async def wait(self) -> Any:
        """Wait for the end of the step that runs; its report. An interrupt of the cell stops the step.

        Raises:
            Stopped: it was stopped.
            JacclError: it failed.
        """
        try:
            with without_traceback():
                return await self._work.wait()
        except asyncio.CancelledError:  # ipykernel cancels a cell that awaits
            self.stop()
            with without_traceback(), contextlib.suppress(asyncio.CancelledError):
                return await self._work.wait()
            raise

    async def run(self) -> Any:
        """Start the step and wait for its end: `report = await panel.run()`. See `start` and `wait`.

        Stop and progress are shown in this cell too, since the panel may be far up the page.
        """
        with without_traceback():
            self.start()
        display(widgets.VBox([self.stop_button, self.progress_view]))
        return await self.wait()

    def _click_run(self) -> None:
        try:
            self.start()
        except JacclError as error:
            self.error_view.value = blocks.page(blocks.error(error))

    async def _step(self, step: Callable[[OnEvent], Coroutine[Any, Any, Any]]) -> Any:
        self.report = None
        self.error_view.value = self.result.value = ""
        self.log_view.clear()
        self.progress_view.begin()
        self._set_running(True)  # last: a panel that shows it is running shows nothing of an earlier run
        return await step(self._handle)

    def _handle(self, event: Event) -> None:
        self.progress_view.handle(event)
        if line := describe(event):
            source = "host" if event.rank == HOST else self._name(event.rank)
            self.log_view.append(source, line)
        self.on_event(event)

    def _ended(self, report: Any, error: BaseException | None) -> None:
        try:
            if isinstance(error, Stopped):
                self.progress_view.end("stopped")
                self.error_view.value = blocks.page(blocks.stopped("Stopped before the end."))
            elif error is not None:
                self.progress_view.end("failed")
                self.error_view.value = blocks.page(blocks.error(error))
            else:
                self.report = report
                self.show(report)
                self.progress_view.end("done")
        except Exception as fault:
            self.progress_view.end("failed")
            self.error_view.value = blocks.page(blocks.error(fault))
            raise
        finally:
            self.log_view.flush()
            self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.run_button.disabled = running
        self.stop_button.disabled = not running
        self.stop_button.description = "Stop"
        for choice in self._choices:
            set_disabled(choice, running)

    def _name(self, rank: int) -> str:
        return self._names[rank] if rank < len(self._names) else f"rank {rank}"


def html_block(*parts: str) -> widgets.HTML:
    """Blocks of HTML as a widget."""
    return widgets.HTML(blocks.page(*parts))


def labelled(label: str, *inner: widgets.Widget) -> widgets.HBox:
    """Widgets in a row with a label, aligned with the widgets that have a description."""
    beside = widgets.Layout(width=LABEL_WIDTH, justify_content="flex-end", margin="2px 8px 2px 2px")
    return widgets.HBox(
        [widgets.Label(label, layout=beside), *inner],
        layout=widgets.Layout(align_items="center", flex_flow="row wrap"),
    )


def hint(text: str) -> widgets.Box:
    """A sentence under a widget, aligned with it."""
    return widgets.Box(
        [html_block(blocks.paragraph(text, quiet=True))],
        layout=widgets.Layout(margin=f"0 0 0 calc({LABEL_WIDTH} + 8px)", max_width="640px"),
    )


def text_box(value: str, label: str, placeholder: str, **traits: Any) -> widgets.Text:
    """A wide text box."""
    return widgets.Text(
        value, description=label, placeholder=placeholder, style=STYLE, layout=wide(), **traits
    )


def row(*inner: widgets.Widget) -> widgets.HBox:
    """Widgets side by side."""
    return widgets.HBox(inner, layout=widgets.Layout(flex_flow="row wrap"))


def wide() -> widgets.Layout:
    """The layout of one wide widget (a layout is a widget too: two that share one are hidden together)."""
    return widgets.Layout(width="640px", max_width="100%")


def short() -> widgets.Layout:
    """The layout of one widget for a number or a choice."""
    return widgets.Layout(width="260px")


def set_disabled(widget: widgets.Widget, disabled: bool) -> None:
    """Disable or enable a widget and the widgets inside it."""
    for inner in getattr(widget, "children", ()):
        set_disabled(inner, disabled)
    if widget.has_trait("disabled"):
        widget.disabled = disabled
