"""The panel of `troubleshoot`: explain an error, find leftover processes on the Macs, and end them."""

from collections.abc import Sequence

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.launch.diagnose import Explanation
from jaccl_kernel.notebook.panels.base import STYLE, html_block, wide
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps import troubleshoot
from jaccl_kernel.steps.troubleshoot import EndReport, LookReport
from jaccl_kernel.steps.verify.live_checks import Process


class TroubleshootPanel(BringUpPanel):
    """Explains a text; finds leftover processes; ends them after confirmation."""

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self._found: LookReport | None = None
        self.text = widgets.Textarea(
            "", rows=5, description="Error or log", placeholder="Paste an error or a whole log", style=STYLE,
            layout=wide(),
        )  # fmt: skip
        self.explain_button = widgets.Button(description="Explain", icon="search")
        self.meaning = html_block()
        self.yes = widgets.Checkbox(False, description="Confirm: end these processes", indent=False)
        self.end_button = widgets.Button(description="End processes", icon="power-off", disabled=True)
        self.explain_button.on_click(lambda _: self.explain())
        self.end_button.on_click(lambda _: self.end())
        super().__init__("Troubleshoot", hostfile, choices=[self.text, self.explain_button, self.meaning])
        self.run_button.description = "Find leftover processes"
        self.run_button.layout.width = "auto"
        self.add_below(widgets.HBox([self.yes, self.end_button]))

    def explain(self) -> None:
        """Explain the text."""
        found = troubleshoot.explain(self.text.value)
        self.meaning.value = blocks.page(*finding_blocks(found))

    def prepare(self) -> Step:
        """The search for leftover processes."""
        cluster = self.cluster()
        return lambda on_event: troubleshoot.look(cluster, on_event=on_event)

    def forget(self) -> None:
        """Never end processes by the numbers that they have on other Macs."""
        self._found = None
        self.yes.value = False
        self.end_button.disabled = True

    def end(self) -> None:
        """End the processes that were found; refused without confirmation."""
        with self.cluster_lock:
            found, agreed = self._found, bool(self.yes.value)
            if found is None or not agreed:
                error = InputError("not confirmed", fix="Read the list, then tick the box.")
                self.error_view.value = blocks.page(blocks.error(error))
                return
            cluster = self.cluster()
            self.act(lambda on_event: troubleshoot.end(cluster, found, yes=agreed, on_event=on_event))

    def show(self, report: LookReport | EndReport) -> None:
        """Show the report of any action."""
        if isinstance(report, EndReport):
            self.yes.value, self.end_button.disabled, self._found = False, True, None
            self.result.value = blocks.page(*_end_blocks(report))
            return
        self._found = report
        self.end_button.disabled = not any(one.ours for node in report.nodes for one in node.processes)
        self.result.value = blocks.page(*look_blocks(report))


def finding_blocks(found: Sequence[Explanation]) -> list[str]:
    """Known errors as HTML, root causes first."""
    if not found:
        return [blocks.verdict("No known error found. Read the log of the rank that ended first.", "none")]
    return [
        card(
            "Result of another failure" if one.secondary else "Cause",
            "none" if one.secondary else "bad",
            one.causes[0].cause,
            blocks.paragraph(one.line, quiet=True),
            blocks.table(
                ("cause, most likely first", "check", "fix"),
                [(cause.cause, cause.check, cause.fix) for cause in one.causes],
            ),
        )
        for one in found
    ]


def look_blocks(report: LookReport) -> list[str]:
    """The report of a search as HTML."""
    parts = []
    for node in report.nodes:
        if node.error:
            parts.append(card(node.node, "none", "not tested", blocks.paragraph(node.error, quiet=True)))
            continue
        count = f"{len(node.processes)} job processes"
        rows = [(str(one.pid), _program(one), one.age, one.command[:100]) for one in node.processes]
        inside = [blocks.table(("pid", "program", "running for", "command"), rows)] if rows else []
        parts.append(card(node.node, "fair" if rows else "good", count, *inside))
    parts += [blocks.verdict(text, "fair") for text in report.servers]
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


def _program(process: Process) -> str:
    return process.what if process.ours else f"{process.what} (not ended here)"
