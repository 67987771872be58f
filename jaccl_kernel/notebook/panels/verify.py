"""The panel of `verify`: the checks in order, each with its proof, time and fix."""

from jaccl_kernel.core.events import Event
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps.verify.checks import Check
from jaccl_kernel.steps.verify.verify import CheckDone, VerifyReport, verify

STATES = {"ok": "good", "failed": "bad", "not tested": "none"}


class VerifyPanel(BringUpPanel):
    """Runs every check from ssh to correct sums on the ranks. `report` holds the last VerifyReport.

    Args:
        hostfile: another cluster than the notebooks'.
        python: the interpreter on every node; None for the notebooks' choice.
    """

    def __init__(self, hostfile: Hostfile | None = None, *, python: str | None = None) -> None:
        self._python = python
        self._checks: list[Check] = []
        super().__init__("Verify", hostfile)

    def prepare(self) -> Step:
        """All checks."""
        cluster = self.cluster()
        python = self._python or session.python_for(cluster.hostfile)
        self._checks = []
        return lambda on_event: verify(cluster, python=python, on_event=on_event)

    def on_event(self, event: Event) -> None:
        """Show each check when it is done."""
        if isinstance(event.body, CheckDone):
            self._checks.append(event.body.check)
            self.result.value = blocks.page(*map(check_block, self._checks))

    def show(self, report: VerifyReport) -> None:
        """The whole report."""
        self.result.value = blocks.page(*report_blocks(report))


def report_blocks(report: VerifyReport) -> list[str]:
    """A report as HTML."""
    failed = any(check.verdict == "failed" for check in report.checks)
    state = "good" if report.ok else "bad" if failed else "none"
    saved = f"Record: {report.path or 'not saved'}"
    return [
        blocks.verdict(report.summary, state),
        *map(check_block, report.checks),
        items(report.notes),
        blocks.paragraph(saved, quiet=True),
    ]


def check_block(check: Check) -> str:
    """One check as HTML."""
    return card(
        check.title,
        STATES[check.verdict],
        f"{check.verdict} ({check.seconds:.1f} s)",
        blocks.paragraph(check.proof, quiet=True),
        items([f"{problem.where}: {problem.message}" for problem in check.problems[1:]]),
        blocks.paragraph(f"Fix: {check.fix}") if check.fix else "",
    )
