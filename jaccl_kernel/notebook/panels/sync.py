"""Sync's panel: which nodes have the model, does it fit and split, then the copies side by side."""

from typing import Any

import ipywidgets as widgets

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import text_box
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import briefly
from jaccl_kernel.steps.sync import SyncOptions, sync
from jaccl_kernel.steps.sync_report import COLUMNS, NodeSync, SyncReport, kept_words, rows
from jaccl_kernel.wire import Event

LEVELS = {"problem": "bad"}
COPYING = ("node", "way", "done", "MB/s", "time left")


class SyncPanel(BringUpPanel):
    """Run looks and copies nothing; Copy brings the model to the nodes that lack it.

    Args:
        hostfile: another cluster than the notebooks'.
        model: a folder, a hub id in the local cache, or "demo"; None for the notebooks' choice.
    """

    def __init__(self, hostfile: Hostfile | None = None, *, model: str | None = None) -> None:
        chosen = model or session.read().model or DEMO
        self.model = text_box(chosen, "Model", "demo, a folder, or ORG/NAME")
        self.copy_button = widgets.Button(description="Copy", icon="copy", disabled=True)
        self.copy_button.on_click(lambda _: self.start_copy())
        self._copying: dict[str, dict[str, Any]] = {}
        self._kept: list[str] = []
        super().__init__("Sync", hostfile, choices=[self.model])
        self.run_button.description = "Look"
        self.add_below(self.copy_button)

    def prepare(self) -> Step:
        """A look: what is where."""
        return self._sync(check=True)

    def start_copy(self) -> None:
        """Start the copies."""
        self.act(self._sync(check=False))

    async def copy(self) -> SyncReport:
        """Start the copies and wait for their end; the report.

        Raises:
            Stopped: by Stop or the kernel's interrupt: what arrived is kept hidden, for a later resume.
            JacclError: nothing could be done at all.
        """
        with briefly():
            self.start_copy()
        report: SyncReport = await self.wait()
        return report

    def hear(self, event: Event) -> None:
        """Fill the table of copies."""
        if event.kind == "copy":
            self._copying[event.data["node"]] = dict(event.data)
        elif event.kind == "kept":  # also when it was stopped, and no report comes
            self._kept.append(f"{event.data['node']}: {kept_words(event.data)}")
        else:
            return
        table = blocks.table(COPYING, [_copy_row(one) for one in self._copying.values()])
        self.result.value = blocks.page(table, items(self._kept))

    def show(self, report: SyncReport) -> None:
        """The whole report."""
        self.copy_button.disabled = report.ok
        self.result.value = blocks.page(*report_blocks(report))

    def _sync(self, *, check: bool) -> Step:
        cluster = self.cluster()
        options = SyncOptions(model=self.model.value.strip() or DEMO, check=check)
        self._copying, self._kept = {}, []
        return lambda on_event: sync(cluster, options, on_event=on_event)


def report_blocks(report: SyncReport) -> list[str]:
    """A report as HTML."""
    have = sum(node.ok for node in report.nodes)
    text = f"{have} of {len(report.nodes)} nodes have the model, whole and identical."
    failures = [
        card(node.node, "bad", f"{node.error} {node.fix}".strip(), items(_left(node)))
        for node in report.nodes
        if node.error
    ]
    notes = [f"{node.node}: {note}" for node in report.nodes if not node.error for note in node.notes]
    saved = f"The record is {report.path}" if report.path else ""
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


def _left(node: NodeSync) -> list[str]:
    """What a copy that failed leaves, and what was tried in vain."""
    return [*([kept_words(node.kept)] if node.kept else []), *node.notes]


def _copy_row(one: dict[str, Any]) -> list[str]:
    done = f"{one['done_bytes'] / 1e6:.0f} of {one['total_bytes'] / 1e6:.0f} MB"
    rate = "-" if not one.get("rate") else f"{one['rate'] / 1e6:.0f}"
    left = "-" if one.get("eta_s") is None else f"{one['eta_s']:.0f} s"
    return [one["node"], str(one.get("route") or "-"), done, rate, left]
