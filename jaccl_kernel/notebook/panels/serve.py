"""The server's panel: start it, watch it, try it, stop it; and find it again after the kernel was restarted.

The server is a process of its own (`steps/serve/detached.py`): neither this panel's end nor the kernel's is
its end. What the panel shows is read from its folder and asked over HTTP.
"""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.core.events import Event, Failed, Serving
from jaccl_kernel.core.options import ServeOptions
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import STYLE, OnEvent, hint, html_block, row, short
from jaccl_kernel.notebook.panels.bringup import BringUpPanel
from jaccl_kernel.notebook.panels.form import Form
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.views.serving import serving
from jaccl_kernel.notebook.work import Work, without_traceback
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.serve.detached import Running, find_running, start_detached

POLL_S = 1.0
CALLS = {"models": "GET /v1/models", "chat": "POST chat", "completion": "POST completion"}


FIELDS = ("model", "sharding", "host", "port", "restart", "python")


class ServePanel(BringUpPanel):
    """Serves a model over all ranks of the hostfile. `report` holds the steps.serve.detached.Running.

    Args:
        hostfile: another cluster than the notebooks'.
        model: as of ServeOptions; None for the notebooks' choice.
        ranks: number of ranks; None for all (of simulated Macs: as many as run at full speed).
        choices: first values of the other FIELDS, as of ServeOptions.
    """

    def __init__(
        self,
        hostfile: Hostfile | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        ranks: int | None = None,
        **choices: Any,
    ) -> None:
        with without_traceback():
            chosen = str(model or session.read().model or DEMO)
            self.form = form = Form(ServeOptions, FIELDS, model=chosen, **choices)
        self.ranks = widgets.BoundedIntText(1, min=1, description="Ranks", style=STYLE, layout=short())
        self.live = html_block()
        self.answer = html_block()
        self.end_button = widgets.Button(description="Stop server", icon="power-off", disabled=True)
        self.example_buttons = {
            name: widgets.Button(description=text, disabled=True) for name, text in CALLS.items()
        }
        self._watching = Work("the server view", on_end=lambda report, error: None)
        self._requesting = Work("the example request", on_end=self._show_answer)
        self._stop_requested = False
        self._stopping = Work("the server's stop", on_end=self._stopped)
        super().__init__(
            "Serve",
            hostfile,
            choices=[
                form["model"],
                row(self.ranks, form["sharding"]),
                form["host"],
                hint("Any other address than 127.0.0.1 needs an API key: a new one is shown below."),
                row(form["port"], form["restart"]),
                form["python"],
            ],
        )
        given = form["python"].value
        self.adapt()
        form["python"].value = given or form["python"].value
        if ranks is not None:
            self.ranks.value = ranks
        self.run_button.description = "Start"
        self.end_button.on_click(lambda _: self._stop_server())
        for name, button in self.example_buttons.items():
            button.on_click(lambda _, name=name: self._request(name))
        self.add_below(self.live, row(*self.example_buttons.values(), self.end_button), self.answer)
        self.attach()

    def adapt(self) -> None:
        """The ranks and the interpreter of this cluster."""
        hostfile = self.hostfile()
        self.ranks.max = len(hostfile)
        self.ranks.value = homes.usual_ranks(hostfile)
        self.form["python"].value = session.python_for(hostfile) or ""

    def attach(self) -> Running | None:
        """Show a server that is already running; None if there is none."""
        found = next(iter(find_running()), None)
        if found is not None:
            self.show(found)
        return found

    def options(self) -> ServeOptions:
        """The options that are chosen."""
        chosen = self.form.values()
        return ServeOptions(ctrl_port=18080 if chosen["port"] != 18080 else 18081, **chosen)

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """Start the server in a process of its own, and wait until it is ready."""
        options = self.options()
        size = len(self.hostfile())
        if not 1 <= self.ranks.value <= size:
            raise InputError(
                f"requested {self.ranks.value} ranks, but the hostfile has {size} hosts",
                fix=f"Use 1 to {size}.",
            )
        hostfile = self._hostfile_on_disk()

        async def step(on_event: OnEvent) -> Running:
            running = await start_detached(hostfile, options, on_event)
            failures: list[Failed] = []

            def has_started(event: Event) -> bool:
                if isinstance(event.body, Failed):
                    failures.append(event.body)
                    return not options.restart
                return isinstance(event.body, Serving)

            try:
                await running.follow(on_event, has_started)
            except asyncio.CancelledError:
                await asyncio.shield(asyncio.ensure_future(running.stop()))
                raise
            if failures and not running.alive():
                raise JobError(failures[-1].what, where=failures[-1].where, fix=failures[-1].fix)
            return running

        return step

    def show(self, report: Running) -> None:
        """Show the running server, and follow its state."""
        self.report = report
        self._stop_requested = False
        key = report.state.api_key
        shown = blocks.to_copy(key, "API key (OPENAI_API_KEY for clients)") if key else ""
        self.result.value = blocks.page(blocks.to_copy(f"{report.url}/v1", "Base URL for clients"), shown)
        self._watching.stop()
        if not self._watching.running:
            self._watching.start(self._watch)
        self._enable(True)

    async def _watch(self) -> None:
        """Show the server's state until it stops."""
        while True:
            running: Running = self.report
            status = await running.status()
            self.live.value = blocks.page(serving(running.url, status))
            if status["state"] == "stopped":
                self._enable(False)
                return
            await asyncio.sleep(POLL_S)

    def _enable(self, on: bool) -> None:
        for button in (*self.example_buttons.values(), self.end_button):
            button.disabled = not on
        self.run_button.disabled = on

    def _stop_server(self) -> None:
        running: Running = self.report
        if self._stopping.running:
            return
        self._stop_requested = True
        self._enable(False)
        self.end_button.description = "Stopping …"
        self._stopping.start(running.stop)

    def _stopped(self, outcome: str | None, error: BaseException | None) -> None:
        self.end_button.description = "Stop server"
        if error is None:
            self.answer.value = blocks.page(blocks.stopped(f"Server: {outcome}"))
        else:
            self.answer.value = blocks.page(blocks.error(error))
            self._stop_requested = False
            self._enable(True)  # it is still running

    def _request(self, name: str) -> None:
        running: Running = self.report

        async def call() -> tuple[str, dict[str, Any]]:
            status = await running.status()
            if "examples" not in status:
                raise JobError(f"the server is not ready: {status['state']}: {status['stage']}")
            one = next(one for one in status["examples"] if one["name"] == name)
            return one["curl"], await asyncio.to_thread(running.ask, one["path"], one["body"])

        if not self._requesting.running:
            self.answer.value = blocks.page(blocks.paragraph(f"Request: {CALLS[name]} …", quiet=True))
            self._requesting.start(call)

    def _show_answer(self, result: Any, error: BaseException | None) -> None:
        if self._stop_requested:
            return
        if error is not None:
            self.answer.value = blocks.page(blocks.error(error))
        else:
            curl, answer = result
            text = json.dumps(answer, indent=1, ensure_ascii=False)
            self.answer.value = blocks.page(
                blocks.to_copy(curl, "Equivalent command"),
                f'<pre class="jk-pre">{blocks.escape(text)}</pre>',
            )

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        if not running and self.report is not None:
            self.run_button.disabled = True

    def _hostfile_on_disk(self) -> Path:
        """A hostfile of the chosen ranks that outlives this kernel."""
        hostfile = self.hostfile().subset(range(self.ranks.value))
        path = cache_dir() / "servers" / f"{len(hostfile)}-hosts-{hostfile.digest()[:12]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        hostfile.write(path)
        return path
