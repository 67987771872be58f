"""The base of the panels of a cluster: its heading follows the notebooks' choice, and so do its actions.

What a panel found on one cluster is marked, and never acted on, when the notebooks use another one.
"""

import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import OnEvent, StepPanel
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.cluster import Cluster

Step = Callable[[OnEvent], Coroutine[Any, Any, Any]]


class BringUpPanel(StepPanel):
    """A step's panel on the notebooks' cluster, which it follows: the hostfile may change at any time.

    Args:
        title: the step's name.
        hostfile: another cluster than the notebooks'.
        choices: see StepPanel.
    """

    def __init__(
        self, title: str, hostfile: Hostfile | None = None, *, choices: Sequence[widgets.Widget] = ()
    ) -> None:
        self._given = hostfile
        self.cluster_lock = threading.RLock()
        with without_traceback():
            self._shown = self.hostfile()
        super().__init__(title, names=[host.name for host in self._shown.hosts], choices=choices)
        self._show_heading()
        if hostfile is None:
            session.follow(self.follow)

    # what a panel may define

    def adapt(self) -> None:
        """Fit the choices to another cluster."""

    def forget(self) -> None:
        """Drop what was found on other Macs, and disable the actions that need it."""

    # what all panels of a cluster share

    def hostfile(self) -> Hostfile:
        """The hostfile as it is now.

        Raises:
            HostfileError: it is missing or invalid.
        """
        return self._given if self._given is not None else session.current()

    def cluster(self) -> Cluster:
        """The cluster as it is now."""
        return Cluster.of(self.hostfile())

    def follow(self) -> bool:
        """Show the cluster as it is now; True if it has changed. During a run, it waits for the end."""
        with self.cluster_lock:
            return not self.running and self._follow()

    def use(self, path: Path) -> None:
        """Make the notebooks use this panel's own hostfile: what the panel shows stays true."""
        with self.cluster_lock:
            self._shown = session.choose_hostfile(path)
            self._show_heading()

    def start(self) -> None:
        """Start the step on the cluster as it is now, and return at once."""
        with self.cluster_lock:
            self.follow()
            super().start()

    def act(self, step: Step) -> None:
        """Start another action than Run's. Its report goes to `show` too; an error is shown in the panel.

        It is refused if the cluster is not the one that the panel showed. An action on what was found holds
        `cluster_lock` from reading it, so that the panel cannot follow in between.
        """
        with self.cluster_lock:
            try:
                if self.follow():
                    raise InputError(
                        f"the cluster changed: it is {_title(self._shown)} now",
                        fix="Check that these are the Macs you mean, then start again.",
                    )
                self._work.start(lambda: self._step(step))
            except JacclError as error:
                self.error_view.value = blocks.page(blocks.error(error))

    def add_below(self, *more: widgets.Widget) -> None:
        """Put widgets between the result and the log."""
        *above, log = self.children  # type: ignore[has-type]
        self.children = (*above, *more, log)

    async def _step(self, step: Step) -> Any:
        self._outdate("")
        return await super()._step(step)

    def _ended(self, report: Any, error: BaseException | None) -> None:
        super()._ended(report, error)
        with self.cluster_lock:
            self._follow()

    def _follow(self) -> bool:
        try:
            now = self.hostfile()
        except JacclError:
            return False  # every action says so
        before, self._shown = self._shown, now
        if _identity(now) == _identity(before):
            return False
        self._show_heading()
        if _macs(now) != _macs(before):
            self.forget()
        self.adapt()
        if self.result.value != blocks.page():
            self._outdate(f"Found on {_title(before)}, before the cluster changed.")
        return True

    def _show_heading(self) -> None:
        found = self._shown
        self._names = tuple(host.name for host in found.hosts)
        self.progress_view.rename(self._names)
        banner = blocks.rehearsal(homes.NOTE) if homes.is_rehearsal(found) else ""
        self.heading_view.value = blocks.page(banner, blocks.heading(self._title, _title(found)))

    def _outdate(self, why: str) -> None:
        """Mark the result as another cluster's; "" removes the mark."""
        self.outdated_view.value = blocks.page(blocks.verdict(f"{why} Run it again.", "fair")) if why else ""
        (self.result.add_class if why else self.result.remove_class)("jk-outdated")


def _title(hostfile: Hostfile) -> str:
    file = hostfile.path.name if hostfile.path else "built-in rehearsal"
    return f"{file}: {', '.join(host.name for host in hostfile.hosts)}"


def _identity(hostfile: Hostfile) -> tuple[object, ...]:
    return hostfile.path, hostfile.digest(), _macs(hostfile)


def _macs(hostfile: Hostfile) -> tuple[object, ...]:
    return homes.is_rehearsal(hostfile), [(host.name, host.ssh) for host in hostfile.hosts]


def card(title: str, state: str, text: str, *inside: str) -> str:
    """One item: its state as a mark and in words, and its details."""
    return f'<div class="jk-card">{blocks.verdict(f"{title}: {text}", state)}{"".join(inside)}</div>'


def items(texts: Sequence[str]) -> str:
    """Sentences as a list; "" for none."""
    return f"<ul>{''.join(f'<li>{blocks.escape(text)}</li>' for text in texts)}</ul>" if texts else ""
