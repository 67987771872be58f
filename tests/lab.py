"""An isolated JupyterLab and a real Chromium for it: what the browser tests of all rooms start from.

`start_lab(root)` serves a folder, with configuration, data and settings of its own; `browser_page()` opens a
Chromium that resolves no host name, so that a request to anywhere else fails and is seen. `NotebookPage` is a
person in front of one notebook.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jaccl_kernel.launch import ports
from jaccl_kernel.notebook.lab import OVERRIDES
from tests.needs import find

REPOSITORY = Path(__file__).resolve().parents[1]
CHROMIUM = find("chromium") or ""
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
LAB_DEADLINE_S = 240.0
PAGE_DEADLINE_MS = 240_000
# the toolbar's light is idle from the start; the status bar tells when a kernel is really there
KERNEL_IS_IDLE = """() =>
    [...document.querySelectorAll('.jp-StatusBar-TextItem')].some(e => / \\| Idle$/.test(e.textContent))"""
PRESSES = 5
PRESS_S = 20.0  # a second press would run the cell twice
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen[bytes]
    log: Path

    def kernels(self) -> list[dict[str, Any]]:
        """The running kernels, as the server tells them."""
        request = urllib.request.Request(
            f"{self.url}/api/kernels", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


@contextlib.contextmanager
def start_lab(
    root: Path, folder: Path, *, theme: str = "light", env: dict[str, str] | None = None
) -> Iterator[Lab]:
    """Serve `root` with a JupyterLab whose own files all lie in `folder`; ended with its kernels on leaving.

    Args:
        root: the folder that Lab shows.
        folder: for its configuration, settings, data and log.
        theme: "light" or "dark".
        env: more variables for the server, and so for its kernels.
    """
    token = secrets.token_hex(16)
    settings = folder / "settings"
    _write_settings(settings, theme)
    environ = own_environment(folder) | {"PYTHONPATH": str(REPOSITORY), "JUPYTER_TOKEN": token, **(env or {})}
    port = ports.choose(1)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"),
    ]
    log = folder / "lab.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        lab = Lab(f"http://127.0.0.1:{port}", token, root, process, log)
        wait_until_it_answers(lab)
        yield lab
    finally:
        process.terminate()  # the server shuts its kernels down
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_environment(folder: Path) -> dict[str, str]:
    """This environment, but for Jupyter's own files, which all lie in `folder`."""
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "IPYTHONDIR": "ipython",
    }
    places = {name: str(folder / value) for name, value in own.items()}
    return {**os.environ, **places, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def _write_settings(folder: Path, theme: str) -> None:
    wanted = OVERRIDES | {"@jupyterlab/apputils-extension:themes": {"theme": THEMES[theme]}}
    for plugin, values in wanted.items():
        package, _, name = plugin.partition(":")
        path = folder / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def wait_until_it_answers(lab: Lab) -> None:
    """Until its server answers, at the most until the deadline."""
    end = time.monotonic() + LAB_DEADLINE_S
    while True:
        try:
            lab.kernels()
        except (urllib.error.URLError, OSError):
            told = lab.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            assert lab.process.poll() is None, f"JupyterLab ended:\n{told}"
            assert time.monotonic() < end, f"JupyterLab did not answer in {LAB_DEADLINE_S:.0f} s:\n{told}"
            time.sleep(0.1)  # until the condition holds, at the most until the deadline
        else:
            return


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A Chromium (a playwright Browser) that can reach 127.0.0.1 and nothing else."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(CHROMIUM_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class NotebookPage:
    """One notebook in one browser page, and every request that the page made."""

    page: Any
    requests: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, browser: Any, lab: Lab, notebook: str, *, width: int = 1180, height: int = 1500
    ) -> "NotebookPage":
        """Open a notebook (a path below the lab's root) and wait for its kernel."""
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PAGE_DEADLINE_MS)
        self = cls(page)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(f"{lab.url}/doc/tree/{quote(notebook)}?token={lab.token}&reset")
        page.wait_for_function(KERNEL_IS_IDLE)
        return self

    def run_all(self) -> None:
        """Run all cells from the menu, as a person does; does not wait for their end."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def run_cell(self, number: int) -> None:
        """Run one code cell, counted from 0, and leave the keyboard in it; does not wait for its end."""
        cell = self.page.locator(".jp-CodeCell").nth(number)
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        for _ in range(PRESSES):  # JupyterLab sometimes swallows the first one after a click
            cell.locator(".jp-InputArea-editor").click()
            self.page.keyboard.press("Control+Enter")
            end = time.monotonic() + PRESS_S
            while time.monotonic() < end:
                if prompt.inner_text() != before:
                    return
                self.page.wait_for_timeout(50)  # until the prompt changes
        raise AssertionError(f"cell {number} did not run")

    def write_cell(self, number: int, code: str) -> None:
        """Put this code into a code cell, in the place of what stands there."""
        self.page.evaluate(
            """([number, code]) => {
                const cell = document.querySelectorAll('.jp-CodeCell')[number].querySelector('.cm-content');
                const view = cell.cmView.view;
                view.dispatch({changes: {from: 0, to: view.state.doc.length, insert: code}});
            }""",
            [number, code],
        )

    def fill(self, label: str, value: str) -> None:
        """Type into the last box of this name, and leave it."""
        box = self.page.get_by_label(label, exact=True).last
        box.fill(value)
        box.press("Tab")

    def keep(self, name: str) -> None:
        """Keep what is on the screen in the folder that JACCL_SHOTS names, if any."""
        if shots := os.environ.get("JACCL_SHOTS"):
            self.page.screenshot(path=str(Path(shots) / f"{name}.png"), full_page=True)

    def save(self) -> None:
        """Save the notebook, and wait until the server has it."""
        with self.page.expect_response(lambda answer: answer.request.method == "PUT"):
            self.page.keyboard.press("Control+s")

    def reload(self) -> None:
        """Load the page anew, and wait for its kernel."""
        self.page.reload()
        self.page.wait_for_function(KERNEL_IS_IDLE)

    def interrupt(self) -> None:
        """Press the toolbar's ■."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()

    def button(self, name: str) -> Any:
        """The first button of this name in the outputs (a playwright Locator)."""
        named = re.compile(rf"\b{re.escape(name)}$")  # an icon's glyph stands before the words
        return self.page.locator(".jp-OutputArea-output").get_by_role("button", name=named).first

    def wait_enabled(self, name: str) -> None:
        """Wait until the button of this name can be pressed."""
        self.until(lambda: self.button(name).is_enabled(), f"{name} is enabled")

    def wait_disabled(self, name: str) -> None:
        """Wait until the button of this name can't be pressed."""
        self.until(lambda: self.button(name).is_disabled(), f"{name} is disabled")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds: the page shows what the kernel said only some time after it.

        To assert at once what the page shows is a race, and so is to wait for what an earlier run shows.
        """
        end = time.monotonic() + PAGE_DEADLINE_MS / 1000
        while not condition():
            assert time.monotonic() < end, (
                f"not in {PAGE_DEADLINE_MS // 1000} s: {what}\n{self.outputs()[-3000:]}"
            )
            self.page.wait_for_timeout(50)  # until the condition holds, at the most until the deadline

    def wait_outputs(self, *texts: str) -> None:
        """Wait until the outputs contain all of these texts."""
        for text in texts:
            self.until(lambda text=text: text in self.outputs(), f"the outputs contain {text!r}")  # type: ignore[misc]

    def wait_for(self, text: str, deadline_s: float = 240.0) -> None:
        """Wait until an output shows this text."""
        found = self.page.locator(".jp-OutputArea-output").get_by_text(text).first
        found.wait_for(timeout=deadline_s * 1000)

    def wait_idle(self, deadline_s: float = 480.0) -> None:
        """Wait until the kernel has nothing to do and no cell is waiting for its turn."""
        self.page.wait_for_function(
            """() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')
                 && ![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*'))
                 && [...document.querySelectorAll('.jp-InputPrompt')].some(p => /\\d/.test(p.textContent))""",
            timeout=deadline_s * 1000,
        )

    def outputs(self) -> str:
        """The text of all outputs as it can be read."""
        return "\n".join(self.page.locator(".jp-OutputArea-output").all_inner_texts())

    def outsiders(self) -> list[str]:
        """The requests that went anywhere but to this machine."""
        local = ("127.0.0.1", None)  # data: and blob: have no host
        return [url for url in self.requests if urlsplit(url).hostname not in local]
