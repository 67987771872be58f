"""The benchmark's panel: choose model, prompt and numbers of ranks; watch; read table, verdict and figure."""

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError, JobError
from jaccl_kernel.jobs.spec import FAST_SYNCH, FAST_SYNCH_RISK
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import (
    STYLE,
    OnEvent,
    StepPanel,
    hint,
    labelled,
    python_box,
    text_box,
    wide,
)
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import briefly
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report import record
from jaccl_kernel.report.parity import Parity
from jaccl_kernel.report.record import BenchReport
from jaccl_kernel.report.table import BENCH_COLUMNS, bench_rows
from jaccl_kernel.steps.bench import DEFAULT_PROMPT, BenchOptions
from jaccl_kernel.steps.bench import bench as bench_step
from jaccl_kernel.wire import HOST, Event

VERDICT_STATES = {"equal": "good", "near-tie": "fair", "different": "bad", "not-tested": "none"}


class BenchPanel(StepPanel):
    """Measures a model over some numbers of ranks. `report` holds the last BenchReport.

    Args:
        hostfile: the cluster; None for the one that the notebooks agreed on (`session.current()`).
        model: a folder, a hub id in the local cache, or "demo"; None for the notebooks' choice.
        prompt: a text; None for the usual one.
        prompt_tokens: a made-up prompt of this many tokens instead of a text.
        max_tokens: how many tokens to generate.
        ranks: numbers of ranks; None for one and as many as run at once.
        repeats: measured runs per number of ranks.
        fast_synch: run with MLX_METAL_FAST_SYNCH=1 (its risk stands in the panel).
        python: the interpreter on every node; None for the notebooks' choice.
    """

    def __init__(
        self,
        hostfile: Hostfile | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        prompt: str | None = None,
        prompt_tokens: int | None = None,
        max_tokens: int = 128,
        ranks: Sequence[int] | None = None,
        repeats: int = 3,
        fast_synch: bool = False,
        python: str | None = None,
    ) -> None:
        with briefly():
            self.hostfile = hostfile if hostfile is not None else session.current()
        self._simulated = homes.is_rehearsal(self.hostfile)
        self._points: list[dict[str, Any]] = []
        self._commands: list[str] = []
        chosen = str(model) if model is not None else session.read().model or DEMO
        self.model = text_box(chosen, "Model", "demo, a folder, or ORG/NAME")
        self.prompt_kind = widgets.Dropdown(
            options=[("a text", "text"), ("made up, of a length", "length")],
            value="text" if prompt_tokens is None else "length",
            description="Prompt",
            style=STYLE,
            layout=widgets.Layout(width="320px"),
        )
        text = DEFAULT_PROMPT if prompt is None else prompt
        self.prompt = widgets.Textarea(text, rows=2, description="Text", style=STYLE, layout=wide())
        self.prompt_tokens = _number(512 if prompt_tokens is None else prompt_tokens, "Prompt tokens")
        self.max_tokens = _number(max_tokens, "New tokens")
        self.repeats = _number(repeats, "Runs each")
        self.rank_boxes = self._make_rank_boxes(ranks)
        self.fast_synch = widgets.Checkbox(
            fast_synch, description=f"{FAST_SYNCH}=1", indent=False, layout=widgets.Layout(width="auto")
        )
        self.python = python_box(python or session.python_for(self.hostfile))
        self.prompt_kind.observe(lambda _: self._show_prompt_kind(), "value")
        self._show_prompt_kind()
        super().__init__(
            "Benchmark",
            subtitle=_describe(self.hostfile),
            banner=blocks.rehearsal(homes.NOTE) if self._simulated else "",
            names=[host.name for host in self.hostfile.hosts],
            choices=[
                self.model,
                self.prompt_kind,
                self.prompt,
                self.prompt_tokens,
                widgets.HBox([self.max_tokens, self.repeats], layout=widgets.Layout(flex_flow="row wrap")),
                labelled("Ranks", *self.rank_boxes.values()),
                hint(self._rank_hint()),
                labelled("Fast sync", self.fast_synch),
                hint(FAST_SYNCH_RISK),
                self.python,
            ],
        )

    def options(self) -> BenchOptions:
        """What the choices ask for.

        Raises:
            InputError: no number of ranks is chosen.
        """
        ranks = [count for count, box in self.rank_boxes.items() if box.value]
        if not ranks:
            raise InputError("no number of ranks is chosen", fix="Tick at least one, 1 for the reference.")
        by_text = self.prompt_kind.value == "text"
        return BenchOptions(
            model=self.model.value.strip() or None,
            prompt=self.prompt.value if by_text else None,
            prompt_tokens=None if by_text else self.prompt_tokens.value,
            max_tokens=self.max_tokens.value,
            ranks=ranks,
            repeats=self.repeats.value,
            env={FAST_SYNCH: "1"} if self.fast_synch.value else {},
            python=self.python.value.strip() or None,
        )

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """The step with the choices as they stand."""
        options = self.options()
        self._points, self._commands = [], []
        return lambda on_event: bench_step(self.hostfile, options, on_event=on_event)

    def hear(self, event: Event) -> None:
        """Fill the table point by point, and keep the commands."""
        if event.rank != HOST:
            return
        if event.kind == "job":
            self._commands.append(event.data["command"])
        elif event.kind == "point":
            self._points.append(dict(event.data))
            record.add_speedups(self._points)
        else:
            return
        self.result.value = blocks.page(*self._so_far())

    def show(self, report: BenchReport) -> None:
        """The whole report."""
        self.result.value = blocks.page(*report_blocks(report), _commands(self._commands))

    def _so_far(self) -> list[str]:
        parts = [_table({"points": self._points})] if self._points else []
        return [*parts, _commands(self._commands)]

    def _make_rank_boxes(self, ranks: Sequence[int] | None) -> dict[int, widgets.Checkbox]:
        size = len(self.hostfile)
        ticked = {1, homes.ranks_at_once(size) if self._simulated else size} if ranks is None else set(ranks)
        with briefly():
            if not ticked <= set(range(1, size + 1)):
                raise InputError(
                    f"ranks are {', '.join(map(str, sorted(ticked)))}, and the hostfile has {size} hosts",
                    fix=f"Give numbers from 1 to {size}.",
                )
        return {
            count: widgets.Checkbox(
                count in ticked, description=str(count), indent=False, layout=widgets.Layout(width="52px")
            )
            for count in range(1, size + 1)
        }

    def _rank_hint(self) -> str:
        size = len(self.hostfile)
        if not self._simulated:
            return "Each number is a run on the first so many Macs. The smallest is the reference."
        at_once = homes.ranks_at_once(size)
        return (
            f"This machine has cores for {at_once} at full speed; more run too, and share. "
            "The smallest number is the reference for speed-up and parity."
        )

    def _show_prompt_kind(self) -> None:
        by_text = self.prompt_kind.value == "text"
        self.prompt.layout.display = None if by_text else "none"
        self.prompt_tokens.layout.display = "none" if by_text else None


async def bench(hostfile: Hostfile | None = None, **choices: Any) -> BenchReport:
    """Show a BenchPanel with these choices and run it to its end: `report = await bench(ranks=(1, 2))`.

    Raises:
        Stopped: by the panel's Stop, or the kernel's interrupt.
        JacclError: see steps.bench.
    """
    panel = BenchPanel(hostfile, **choices)
    display(panel)
    with briefly():
        panel.start()
    report: BenchReport = await panel.wait()
    return report


def show(report: BenchReport) -> HTML:
    """A report as a cell's output, which stays in the notebook when it is saved."""
    provenance = report.record["provenance"]
    banner = [blocks.rehearsal(homes.NOTE)] if provenance["rehearsal"] else []
    return HTML(blocks.page(*banner, *report_blocks(report), _commands(provenance["commands"])))


def report_blocks(report: BenchReport) -> list[str]:
    """Table, verdict, figure, text and whereabouts of a report, as HTML."""
    # here, not above: half a second that only those wait for who have a figure to see
    from jaccl_kernel.report import figures

    found = report.record
    parity = Parity(**{key: found["parity"][key] for key in Parity.__dataclass_fields__})
    drawing = figures.svg(figures.bench_figure(found))
    first = found["points"][0]
    saved = f"The record is {report.path}" if report.path else "The record was not saved."
    return [
        _table(found),
        *map(_failed, report.failed),
        blocks.verdict(parity.sentence(), VERDICT_STATES[parity.verdict]),
        blocks.figure(drawing, figures.describe(found), figures.INK),
        blocks.folded(
            f"What it wrote on {first['ranks']} rank{'s' if first['ranks'] != 1 else ''}",
            f'<pre class="jk-pre">{blocks.escape(first["text"])}</pre>',
        ),
        blocks.paragraph(saved, quiet=True),
    ]


def _failed(one: dict[str, Any]) -> str:
    cause = one["error"]
    told = JobError(f"{one['ranks']} ranks: {cause['what']}", where=cause["where"], fix=cause["fix"])
    return blocks.error(told)


def _table(found: dict[str, Any]) -> str:
    return blocks.table(BENCH_COLUMNS, bench_rows(found), "Medians; tok/s is tokens per second")


def _commands(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    shown = [blocks.to_copy(command, f"Job {number}") for number, command in enumerate(commands, 1)]
    return blocks.folded("The same by hand: plain mlx.launch", *shown)


def _describe(hostfile: Hostfile) -> str:
    names = ", ".join(host.name for host in hostfile.hosts)
    where = hostfile.path.name if hostfile.path else "no file"
    return f"{len(hostfile)} host{'s' if len(hostfile) != 1 else ''}: {names} ({where})"


def _number(value: int, label: str) -> widgets.BoundedIntText:
    return widgets.BoundedIntText(
        value, min=1, max=1_000_000, description=label, style=STYLE, layout=widgets.Layout(width="240px")
    )
