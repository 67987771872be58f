"""The panel of `enable`: the RDMA state of each Mac, the reasons, and its steps as a saved checklist."""

import ipywidgets as widgets

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps import checklist
from jaccl_kernel.steps.enable import MEANING, EnableReport, Light, enable

STATES = {"ready": "good", "off": "bad", "unsupported": "bad", "unknown": "none"}


class EnablePanel(BringUpPanel):
    """Shows which Macs are ready for RDMA, and the steps for the others. Scan again after each step."""

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self.tasks = widgets.VBox()
        super().__init__("Enable RDMA", hostfile)
        self.run_button.description = "Scan"
        self.add_below(self.tasks)

    def prepare(self) -> Step:
        """The scan."""
        cluster = self.cluster()
        return lambda on_event: enable(cluster, on_event)

    def show(self, report: EnableReport) -> None:
        """Show the states, the cables and the checklists."""
        self.result.value = blocks.page(*report_blocks(report))
        self.tasks.children = [
            box for light in report.lights if light.tasks for box in _checklist(light, report.rehearsal)
        ]


def report_blocks(report: EnableReport) -> list[str]:
    """A report as HTML."""
    ready = sum(light.kind == "ready" for light in report.lights)
    text = f"{ready} of {len(report.lights)} Macs are ready for RDMA."
    links = [
        [link.a, link.b, "?" if link.gbps is None else f"{link.gbps:g}", link.speed, link.seen]
        for link in report.links
    ]
    columns = ("Mac", "Mac", "Gb/s", "speed", "detected at")
    return [
        blocks.verdict(text, "good" if report.ok else "bad"),
        *(
            card(
                light.name,
                STATES[light.kind],
                MEANING[light.kind],
                items([*light.reasons, *light.hints]),
                blocks.paragraph(_what(light), quiet=True),
            )
            for light in report.lights
        ),
        items(report.notes),
        blocks.folded(f"{len(links)} cables", blocks.table(columns, links)) if links else "",
    ]


def _what(light: Light) -> str:
    macos = f"macOS {light.macos} ({light.build})" if light.macos else "macOS unknown"
    return f"{light.chip or 'chip unknown'}, {macos}"


def _checklist(light: Light, rehearsal: bool) -> list[widgets.Widget]:
    title = widgets.HTML(blocks.page(blocks.paragraph(f"Steps at {light.name}:")))
    boxes = []
    for task in light.tasks:
        box = widgets.Checkbox(task.done, description=task.text, indent=False)
        box.layout.width = "auto"
        box.observe(
            lambda change, text=task.text: checklist.tick(
                light.name, text, done=bool(change["new"]), rehearsal=rehearsal
            ),
            "value",
        )
        boxes.append(box)
    return [title, *boxes]
