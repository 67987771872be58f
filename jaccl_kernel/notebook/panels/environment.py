"""The environment's panel: the same working Python on every node, what differs, and how to make it so."""

import ipywidgets as widgets

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import hint
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps import environment
from jaccl_kernel.steps.environment import ApplyReport, EnvironmentPlan, EnvironmentReport

DIFFERS = " ← differs"
OUTCOMES = {"made": "good", "kept": "good"}


class EnvironmentPanel(BringUpPanel):
    """Run checks, and changes nothing; "Show commands" plans; "Create" does it, after a yes.

    An interpreter that is proven on every Mac is what the other notebooks' jobs run with from then on.
    """

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self._plan: EnvironmentPlan | None = None
        self.plan_button = widgets.Button(description="Show commands", icon="list")
        self.yes = widgets.Checkbox(False, description="Yes, make it on these Macs", indent=False)
        self.apply_button = widgets.Button(description="Create", icon="wrench", disabled=True)
        self.plan_button.on_click(lambda _: self.plan())
        self.apply_button.on_click(lambda _: self.apply())
        super().__init__("Environment", hostfile)
        self.run_button.description = "Check"
        self.add_below(
            widgets.HBox([self.plan_button, self.yes, self.apply_button]),
            hint("Nothing is changed on a Mac before the commands were shown and the box is ticked."),
        )

    def prepare(self) -> Step:
        """The check."""
        cluster = self.cluster()
        return lambda on_event: environment.check(cluster, on_event=on_event)

    def plan(self) -> None:
        """Work out the commands and show them."""
        cluster = self.cluster()
        self.act(lambda on_event: environment.plan(cluster, on_event=on_event))

    def apply(self) -> None:
        """Carry the shown commands out; refused without the tick."""
        plan, agreed = self._plan, bool(self.yes.value)
        if plan is None or not agreed:
            error = InputError("nothing is made without a yes", fix="Show the commands, then tick the box.")
            self.trouble.value = blocks.page(blocks.error(error))
            return
        self.act(lambda on_event: environment.apply(plan, yes=agreed, on_event=on_event))

    def show(self, report: EnvironmentReport | EnvironmentPlan | ApplyReport) -> None:
        """Whatever the action led to."""
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
    """The check as HTML: what differs is marked in words, not by colour."""
    text = "The same working environment on every node." if report.ok else "The environments need work."
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
        blocks.paragraph(f"For jobs: {report.python or 'no interpreter is the same everywhere'}", quiet=True),
    ]


def _plan_blocks(plan: EnvironmentPlan) -> list[str]:
    return [
        blocks.paragraph(f"What would make {plan.path} on every node:"),
        *(
            card(
                node.name,
                "bad" if node.action == "cannot" else "none",
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
            blocks.folded("Its last words", blocks.to_copy("\n".join(node.last_words), "last lines"))
            if node.last_words
            else "",
        )
        for node in report.nodes
    ]
