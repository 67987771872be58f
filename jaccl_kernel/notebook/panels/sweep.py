"""The panel of the sweep: a grid of settings, measured on resident ranks, with live results."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import Event, PointMeasured
from jaccl_kernel.core.options import FAST_SYNCH, FAST_SYNCH_RISK
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.grid import COLLECTIVE_SIZES, Grid
from jaccl_kernel.notebook.panels.base import OnEvent, hint, labelled, text_box
from jaccl_kernel.notebook.panels.bringup import BringUpPanel
from jaccl_kernel.notebook.sweep import Sweep
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report.record import Report, SweepReport

BACKENDS = {"mesh (jaccl)": "jaccl", "ring (jaccl-ring)": "jaccl-ring", "TCP ring (ring)": "ring"}


class SweepPanel(BringUpPanel):
    """Measures a grid. `report` holds the last SweepReport, also of a stopped sweep.

    Args:
        hostfile: another cluster than the notebooks'.
        grid: the first values; None for 1 and all ranks (of simulated Macs: as many as run at full speed).
    """

    def __init__(self, hostfile: Hostfile | None = None, grid: Grid | None = None) -> None:
        with without_traceback():
            grid = grid or Grid(ranks=_one_and_usual(hostfile or session.current()))
        self._sweep: Sweep | None = None
        self.model = text_box(
            grid.model or session.read().model or DEMO, "Model", "demo, a folder, or ORG/NAME"
        )
        self.ranks = axis(grid.ranks, "Ranks")
        self.prompts = axis(grid.prompt_tokens, "Prompt tokens")
        self.batches = axis(grid.batch, "Batch")
        self.max_tokens = axis((grid.max_tokens,), "New tokens")
        self.repeats = axis((grid.repeats,), "Runs each")
        self.needles = text_box(
            _text(grid.needle), "Needle at", "None; or prompt lengths, for example 2048, 5120, 8192"
        )
        self.shardings = _boxes(("tensor", "pipeline"), grid.sharding)
        self.backends = _boxes(BACKENDS, [name for name, one in BACKENDS.items() if one in grid.backends])
        self.fast_synch = _boxes(("off", "on"), ["on" if one else "off" for one in grid.fast_synch])
        self.collectives = _boxes(("Time them first, 64 B to 64 MB, for the group and each pair",), ())
        next(iter(self.collectives.values())).value = bool(grid.collectives)
        super().__init__(
            "Sweep",
            hostfile,
            choices=[
                self.model,
                *(self.ranks, self.prompts, self.batches, self.max_tokens, self.repeats),
                hint("Numbers with commas; every combination is measured."),
                labelled("Sharding", *self.shardings.values()),
                labelled("Backend", *self.backends.values()),
                hint("Default: the hostfile's backend."),
                labelled("Fast sync", *self.fast_synch.values()),
                hint(f"{FAST_SYNCH} off and on. {FAST_SYNCH_RISK}"),
                labelled("Collectives", *self.collectives.values()),
                self.needles,
            ],
        )

    def grid(self) -> Grid:
        """The grid that is chosen.

        Raises:
            InputError: a text is not a list of numbers.
        """
        max_tokens, repeats = (number(one.value, one.description) for one in (self.max_tokens, self.repeats))
        model = self.model.value.strip()
        return Grid(
            ranks=numbers(self.ranks.value, "Ranks"),
            prompt_tokens=numbers(self.prompts.value, "Prompt tokens"),
            batch=numbers(self.batches.value, "Batch"),
            sharding=_ticked(self.shardings),
            backends=[BACKENDS[name] for name in _ticked(self.backends)] or [None],
            fast_synch=[name == "on" for name in _ticked(self.fast_synch)],
            max_tokens=max_tokens,
            repeats=repeats,
            collectives=COLLECTIVE_SIZES if _ticked(self.collectives) else (),
            needle=numbers(self.needles.value, "Needle at") if self.needles.value.strip() else (),
            model=model or None,
        )

    def adapt(self) -> None:
        """1 and all ranks of another cluster."""
        self.ranks.value = _text(_one_and_usual(self.hostfile()))

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """The sweep with the present choices. A stopped sweep has a report too."""
        hostfile, grid = self.hostfile(), self.grid()
        grid.settings(hostfile)

        async def step(on_event: OnEvent) -> SweepReport:
            self._sweep = sweep = Sweep(grid, hostfile, on_event)
            running = asyncio.ensure_future(asyncio.to_thread(sweep.run))
            while not running.done():
                try:
                    await asyncio.shield(running)
                except asyncio.CancelledError:
                    sweep.stop()
            return running.result()

        return step

    def on_event(self, event: Event) -> None:
        """Fill the table point by point."""
        if isinstance(event.body, PointMeasured) and self._sweep:
            self.result.value = blocks.page(table({"kind": "sweep", "points": self._sweep.points}))

    def show(self, report: SweepReport) -> None:
        """The whole report."""
        self.result.value = blocks.page(*report_blocks(report))


async def sweep(hostfile: Hostfile | None = None, **axes: Any) -> SweepReport:
    """Show a SweepPanel with these axes (as of `Grid`) and run it: `report = await sweep(ranks=(1, 2))`.

    Raises:
        JacclError: see Sweep.run.
    """
    panel = SweepPanel(hostfile, Grid(**axes))
    display(panel)
    with without_traceback():
        panel.start()
    report: SweepReport = await panel.wait()
    return report


def show(report: Report) -> HTML:
    """A report, or a record that was read back, as a cell's output, which stays in the notebook."""
    simulated = report.record["provenance"]["rehearsal"]
    banner = [blocks.rehearsal(homes.NOTE)] if simulated else []
    return HTML(blocks.page(*banner, *report_blocks(report)))


def compare(one: Report | Path | str, other: Report | Path | str) -> HTML:
    """Two records side by side: the points that both have, and the second's rate over the first's."""
    from jaccl_kernel.report import page, record

    with without_traceback():
        found = [
            each.record if isinstance(each, Report) else record.read(Path(each)) for each in (one, other)
        ]
    rows = page.compare(*found)
    if not rows:
        return HTML(blocks.page(blocks.verdict("The records have no setting in common.", "none")))
    return HTML(blocks.page(blocks.table(page.COMPARE_COLUMNS, rows, "Tokens per second")))


def table(found: dict[str, Any]) -> str:
    """Any record's points."""
    from jaccl_kernel.report import page

    columns, rows = page.rows_of(found)
    return blocks.table(columns, rows, "tok/s is tokens per second")


def report_blocks(report: Report) -> list[str]:
    """A sweep's or a load test's report as HTML: table, cables, needles, figures and files."""
    # imported here: matplotlib takes half a second
    from jaccl_kernel.report import figures, page

    found = report.record
    parts = [blocks.stopped("Stopped before the end; measured points only.")] if found["stopped"] else []
    parts += [table(found)] if found["points"] else []
    parts += [blocks.verdict(text, "bad") for text in page.failures(found)]
    states = {"slower": "bad", "first": "none", "as before": "good", "faster": "fair"}
    parts += [blocks.verdict(one["told"], states[one["verdict"]]) for one in found.get("cables", ())]
    if found.get("needles"):
        rows = page.needle_rows(found["needles"])
        parts.append(blocks.table(page.NEEDLE_COLUMNS, rows, "Number hidden in a long prompt"))
    if found["points"]:
        parts += [
            blocks.paragraph(caption) + blocks.figure(figures.svg(figure), caption, figures.INK)
            for caption, figure in page.figures_of(found)
        ]
    saved = f"Record: {report.path}; page to share: {report.page}" if report.path else "Record: not saved"
    return [*parts, blocks.paragraph(saved, quiet=True)]


def numbers(text: str, name: str) -> list[int]:
    """Numbers with commas or spaces between them.

    Raises:
        InputError: any other text.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(f"{name} must be numbers with commas (got {text!r})", fix="For example: 1, 2.")
    return [int(word) for word in words]


def number(text: str, name: str) -> int:
    """One number.

    Raises:
        InputError: any other text.
    """
    found = numbers(text, name)
    if len(found) > 1:
        raise InputError(f"{name} must be one number (got {text!r})", fix="Remove the other numbers.")
    return found[0]


def axis(values: Sequence[int], label: str) -> widgets.Text:
    """A text box for one axis of a grid."""
    box = text_box(_text(values), label, "numbers with commas")
    box.layout.width = "320px"
    return box


def _one_and_usual(hostfile: Hostfile) -> list[int]:
    return sorted({1, homes.usual_ranks(hostfile)})


def _text(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _boxes(names: Any, ticked: Any) -> dict[str, widgets.Checkbox]:
    return {
        name: widgets.Checkbox(
            name in ticked, description=name, indent=False, layout=widgets.Layout(width="auto")
        )
        for name in names
    }


def _ticked(boxes: dict[str, widgets.Checkbox]) -> list[str]:
    return [name for name, box in boxes.items() if box.value]
