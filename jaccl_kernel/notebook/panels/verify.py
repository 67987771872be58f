"""Verify's panel: the gates in order, each with its proof, its time, and the fix of what keeps it shut."""

from typing import Any

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps.verify import VerifyReport, verify
from jaccl_kernel.wire import HOST, Event

STATES = {"passed": "good", "failed": "bad", "not tested": "none"}


class VerifyPanel(BringUpPanel):
    """Every gate from ssh to right sums on the ranks. `report` holds the last VerifyReport.

    Args:
        hostfile: another cluster than the notebooks'.
        python: the interpreter on every node; None for the notebooks' choice.
    """

    def __init__(self, hostfile: Hostfile | None = None, *, python: str | None = None) -> None:
        self._python = python
        self._gates: list[dict[str, Any]] = []
        super().__init__("Verify", hostfile)

    def prepare(self) -> Step:
        """All gates."""
        cluster = self.cluster()
        python = self._python or session.python_for(cluster.hostfile)
        self._gates = []
        return lambda on_event: verify(cluster, python=python, on_event=on_event)

    def hear(self, event: Event) -> None:
        """Show each gate as it is passed, or not."""
        if event.rank == HOST and event.kind == "gate":
            self._gates.append(dict(event.data))
            self.result.value = blocks.page(*map(gate_block, self._gates))

    def show(self, report: VerifyReport) -> None:
        """The whole report."""
        self.result.value = blocks.page(*report_blocks(report))


def report_blocks(report: VerifyReport) -> list[str]:
    """A report as HTML."""
    failed = any(gate.verdict == "failed" for gate in report.gates)
    state = "good" if report.ok else "bad" if failed else "none"
    saved = f"The record is {report.path}" if report.path else "The record was not saved."
    return [
        blocks.verdict(report.summary, state),
        *(gate_block(gate.to_json()) for gate in report.gates),
        items(report.notes),
        blocks.paragraph(saved, quiet=True),
    ]


def gate_block(gate: dict[str, Any]) -> str:
    """One gate, as `Gate.to_json` tells it."""
    more = [f"{problem['where']}: {problem['message']}" for problem in gate["problems"][1:]]
    return card(
        gate["title"],
        STATES[gate["verdict"]],
        f"{gate['verdict']} ({gate['seconds']:.1f} s)",
        blocks.paragraph(gate["proof"], quiet=True),
        items(more),
        blocks.paragraph(f"Fix: {gate['fix']}") if gate["fix"] else "",
    )
