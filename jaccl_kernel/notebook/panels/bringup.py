"""The base of the bring-up panels: the notebooks' cluster, its banner, and actions beside Run."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import OnEvent, StepPanel
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.cluster import Cluster

Step = Callable[[OnEvent], Coroutine[Any, Any, Any]]


class BringUpPanel(StepPanel):
    """A step's panel on the notebooks' cluster, whose hostfile is read again for every run.

    Args:
        title: the step's name.
        hostfile: another cluster than the notebooks'.
        choices: see StepPanel.
    """

    def __init__(
        self, title: str, hostfile: Hostfile | None = None, *, choices: Sequence[widgets.Widget] = ()
    ) -> None:
        self._given = hostfile
        with without_traceback():
            found = self.hostfile()
        simulated = homes.is_rehearsal(found)
        super().__init__(
            title,
            subtitle=f"{found.path.name if found.path else 'built-in rehearsal'}: "
            + ", ".join(host.name for host in found.hosts),
            banner=blocks.rehearsal(homes.NOTE) if simulated else "",
            names=[host.name for host in found.hosts],
            choices=choices,
        )

    def hostfile(self) -> Hostfile:
        """The hostfile as it is now."""
        return self._given if self._given is not None else session.current()

    def cluster(self) -> Cluster:
        """The cluster as it is now."""
        return Cluster.of(self.hostfile())

    def act(self, step: Step) -> None:
        """Start another action than Run's. Its report goes to `show` too; an error is shown in the panel."""
        try:
            self._work.start(lambda: self._step(step))
        except JacclError as error:
            self.error_view.value = blocks.page(blocks.error(error))

    def add_below(self, *more: widgets.Widget) -> None:
        """Put widgets between the result and the log."""
        *above, log = self.children  # type: ignore[has-type]
        self.children = (*above, *more, log)


def card(title: str, state: str, text: str, *inside: str) -> str:
    """One item: its state as a mark and in words, and its details."""
    return f'<div class="jk-card">{blocks.verdict(f"{title}: {text}", state)}{"".join(inside)}</div>'


def items(texts: Sequence[str]) -> str:
    """Sentences as a list; "" for none."""
    return f"<ul>{''.join(f'<li>{blocks.escape(text)}</li>' for text in texts)}</ul>" if texts else ""
