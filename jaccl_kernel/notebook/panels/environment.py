"""The panel of `environment`: the Python environment of every node, its differences, and its creation."""

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import hint
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps.environment import environment
from jaccl_kernel.steps.environment.environment import ApplyReport, EnvironmentPlan, EnvironmentReport

DIFFERS = " ← differs"
OUTCOMES = {"created": "good", "unchanged": "good"}


class EnvironmentPanel(BringUpPanel):
    """Check changes nothing; "Show commands" plans; "Create" runs the commands, after confirmation.

    An interpreter that works on every Mac becomes the interpreter of the other notebooks' jobs.
    """

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self._plan: EnvironmentPlan | None = None
        self.plan_button = widgets.Button(description="Show commands", icon="list")
        self.yes = widgets.Checkbox(False, description="Confirm: create it on these Macs", indent=False)
        self.apply_button = widgets.Button(description="Create", icon="wrench", disabled=True)
        self.plan_button.on_click(lambda _: self.plan())
        self.apply_button.on_click(lambda _: self.apply())
        super().__init__("Environment", hostfile)
        self.run_button.description = "Check"
        self.add_below(
            widgets.HBox([self.plan_button, self.yes, self.apply_button]),
            hint("A Mac is changed only after the commands are shown and the box is ticked."),
        )

    def prepare(self) -> Step:
        """The check."""
        cluster = self.cluster()
        return lambda on_event: environment.check(cluster, on_event=on_event)

    def plan(self) -> None:
        """Show the commands."""
        cluster = self.cluster()
        self.act(lambda on_event: environment.plan(cluster, on_event=on_event))

    def forget(self) -> None:
        """Drop the plan for other Macs."""
        self._plan = None
        self.yes.value = False
        self.apply_button.disabled = True

    def apply(self) -> None:
        """Run the shown commands; refused without confirmation."""
        plan, agreed = self._plan, bool(self.yes.value)
        if plan is None or not agreed:
            error = InputError("not confirmed", fix="Show the commands, then tick the box.")
            self.error_view.value = blocks.page(blocks.error(error))
            return
        self.act(lambda on_event: environment.apply(plan, yes=agreed, on_event=on_event))

    def show(self, report: EnvironmentReport | EnvironmentPlan | ApplyReport) -> None:
        """Show the report of any action."""
        if isinstance(report, EnvironmentPlan):
            self._plan = report
            self.apply_button.disabled = not report.ok
            self.result.value = blocks.page(*_plan_blocks(report))
        elif isinstance(report, ApplyReport):
            self.yes.value = False
            self.result.value = blocks.page(*_apply_blocks(report))
        else:
            self.result.value = blocks.page(*report_blocks(report))
            if report.ok and report.python and not report.rehearsal:
                session.choose_python(report.python)


def report_blocks(report: EnvironmentReport) -> list[str]:
    """The check as HTML; differences are marked in words, not by colour."""
    text = "Every node has the same working environment." if report.ok else "The environments differ or fail."
    columns = ["package", *(node.name for node in report.nodes)]
    rows = [
        [
            row.package,
            *(f"{cell.value or 'missing'}{DIFFERS if cell.differs else ''}" for cell in row.cells),
        ]
        for row in report.rows
    ]
    rows.append(["imports", *(node.proof for node in report.nodes)])
    return [
        blocks.verdict(text, "good" if report.ok else "bad"),
        blocks.table(columns, rows),
        blocks.problems(report.problems) if report.problems else "",
        blocks.paragraph(f"For jobs: {report.python or 'no common interpreter'}", quiet=True),
    ]


def _plan_blocks(plan: EnvironmentPlan) -> list[str]:
    return [
        blocks.paragraph(f"Commands that create {plan.path} on every node:"),
        *(
            card(
                node.name,
                "bad" if node.action == "skip" else "none",
                f"{node.action}. {node.why} {node.fix}".strip(),
                blocks.folded("Commands", blocks.to_copy("\n".join(node.commands), node.name))
                if node.commands
                else "",
            )
            for node in plan.nodes
        ),
    ]


def _apply_blocks(report: ApplyReport) -> list[str]:
    return [
        card(
            node.name,
            OUTCOMES.get(node.outcome, "bad"),
            f"{node.outcome} {node.at} {node.error}".strip(),
            blocks.folded("Last lines", blocks.to_copy("\n".join(node.last_lines), "last lines"))
            if node.last_lines
            else "",
        )
        for node in report.nodes
    ]
