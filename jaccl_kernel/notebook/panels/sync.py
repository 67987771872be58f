"""The panel of `sync`: the nodes that have the model, whether it fits, and the progress of the copies."""

import ipywidgets as widgets

from jaccl_kernel.core.events import Event
from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.panels.form import Form
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.steps.sync.events import CopyKept, CopyProgress
from jaccl_kernel.steps.sync.report import COLUMNS, NodeSync, SyncReport, kept_words, rows
from jaccl_kernel.steps.sync.sync import sync

LEVELS = {"problem": "bad"}
COPYING = ("node", "route", "done", "MB/s", "remaining")


class SyncPanel(BringUpPanel):
    """Check model copies nothing; Copy model copies it to the nodes that need it.

    Args:
        hostfile: another cluster than the notebooks'.
        model: a folder, a hub id in the local cache, or "demo"; None for the notebooks' choice.
    """

    def __init__(self, hostfile: Hostfile | None = None, *, model: str | None = None) -> None:
        self.form = Form(SyncOptions, ("model",), model=model or session.read().model or DEMO)
        self.copy_button = widgets.Button(description="Copy model", icon="copy", disabled=True)
        self.copy_button.on_click(lambda _: self.start_copy())
        self._copying: dict[str, CopyProgress] = {}
        self._kept: list[str] = []
        super().__init__("Sync", hostfile, choices=[self.form["model"]])
        self.run_button.description = "Check model"
        self.add_below(self.copy_button)

    def prepare(self) -> Step:
        """The check: the state on each node."""
        return self._sync(check=True)

    def forget(self) -> None:
        """Other Macs have to be checked first."""
        self.copy_button.disabled = True

    def start_copy(self) -> None:
        """Start the copies."""
        self.act(self._sync(check=False))

    async def copy(self) -> SyncReport:
        """Start the copies and wait for their end; returns the report.

        Raises:
            Stopped: by Stop or the kernel's interrupt: the partial data is kept for the next copy.
            JacclError: the sync failed on all nodes.
        """
        with without_traceback():
            self.start_copy()
        report: SyncReport = await self.wait()
        return report

    def on_event(self, event: Event) -> None:
        """Update the table of copies."""
        match event.body:
            case CopyProgress(node) as progress:
                self._copying[node] = progress
            case CopyKept(node, kept):  # a stopped sync has no report
                self._kept.append(f"{node}: {kept_words(kept)}")
            case _:
                return
        table = blocks.table(COPYING, [_copy_row(one) for one in self._copying.values()])
        self.result.value = blocks.page(table, items(self._kept))

    def show(self, report: SyncReport) -> None:
        """The whole report."""
        self.copy_button.disabled = report.ok
        self.result.value = blocks.page(*report_blocks(report))

    def _sync(self, *, check: bool) -> Step:
        cluster = self.cluster()
        options = SyncOptions(check=check, model=self.form.values()["model"] or DEMO)
        self._copying, self._kept = {}, []
        return lambda on_event: sync(cluster, options, on_event=on_event)


def report_blocks(report: SyncReport) -> list[str]:
    """A report as HTML."""
    have = sum(node.ok for node in report.nodes)
    text = f"{have} of {len(report.nodes)} nodes have a complete copy, checksums match."
    failures = [
        card(node.node, "bad", f"{node.error} {node.fix}".strip(), items(_details(node)))
        for node in report.nodes
        if node.error
    ]
    notes = [f"{node.node}: {note}" for node in report.nodes if not node.error for note in node.notes]
    saved = f"Record: {report.path}" if report.path else ""
    return [
        blocks.verdict(text, "good" if report.ok else "fair"),
        blocks.table(COLUMNS, rows(report.nodes)),
        *failures,
        items(notes),
        *(
            card(
                one.node or "All",
                LEVELS.get(one.level, "none"),
                f"{one.what} {one.fix}".strip(),
            )
            for one in report.fit
        ),
        blocks.paragraph(saved, quiet=True),
    ]


def _details(node: NodeSync) -> list[str]:
    """The partial data of a failed copy, and the routes that failed."""
    return [*([kept_words(node.kept)] if node.kept else []), *node.notes]


def _copy_row(one: CopyProgress) -> list[str]:
    done = f"{one.done_bytes / 1e6:.0f} of {one.total_bytes / 1e6:.0f} MB"
    rate = "-" if not one.rate else f"{one.rate / 1e6:.0f}"
    left = "-" if one.eta_s is None else f"{one.eta_s:.0f} s"
    return [one.node, one.route or "-", done, rate, left]
