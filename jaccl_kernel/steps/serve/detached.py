"""Detached servers: each runs in its own process. Start, find, follow, query and stop them.

They outlive the process that starts them (a notebook's kernel, a terminal); their folder has their events.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jaccl_kernel.core.errors import DeadlineExceeded, JobError
from jaccl_kernel.core.events import HOST, Event, Hello, RanksKilled, Stage
from jaccl_kernel.core.options import ServeOptions
from jaccl_kernel.launch import servers
from jaccl_kernel.launch.cleanup import finish_cleanup
from jaccl_kernel.launch.run import OnEvent

LOOK_S = 0.1
START_S = 60.0  # until the supervisor has registered or failed
ASK_S = 3.0
STOP_S = 15.0  # from SIGTERM to SIGKILL
KILL_S = 6.0  # after SIGKILL: the launcher's stdin ends, and it ends the ranks
REBOOT = (
    "A killed rank can leave memory wired on its Mac: if the next start does not find enough memory, reboot "
    "that Mac."
)


@dataclass(frozen=True)
class Running:
    """A server that is running."""

    folder: servers.ServerFolder
    state: servers.ServerState

    @property
    def id(self) -> str:
        """Its id for `jaccl stop`."""
        return self.state.id

    @property
    def url(self) -> str:
        """Its base URL, without /v1."""
        return self.state.url

    def alive(self) -> bool:
        """Whether its supervisor is running."""
        return self.folder.alive()

    async def follow(self, on_event: OnEvent, until: Callable[[Event], bool] = lambda event: False) -> None:
        """Send all its events from the start to `on_event`, until it ends or `until` is true."""
        offset = 0
        while True:
            alive = self.alive()  # before reading, so that its last events are read too
            events, offset = self.folder.read_events(offset)
            for event in events:
                on_event(event)
                if until(event):
                    return
            if not alive and not events:
                return
            await asyncio.sleep(LOOK_S)

    async def status(self) -> dict[str, Any]:
        """Return its `/status`, or a `state` of "stopped", "not tested", "down" or "failed" and why."""
        if not self.alive():
            return {"state": "stopped", "stage": "the server has ended"}
        if self.state.only_there:  # that address reaches another program from this machine
            return {"state": "not tested", "stage": self.state.only_there}
        try:
            answer = await asyncio.to_thread(self.ask, "/status", deadline=ASK_S)
        except JobError:
            return {"state": "down", "stage": "no answer over HTTP (yet)"}
        if "state" not in answer:
            return {"state": "failed", "stage": _error_message(answer)}
        return answer

    async def stop(self) -> str:
        """End the server in any state. Returns the result as a sentence.

        Raises:
            DeadlineExceeded: SIGKILL did not end it.
        """
        pids = self._rank_pids()
        if not self.folder.signal(signal.SIGTERM):
            return "already stopped"
        self.folder.signal(signal.SIGCONT)  # a suspended process does not receive SIGTERM
        if await self._gone(STOP_S):
            killed = any(isinstance(event.body, RanksKilled) for event in self._events())
            return f"stopped. {REBOOT}" if killed else "stopped"
        self.folder.signal(signal.SIGKILL)
        if not await self._gone(KILL_S):
            raise DeadlineExceeded(
                f"process {self.state.pid} is still running after SIGKILL",
                fix="It is blocked in the kernel: reboot this machine.",
            )
        end = asyncio.get_running_loop().time() + KILL_S
        while left := [pid for pid in pids if _exists(pid)]:
            if asyncio.get_running_loop().time() > end:
                raise DeadlineExceeded(f"rank processes {left} are still running", fix=f"Kill them. {REBOOT}")
            await asyncio.sleep(LOOK_S)
        return f"killed: it did not stop within {STOP_S:.0f} s. {REBOOT}"

    async def _gone(self, within: float) -> bool:
        end = asyncio.get_running_loop().time() + within
        while self.alive():
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    def _events(self) -> list[Event]:
        return self.folder.read_events()[0]

    def _rank_pids(self) -> list[int]:
        """Return the ranks' pids if they run on this machine."""
        last: dict[int, int] = {}
        for event in self._events():
            if isinstance(event.body, Hello) and self.state.local:
                last[event.rank] = event.body.pid
        return list(last.values())

    def ask(
        self, path: str, body: dict[str, Any] | None = None, *, deadline: float = 120.0
    ) -> dict[str, Any]:
        """Return the JSON answer, also of an error, to a GET of `path` or a POST of `body`.

        Raises:
            JobError: no answer, or no JSON.
        """
        headers = {"Authorization": f"Bearer {self.state.api_key}"} if self.state.api_key else {}
        method = "GET" if body is None else "POST"
        try:
            # without a proxy: the server is on this machine or on the same network
            with httpx.Client(trust_env=False, headers=headers, timeout=deadline) as client:
                answer = client.request(method, self.url + path, json=body).json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise JobError(f"no answer from {self.url}{path}: {error}", fix="See `jaccl status`.") from error
        return answer if isinstance(answer, dict) else {}


def find_running() -> list[Running]:
    """Return this user's running servers on this machine, oldest first."""
    return [one for folder in servers.folders() if (one := _read(folder))]


async def start_detached(hostfile: Path, options: ServeOptions, on_event: OnEvent) -> Running:
    """Start a server in a process of its own. Returns when it has registered, before it is ready.

    Raises:
        JobError: it failed to start; the message is its own.
        InputError: an option is invalid.
    """
    folder = servers.ServerFolder.create()
    on_event(Event(HOST, Stage("detach", str(folder.path))))
    process = _spawn(folder, hostfile, options.with_api_key())
    try:
        running = await _registered(process, folder, on_event)
    except BaseException:  # a start that is interrupted must not leave a server
        await finish_cleanup(asyncio.to_thread(_end, process))
        raise
    # reap it, so that it does not become a zombie of this process
    threading.Thread(target=process.wait, daemon=True).start()
    return running


async def _registered(
    process: "subprocess.Popen[bytes]", folder: servers.ServerFolder, on_event: OnEvent
) -> Running:
    loop = asyncio.get_running_loop()
    end = loop.time() + START_S
    offset = 0
    while not ((running := _read(folder)) and running.alive()):
        events, offset = folder.read_events(offset)
        for event in events:
            on_event(event)
        if process.poll() is not None:
            raise JobError(_last_line(folder), fix=f"See {folder.log}.")
        if loop.time() > end and not folder.alive():
            raise DeadlineExceeded(
                f"the server did not start within {START_S:.0f} s", fix=f"See {folder.log}."
            )
        await asyncio.sleep(LOOK_S)
    return running


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(KILL_S)


def _spawn(folder: servers.ServerFolder, hostfile: Path, options: ServeOptions) -> "subprocess.Popen[bytes]":
    request = folder.path / "asked.json"  # not on the command line: it has the API key
    with os.fdopen(os.open(request, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump({"hostfile": str(hostfile.resolve()), "options": options.model_dump()}, file)
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jaccl_kernel.cli", "serve", "--folder", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def read_asked(folder: Path) -> tuple[Path, ServeOptions]:
    """Return the hostfile and options of a detached server, and remove their file: it has the API key."""
    file = folder / "asked.json"
    asked = json.loads(file.read_text(encoding="utf-8"))
    file.unlink(missing_ok=True)
    return Path(asked["hostfile"]), ServeOptions(**asked["options"])


def _error_message(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "another program answers at that address")


def _read(folder: servers.ServerFolder) -> Running | None:
    state = folder.read()
    return Running(folder, state) if state else None


def _last_line(folder: servers.ServerFolder) -> str:
    """Return the process's last output, without `error: `."""
    try:
        lines = folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    start = next((at for at, line in enumerate(lines) if line.startswith("error: ")), max(0, len(lines) - 3))
    return "\n".join(lines[start:]).removeprefix("error: ") or "it ended without output"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
