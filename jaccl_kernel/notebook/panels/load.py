"""The panel of the load test: clients, prompts and answers for the running server, and the latencies."""

from collections.abc import Callable, Coroutine
from typing import Any

from IPython.display import display

from jaccl_kernel.core.events import Event, PointMeasured
from jaccl_kernel.notebook import prompting
from jaccl_kernel.notebook.loadtest import Load, LoadTest
from jaccl_kernel.notebook.panels.base import OnEvent, StepPanel, hint
from jaccl_kernel.notebook.panels.sweep import axis, number, numbers, report_blocks, table
from jaccl_kernel.notebook.prompting import Server
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.report.record import LoadReport


class LoadPanel(StepPanel):
    """Sends load to a server. `report` holds the last LoadReport, also of a stopped test.

    Args:
        at: the server; None for the running one.
        load: the first values.
    """

    def __init__(self, at: Server | None = None, load: Load | None = None) -> None:
        load = load or Load()
        self.at = at
        self._test: LoadTest | None = None
        self.clients = axis(load.clients, "Clients")
        self.prompts = axis(load.prompt_tokens, "Prompt tokens")
        self.answers = axis(load.max_tokens, "New tokens")
        self.requests = axis((load.requests,), "Requests each")
        super().__init__(
            "Load test",
            subtitle=at.name if at else "of the running server",
            choices=[
                *(self.clients, self.prompts, self.answers, self.requests),
                hint("Numbers with commas; every combination is measured."),
                hint("Each client sends its next request when it has an answer."),
            ],
        )  # fmt: skip

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """The test with the present choices."""
        at = self.at or prompting.server()
        requests = number(self.requests.value, "Requests each")
        load = Load(
            numbers(self.clients.value, "Clients"),
            numbers(self.prompts.value, "Prompt tokens"),
            numbers(self.answers.value, "New tokens"),
            requests,
        )
        load.points()

        async def step(on_event: OnEvent) -> LoadReport:
            self._test = LoadTest(load, at, on_event)
            return await self._test.run()

        return step

    def on_event(self, event: Event) -> None:
        """Add each point to the table."""
        if isinstance(event.body, PointMeasured) and self._test:
            banner = blocks.rehearsal(homes.NOTE) if self._test.at.rehearsal else ""
            self.result.value = blocks.page(banner, table({"kind": "load", "points": self._test.points}))

    def show(self, report: LoadReport) -> None:
        """The whole report."""
        simulated = report.record["provenance"]["rehearsal"]
        banner = blocks.rehearsal(homes.NOTE) if simulated else ""
        self.result.value = blocks.page(banner, *report_blocks(report))


async def load(at: Server | None = None, **axes: Any) -> LoadReport:
    """Show a LoadPanel with these axes (as of `Load`) and run it: `report = await load(clients=(1, 8))`.

    Raises:
        JacclError: see LoadTest.run.
    """
    panel = LoadPanel(at, Load(**axes))
    display(panel)
    with without_traceback():
        panel.start()
    report: LoadReport = await panel.wait()
    return report
