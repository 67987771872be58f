"""The panel of `hostfile`: the cabling as a diagram, cable changes, the matching hostfile and its changes.

Writing the file and changing the Macs' network are separate actions, after their effect is shown.
"""

from pathlib import Path

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook.panels.base import hint
from jaccl_kernel.notebook.panels.bringup import BringUpPanel, Step, card, items
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.steps import network
from jaccl_kernel.steps.hostfile.configure import ConfigureReport, configure, write
from jaccl_kernel.topology.diagram import headline, svg

SHARED = "rehearsal.json"  # belongs to the project: what is written goes beside it


class HostfilePanel(BringUpPanel):
    """Makes the hostfile that matches the cables. `report` holds the last ConfigureReport."""

    def __init__(self, hostfile: Hostfile | None = None) -> None:
        self.write_button = widgets.Button(description="Write hostfile", icon="save", disabled=True)
        self.yes = widgets.Checkbox(False, description="Confirm: change these Macs' network", indent=False)
        self.apply_button = widgets.Button(description="Apply", icon="wrench", disabled=True)
        self.undo_button = widgets.Button(description="Undo network", icon="undo")
        self.written = widgets.HTML()
        self._found: ConfigureReport | None = None
        self.write_button.on_click(lambda _: self.write())
        self.apply_button.on_click(lambda _: self.apply())
        self.undo_button.on_click(lambda _: self.undo())
        super().__init__("Hostfile", hostfile)
        self.run_button.description = "Scan"
        self.add_below(
            widgets.HBox([self.write_button, self.written]),
            widgets.HBox([self.yes, self.apply_button, self.undo_button]),
            hint("Network commands run only after confirmation, with sudo -n, and leave an undo script."),
        )

    def prepare(self) -> Step:
        """Scan and propose; nothing is written."""
        cluster = self.cluster()
        path = _target(cluster.hostfile.path)
        return lambda on_event: configure(cluster, path=path, on_event=on_event)

    def write(self) -> Path | None:
        """Write the proposed hostfile; all notebooks use it from now on."""
        if self._found is None or not self._found.ok:
            return None
        try:
            done = write(self._found)
            assert done.written
            path = done.written.path
            self.use(path)
        except JacclError as error:
            self.written.value = blocks.page(blocks.error(error))
            return None
        kept = f" The previous one is kept as {done.written.kept}." if done.written.kept else ""
        text = f"Wrote {path}. All notebooks use it now.{kept}"
        self.written.value = blocks.page(blocks.verdict(text, "good"))
        self.write_button.disabled = True
        return path

    def forget(self) -> None:
        """Neither write nor apply what was found on other Macs."""
        self._found = None
        self.yes.value = False
        self.write_button.disabled = self.apply_button.disabled = True
        self.written.value = ""

    def apply(self) -> None:
        """Run the network commands that are shown; refused without confirmation."""
        with self.cluster_lock:
            found, agreed = self._found, bool(self.yes.value)
            if found is None or not agreed:
                self._refuse()
                return
            cluster = self.cluster()
            self.act(lambda on_event: network.apply(cluster, found.network, yes=agreed, on_event=on_event))

    def undo(self) -> None:
        """Undo the network set-up; refused without confirmation."""
        with self.cluster_lock:
            agreed = bool(self.yes.value)
            if not agreed:
                self._refuse()
                return
            cluster = self.cluster()
            self.act(lambda on_event: network.undo(cluster, yes=agreed, on_event=on_event))

    def show(self, report: ConfigureReport | network.ApplyReport | network.UndoReport) -> None:
        """Show the report of any action."""
        if isinstance(report, ConfigureReport):
            self._found = report
            self.write_button.disabled = not report.ok or not report.difference
            self.apply_button.disabled = not report.network.steps
            self.written.value = ""
            self.result.value = blocks.page(*report_blocks(report))
            return
        self.yes.value = False
        self.apply_button.disabled = True
        self.result.value = blocks.page(*_changed(report))

    def _refuse(self) -> None:
        error = InputError("not confirmed", fix="Read the commands, then tick the box.")
        self.error_view.value = blocks.page(blocks.error(error))


def report_blocks(report: ConfigureReport) -> list[str]:
    """A report as HTML: diagram, cable changes, problems, hostfile changes, network commands."""
    proposal = report.proposal
    state = "good" if report.ready else "fair" if report.ok else "bad"
    parts = [
        blocks.verdict(headline(report.wiring), state),
        f'<div class="jk-figure">{svg(report.wiring)}</div>',
    ]
    if proposal.moves:
        parts += [blocks.paragraph("Recommended cable changes:"), items(proposal.moves)]
    if proposal.problems:
        parts.append(blocks.problems(proposal.problems))
    if report.unreadable:
        parts.append(blocks.paragraph(report.unreadable))
    if report.explained:
        parts += [blocks.paragraph("Problems in the current hostfile:")]
        parts.append(blocks.problems(report.explained))
    parts.append(items(proposal.notes))
    if report.difference:
        changes = "\n".join(report.difference.lines)
        parts += [blocks.paragraph("Changes:"), items(report.difference.sentences)]
        parts.append(blocks.folded("Changes line by line", blocks.to_copy(changes, str(report.path))))
    elif report.ok:
        parts.append(blocks.verdict(f"{report.path.name} matches the cables.", "good"))
    if proposal.findings:
        parts += [blocks.paragraph("To fix before a job can run:"), blocks.problems(proposal.findings)]
    if report.network.steps:
        parts.append(blocks.to_copy(report.network.text(), "Network set-up per Mac, with its undo"))
    return parts


def _target(path: Path | None) -> Path | None:
    if path is not None and path.name == SHARED:
        return path.with_name("rehearsal.local.json")
    return path


def _changed(report: network.ApplyReport | network.UndoReport) -> list[str]:
    if isinstance(report, network.UndoReport):
        results = {**report.outcomes, **report.errors}
        return [
            card(name, "bad" if name in report.errors else "good", text) for name, text in results.items()
        ]
    text = f"{len(report.done)} of {len(report.plan.steps)} steps done."
    undo = [f"Undo script: {path}" for path in report.undo_files]
    parts = [blocks.verdict(text, "good" if report.ok else "bad"), items(undo)]
    if report.ok:
        return parts
    fix, _, commands = report.fix.partition("\n")
    parts.append(blocks.paragraph(f"{report.error} Fix: {fix}"))
    return [*parts, blocks.to_copy(commands, "Commands per Mac, with their undo")] if commands else parts
