"""The server's panel: start it, watch it, try it, stop it; and find it again after the kernel was restarted.

The server is a process of its own (`steps/serve_detached.py`): neither this panel's end nor the kernel's is
its end. What the panel shows is read from its folder and asked over HTTP.
"""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.errors import InputError, JobError
from jaccl_kernel.models.resolve import DEMO
from jaccl_kernel.notebook import session
from jaccl_kernel.notebook.panels.base import STYLE, OnEvent, hint, html_block, python_box, text_box
from jaccl_kernel.notebook.panels.bringup import BringUpPanel
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.views.serving import serving
from jaccl_kernel.notebook.work import Work
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.steps.serve import ServeOptions
from jaccl_kernel.steps.serve_detached import Running, find_running, start_detached
from jaccl_kernel.wire import Event

LOOK_S = 1.0
CALLS = {"models": "GET /v1/models", "chat": "POST chat", "completion": "POST completion"}


class ServePanel(BringUpPanel):
    """Serves a model over all ranks of the hostfile. `report` holds the steps.serve_detached.Running.

    Args:
        hostfile: another cluster than the notebooks'.
        model: a folder, a hub id in the local cache, or "demo"; None for the notebooks' choice.
        host, port: where rank 0 serves.
        ranks: the first so many hosts; None for as many as run well at once.
        restart: start again what has failed.
        python: the interpreter on every node; None for the notebooks' choice.
    """

    def __init__(
        self,
        hostfile: Hostfile | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        ranks: int | None = None,
        restart: bool = False,
        python: str | None = None,
    ) -> None:
        chosen = str(model) if model is not None else session.read().model or DEMO
        self.model = text_box(chosen, "Model", "demo, a folder, or ORG/NAME")
        self.host = text_box(host, "Address", "127.0.0.1, or an address of rank 0 in your network")
        self.port = _number(port, "Port", 65535)
        self.ranks = _number(1, "Ranks", 8)
        self.sharding = widgets.Dropdown(
            options=["tensor", "pipeline"], description="Sharding", style=STYLE, layout=_short()
        )
        self.restart = widgets.Checkbox(restart, description="start again what has failed", indent=False)
        self.python = python_box(python)
        self.live = html_block()
        self.answer = html_block()
        self.end_button = widgets.Button(description="End the server", icon="power-off", disabled=True)
        self.tries = {name: widgets.Button(description=text, disabled=True) for name, text in CALLS.items()}
        self._watching = Work("the view of the server", on_end=lambda report, error: None)
        self._trying = Work("the call", on_end=self._tried)
        self._told_to_end = False
        self._ending = Work("the end of the server", on_end=self._told_of_end)
        super().__init__(
            "Serve",
            hostfile,
            choices=[
                self.model,
                widgets.HBox([self.ranks, self.sharding], layout=widgets.Layout(flex_flow="row wrap")),
                self.host,
                hint("Beyond 127.0.0.1 an API key is needed: one is made, and shown below once it serves."),
                widgets.HBox([self.port, self.restart], layout=widgets.Layout(flex_flow="row wrap")),
                self.python,
            ],
        )
        self.python.value = python or session.python_for(self.hostfile()) or ""
        size = len(self.hostfile())
        self.ranks.max = size
        self.ranks.value = ranks if ranks is not None else self._usual_ranks(size)
        self.run_button.description = "Start"
        self.end_button.on_click(lambda _: self._end())
        for name, button in self.tries.items():
            button.on_click(lambda _, name=name: self._try(name))
        row = widgets.HBox(
            [*self.tries.values(), self.end_button], layout=widgets.Layout(flex_flow="row wrap")
        )
        self.add_below(self.live, row, self.answer)
        self.attach()

    def attach(self) -> Running | None:
        """Take up a server that runs already, whoever started it; None if there is none."""
        found = next(iter(find_running()), None)
        if found is not None:
            self.show(found)
        return found

    def options(self) -> ServeOptions:
        """What the choices ask for."""
        return ServeOptions(
            model=self.model.value.strip() or None,
            host=self.host.value.strip(),
            port=self.port.value,
            ctrl_port=18080 if self.port.value != 18080 else 18081,
            sharding=self.sharding.value,
            restart=self.restart.value,
            python=self.python.value.strip() or None,
        )

    def prepare(self) -> Callable[[OnEvent], Coroutine[Any, Any, Any]]:
        """Start the server in a process of its own, and wait until it serves."""
        options = self.options()
        size = len(self.hostfile())
        if not 1 <= self.ranks.value <= size:
            raise InputError(f"{self.ranks.value} ranks, of {size} hosts", fix=f"Give 1 to {size}.")
        hostfile = self._hostfile_on_disk()

        async def step(on_event: OnEvent) -> Running:
            running = await start_detached(hostfile, options, on_event)
            failures: list[Event] = []

            def over(event: Event) -> bool:
                failures.extend([event] if event.kind == "failed" else [])
                return event.kind == "serving" or (event.kind == "failed" and not options.restart)

            try:
                await running.follow(on_event, over)
            except asyncio.CancelledError:
                await asyncio.shield(asyncio.ensure_future(running.stop()))
                raise
            if failures and not running.alive():
                told = failures[-1].data
                raise JobError(told["what"], where=told["where"], fix=told["fix"])
            return running

        return step

    def show(self, report: Running) -> None:
        """It serves: keep looking at it."""
        self.report = report
        self._told_to_end = False
        key = report.state.api_key
        told = blocks.to_copy(key, "API key (OPENAI_API_KEY for clients)") if key else ""
        self.result.value = blocks.page(blocks.to_copy(f"{report.url}/v1", "Base URL for clients"), told)
        self._watching.stop()
        if not self._watching.running:
            self._watching.start(self._watch)
        self._enable(True)

    async def _watch(self) -> None:
        """Show the server's state until it is gone."""
        while True:
            running: Running = self.report
            status = await running.status()
            self.live.value = blocks.page(serving(running.url, status))
            if status["state"] == "gone":
                self._enable(False)
                return
            await asyncio.sleep(LOOK_S)

    def _enable(self, on: bool) -> None:
        for button in (*self.tries.values(), self.end_button):
            button.disabled = not on
        self.run_button.disabled = on

    def _end(self) -> None:
        running: Running = self.report
        if self._ending.running:
            return
        self._told_to_end = True
        self._enable(False)
        self.end_button.description = "Ending …"
        self._ending.start(running.stop)

    def _told_of_end(self, told: str | None, error: BaseException | None) -> None:
        self.end_button.description = "End the server"
        if error is None:
            self.answer.value = blocks.page(blocks.stopped(f"The server was {told}"))
        else:
            self.answer.value = blocks.page(blocks.error(error))
            self._told_to_end = False
            self._enable(True)  # it is still there

    def _try(self, name: str) -> None:
        running: Running = self.report

        async def call() -> tuple[str, dict[str, Any]]:
            status = await running.status()
            if "examples" not in status:
                raise JobError(f"nothing to ask: the server is {status['state']}: {status['stage']}")
            one = next(one for one in status["examples"] if one["name"] == name)
            return one["curl"], await asyncio.to_thread(running.ask, one["path"], one["body"])

        if not self._trying.running:
            self.answer.value = blocks.page(blocks.paragraph(f"Asking: {CALLS[name]} …", quiet=True))
            self._trying.start(call)

    def _tried(self, result: Any, error: BaseException | None) -> None:
        if self._told_to_end:  # what comes of that is the last word
            return
        if error is not None:
            self.answer.value = blocks.page(blocks.error(error))
        else:
            curl, answer = result
            text = json.dumps(answer, indent=1, ensure_ascii=False)
            self.answer.value = blocks.page(
                blocks.to_copy(curl, "The same from a terminal"),
                f'<pre class="jk-pre">{blocks.escape(text)}</pre>',
            )

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        if not running and self.report is not None:
            self.run_button.disabled = True

    def _usual_ranks(self, size: int) -> int:
        from jaccl_kernel.rehearsal import homes

        return homes.ranks_at_once(size) if homes.is_rehearsal(self.hostfile()) else size

    def _hostfile_on_disk(self) -> Path:
        """A hostfile of the chosen ranks that outlives this kernel."""
        hostfile = self.hostfile().subset(range(self.ranks.value))
        path = cache_dir() / "servers" / f"{len(hostfile)}-hosts-{hostfile.digest()[:12]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        hostfile.write(path)
        return path


def _number(value: int, label: str, most: int) -> widgets.BoundedIntText:
    return widgets.BoundedIntText(value, min=1, max=most, description=label, style=STYLE, layout=_short())


def _short() -> widgets.Layout:
    return widgets.Layout(width="260px")
