"""Troubleshooting's panel: paste what you saw; look for what is left on the Macs, and end it after a yes."""

from collections.abc import Sequence

import ipywidgets as widgets

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError
from jaccl_kernel.notebook.panels.base import STYLE, html_block, wide
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps import troubleshoot
from jaccl_kernel.steps.troubleshoot import EndReport, Finding, LookReport


class TroubleshootPanel(BringUpPanel):
    """Explain tells what a text means; Look changes nothing; "End them" does, after a tick."""

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self._found: LookReport | None = None
        self.text = widgets.Textarea(
            "", rows=5, description="What you saw", placeholder="An error, or a whole log", style=STYLE,
            layout=wide(),
        )  # fmt: skip
        self.explain_button = widgets.Button(description="Explain", icon="search")
        self.meaning = html_block()
        self.yes = widgets.Checkbox(False, description="Yes, end these processes", indent=False)
        self.end_button = widgets.Button(description="End them", icon="power-off", disabled=True)
        self.explain_button.on_click(lambda _: self.explain())
        self.end_button.on_click(lambda _: self.end())
        super().__init__("Troubleshoot", hostfile, choices=[self.text, self.explain_button, self.meaning])
        self.run_button.description = "Look for what is left"
        self.run_button.layout.width = "auto"
        self.add_below(widgets.HBox([self.yes, self.end_button]))

    def explain(self) -> None:
        """What the text means."""
        found = troubleshoot.explain(self.text.value)
        self.meaning.value = blocks.page(*finding_blocks(found))

    def prepare(self) -> Step:
        """The look."""
        cluster = self.cluster()
        return lambda on_event: troubleshoot.look(cluster, on_event=on_event)

    def end(self) -> None:
        """End what was found; refused without the tick."""
        found, agreed = self._found, bool(self.yes.value)
        if found is None or not agreed:
            error = InputError("nothing is ended without a yes", fix="Look at the list, then tick the box.")
            self.trouble.value = blocks.page(blocks.error(error))
            return
        cluster = self.cluster()
        self.act(lambda on_event: troubleshoot.end(cluster, found, yes=agreed, on_event=on_event))

    def show(self, report: LookReport | EndReport) -> None:
        """Whatever the action led to."""
        if isinstance(report, EndReport):
            self.yes.value, self.end_button.disabled, self._found = False, True, None
            self.result.value = blocks.page(*_end_blocks(report))
            return
        self._found = report
        self.end_button.disabled = not any(node.processes for node in report.nodes)
        self.result.value = blocks.page(*look_blocks(report))


def finding_blocks(found: Sequence[Finding]) -> list[str]:
    """Known lines as HTML, first causes first."""
    if not found:
        return [blocks.verdict("Nothing in it is known here. The first rank that ended knows most.", "none")]
    return [
        card(
            "Follows from another rank's end" if one.secondary else "Cause",
            "none" if one.secondary else "bad",
            one.cause,
            blocks.paragraph(one.line, quiet=True),
            blocks.paragraph(f"Fix: {one.fix}"),
        )
        for one in found
    ]


def look_blocks(report: LookReport) -> list[str]:
    """What a look has found."""
    parts = []
    for node in report.nodes:
        if node.error:
            parts.append(card(node.node, "none", "not known", blocks.paragraph(node.error, quiet=True)))
            continue
        told = f"{len(node.processes)} processes of jobs" if node.processes else "nothing of a job runs"
        rows = [(str(one.pid), one.what, one.age, one.command[:100]) for one in node.processes]
        inside = [blocks.table(("pid", "what", "up for", "command"), rows)] if rows else []
        parts.append(card(node.node, "fair" if rows else "good", told, *inside))
    parts += [blocks.verdict(told, "fair") for told in report.servers]
    for log in report.logs:
        title = f"{log.path.name} of job {log.job}, {log.age_s / 3600:.1f} h old"
        parts.append(
            blocks.folded(title, *finding_blocks(log.findings), blocks.paragraph(str(log.path), quiet=True))
        )
    return parts


def _end_blocks(report: EndReport) -> list[str]:
    states = {"ended": "good", "gone": "good", "killed": "fair"}
    return [
        *(
            blocks.verdict(f"{one.node}: process {one.pid} {one.outcome}", states.get(one.outcome, "bad"))
            for one in report.ended
        ),
        *(blocks.verdict(error, "bad") for error in report.errors),
        *([blocks.paragraph(report.note)] if report.note else []),
    ]
