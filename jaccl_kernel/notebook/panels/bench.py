"""The panel of the benchmark: options, progress, table, parity verdict and figure."""

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import Event, JobStarted, PointMeasured
from jaccl_kernel.core.options import DEFAULT_PROMPT, FAST_SYNCH_RISK, BenchOptions
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import STYLE, OnEvent, hint, labelled, row
from jaccl_kernel.notebook.panels.bringup import BringUpPanel
from jaccl_kernel.notebook.panels.form import Form
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report import record
from jaccl_kernel.report.parity import Parity
from jaccl_kernel.report.record import BenchReport, failed_point
from jaccl_kernel.report.table import BENCH_COLUMNS, bench_rows
from jaccl_kernel.steps.bench import bench as bench_step

DEFAULT_PROMPT_TOKENS = 512
VERDICT_STATES = {"equal": "good", "near-tie": "fair", "different": "bad", "not-tested": "none"}


FIELDS = ("model", "prompt", "prompt_tokens", "max_tokens", "repeats", "fast_synch", "python")


class BenchPanel(BringUpPanel):
    """Measures a model over some numbers of ranks. `report` holds the last BenchReport.

    Args:
        hostfile: another cluster than the notebooks'.
        model: as of BenchOptions; None for the notebooks' choice.
        prompt_tokens: as of BenchOptions; None for a prompt text.
        ranks: numbers of ranks; None for one and all (of simulated Macs: as many as run at full speed).
        python: as of BenchOptions; None for the notebooks' choice.
        choices: first values of the other FIELDS, as of BenchOptions.
    """

    def __init__(
        self,
        hostfile: Hostfile | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        prompt_tokens: int | None = None,
        ranks: Sequence[int] | None = None,
        python: str | None = None,
        **choices: Any,
    ) -> None:
        with without_traceback():
            self.form = Form(
                BenchOptions,
                FIELDS,
                model=str(model or session.read().model or DEMO),
                prompt_tokens=prompt_tokens or DEFAULT_PROMPT_TOKENS,
                python=python,
                **{"prompt": DEFAULT_PROMPT} | choices,
            )
        self._points: list[dict[str, Any]] = []
        self._commands: list[str] = []
        self.prompt_kind = widgets.Dropdown(
            options=[("Text", "text"), ("Synthetic", "length")],
            value="text" if prompt_tokens is None else "length",
            description="Prompt",
            style=STYLE,
            layout=widgets.Layout(width="320px"),
        )
        self.rank_boxes: dict[int, widgets.Checkbox] = {}
        self._rank_row, self._rank_hint = labelled("Ranks"), hint("")
        self.prompt_kind.observe(lambda _: self._show_prompt_kind(), "value")
        self._show_prompt_kind()
        form = self.form
        super().__init__(
            "Benchmark",
            hostfile,
            choices=[
                form["model"],
                self.prompt_kind,
                form["prompt"],
                form["prompt_tokens"],
                row(form["max_tokens"], form["repeats"]),
                self._rank_row,
                self._rank_hint,
                labelled("Fast sync", form["fast_synch"]),
                hint(FAST_SYNCH_RISK),
                form["python"],
            ],
        )
        self.adapt()
        if ranks is not None:
            self._tick(ranks)
        form["python"].value = python or form["python"].value

    def adapt(self) -> None:
        """A box for each number of ranks of this cluster, and its interpreter."""
        hostfile = self.hostfile()
        self.rank_boxes = {
            count: widgets.Checkbox(description=str(count), indent=False, layout=widgets.Layout(width="52px"))
            for count in range(1, len(hostfile) + 1)
        }
        self._tick((1, homes.usual_ranks(hostfile)))
        self._rank_row.children = (self._rank_row.children[0], *self.rank_boxes.values())
        self._rank_hint.children = hint(_rank_hint(hostfile)).children
        self.form["python"].value = session.python_for(hostfile) or ""

    def options(self) -> BenchOptions:
        """The options that are chosen.

        Raises:
            InputError: no number of ranks is chosen, or an option is invalid.
        """
        ranks = tuple(count for count, box in self.rank_boxes.items() if box.value)
        if not ranks:
            raise InputError("no number of ranks is selected", fix="Select at least one; 1 is the reference.")
        other = "prompt_tokens" if self.prompt_kind.value == "text" else "prompt"
        return BenchOptions(**self.form.values() | {other: None, "ranks": ranks})

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """The step with the present choices."""
        options, hostfile = self.options(), self.hostfile()
        self._points, self._commands = [], []
        return lambda on_event: bench_step(hostfile, options, on_event=on_event)

    def on_event(self, event: Event) -> None:
        """Add each point to the table, and keep the commands."""
        match event.body:
            case JobStarted(command=command):
                self._commands.append(command)
            case PointMeasured(point):
                self._points.append(dict(point))
                record.add_speedups(self._points)
            case _:
                return
        self.result.value = blocks.page(*self._so_far())

    def show(self, report: BenchReport) -> None:
        """The whole report."""
        self.result.value = blocks.page(*report_blocks(report), _commands(self._commands))

    def _so_far(self) -> list[str]:
        parts = [_table({"points": self._points})] if self._points else []
        return [*parts, _commands(self._commands)]

    def _tick(self, ranks: Sequence[int]) -> None:
        size = len(self.rank_boxes)
        with without_traceback():
            if not set(ranks) <= set(self.rank_boxes):
                raise InputError(
                    f"requested {', '.join(map(str, sorted(ranks)))} ranks; the hostfile has {size} hosts",
                    fix=f"Use numbers from 1 to {size}.",
                )
        for count, box in self.rank_boxes.items():
            box.value = count in ranks

    def _show_prompt_kind(self) -> None:
        by_text = self.prompt_kind.value == "text"
        self.form["prompt"].layout.display = None if by_text else "none"
        self.form["prompt_tokens"].layout.display = "none" if by_text else None


async def bench(hostfile: Hostfile | None = None, **choices: Any) -> BenchReport:
    """Show a BenchPanel with these choices and run it: `report = await bench(ranks=(1, 2))`.

    Raises:
        Stopped: by the panel's Stop, or the kernel's interrupt.
        JacclError: see steps.bench.
    """
    panel = BenchPanel(hostfile, **choices)
    display(panel)
    with without_traceback():
        panel.start()
    report: BenchReport = await panel.wait()
    return report


def show(report: BenchReport) -> HTML:
    """A report as a cell's output, which stays in the notebook when it is saved."""
    provenance = report.record["provenance"]
    banner = [blocks.rehearsal(homes.NOTE)] if provenance["rehearsal"] else []
    return HTML(blocks.page(*banner, *report_blocks(report), _commands(provenance["commands"])))


def report_blocks(report: BenchReport) -> list[str]:
    """Table, verdict, figure, text and file of a report, as HTML."""
    # imported here: matplotlib takes half a second
    from jaccl_kernel.report import figures

    found = report.record
    parity = Parity(**{key: found["parity"][key] for key in Parity.__dataclass_fields__})
    drawing = figures.svg(figures.bench_figure(found))
    first = found["points"][0]
    saved = f"Record: {report.path or 'not saved'}"
    return [
        _table(found),
        *(blocks.error(failed_point(one)) for one in report.failed),
        blocks.verdict(parity.sentence(), VERDICT_STATES[parity.verdict]),
        blocks.figure(drawing, figures.describe(found), figures.INK),
        blocks.folded(
            f"Generated text on {first['ranks']} rank{'s' if first['ranks'] != 1 else ''}",
            f'<pre class="jk-pre">{blocks.escape(first["text"])}</pre>',
        ),
        blocks.paragraph(saved, quiet=True),
    ]


def _table(found: dict[str, Any]) -> str:
    return blocks.table(BENCH_COLUMNS, bench_rows(found), "Medians; tok/s is tokens per second")


def _commands(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    shown = [blocks.to_copy(command, f"Job {number}") for number, command in enumerate(commands, 1)]
    return blocks.folded("Equivalent mlx.launch commands", *shown)


def _rank_hint(hostfile: Hostfile) -> str:
    if not homes.is_rehearsal(hostfile):
        return "Each number is a run on the first Macs of the hostfile. The smallest is the reference."
    at_once = homes.usual_ranks(hostfile)
    return (
        f"This machine has cores for {at_once} ranks at full speed; more ranks share them. "
        "The smallest number is the reference for speed-up and parity."
    )
