"""Servers in processes of their own: started so, found again, followed, asked and stopped.

They outlive their starter (a notebook's kernel, a terminal); what they do is told in their folder.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import DeadlineExceeded, JobError
from jaccl_kernel.jobs import servers
from jaccl_kernel.jobs.ending import to_its_end
from jaccl_kernel.jobs.run import OnEvent
from jaccl_kernel.steps.serve import ServeOptions, check_options
from jaccl_kernel.wire import HOST, Event

LOOK_S = 0.1
START_S = 20.0  # until the supervisor has registered, or said why not
ASK_S = 3.0
STOP_S = 15.0  # for a supervisor that was asked to end
KILL_S = 6.0  # after SIGKILL: the launcher sees our end of its pipe close, and ends the ranks
REBOOT = (
    "Ranks that do not end by themselves can leave memory wired on a Mac: if a new start finds too little, "
    "reboot that Mac."
)


@dataclass(frozen=True)
class Running:
    """A server that was found, or started."""

    folder: servers.Folder
    state: servers.State

    @property
    def id(self) -> str:
        """Its name for `jaccl stop`."""
        return self.state.id

    @property
    def url(self) -> str:
        """Where it serves, without /v1."""
        return self.state.url

    def alive(self) -> bool:
        """Whether its supervisor lives."""
        return self.folder.alive()

    async def follow(self, on_event: OnEvent, until: Callable[[Event], bool] = lambda event: False) -> None:
        """Hear all its events from its start, then live; ends with the server, or after `until` was true."""
        offset = 0
        while True:
            alive = self.alive()  # before reading: what was written before its end is read
            events, offset = self.folder.read_events(offset)
            for event in events:
                on_event(event)
                if until(event):
                    return
            if not alive and not events:
                return
            await asyncio.sleep(LOOK_S)

    async def status(self) -> dict[str, Any]:
        """Its `/status`; where there is none, `state` says why: "gone", "unseen", "silent" or "refused"."""
        if not self.alive():
            return {"state": "gone", "stage": "it has ended"}
        if self.state.only_there:  # what answers at that address here is another one
            return {"state": "unseen", "stage": self.state.only_there}
        try:
            told = await asyncio.to_thread(self.ask, "/status", deadline=ASK_S)
        except JobError:
            return {"state": "silent", "stage": "it does not answer over HTTP (yet)"}
        if "state" not in told:
            return {"state": "refused", "stage": _complaint(told)}
        return told

    async def stop(self) -> str:
        """End it, whatever state it is in; returns what was done, in a sentence.

        Raises:
            DeadlineExceeded: not even SIGKILL ended it.
        """
        pids = self._rank_pids()
        if not self.folder.signal(signal.SIGTERM):
            return "it had ended already"
        self.folder.signal(signal.SIGCONT)  # one that is stopped would not see the first signal
        if await self._gone(STOP_S):
            killed = any(event.kind == "killed" for event in self._events())
            return f"stopped. {REBOOT}" if killed else "stopped"
        self.folder.signal(signal.SIGKILL)
        if not await self._gone(KILL_S):
            raise DeadlineExceeded(
                f"process {self.state.pid} survives SIGKILL",
                fix="It waits for the kernel: reboot this machine.",
            )
        end = asyncio.get_running_loop().time() + KILL_S
        while left := [pid for pid in pids if _exists(pid)]:
            if asyncio.get_running_loop().time() > end:
                raise DeadlineExceeded(f"ranks {left} are still there", fix=f"End them by hand. {REBOOT}")
            await asyncio.sleep(LOOK_S)
        return f"killed: it did not answer for {STOP_S:.0f} s. {REBOOT}"

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
        """The ranks' processes, where they run on this machine."""
        last: dict[int, int] = {}
        for event in self._events():
            if event.kind == "hello" and self.state.local:
                last[event.rank] = int(event.data["pid"])
        return list(last.values())

    def ask(
        self, path: str, body: dict[str, Any] | None = None, *, deadline: float = 120.0
    ) -> dict[str, Any]:
        """The JSON that a GET of `path`, or a POST of `body` to it, answers; an error's too.

        Raises:
            JobError: no answer, or none in JSON.
        """
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if self.state.api_key:
            request.add_header("Authorization", f"Bearer {self.state.api_key}")
        # no proxy: it is this machine, or one on the same network
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            try:
                answer = opener.open(request, timeout=deadline)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                told = json.load(answer)
        except (OSError, ValueError) as error:
            raise JobError(f"no answer from {self.url}{path}: {error}", fix="See `jaccl status`.") from error
        return told if isinstance(told, dict) else {}


def find_running() -> list[Running]:
    """The servers of this machine and user that live, oldest first."""
    return [one for folder in servers.folders() if (one := _read(folder))]


async def start_detached(hostfile: Path, options: ServeOptions, on_event: OnEvent) -> Running:
    """Start a server in a process of its own; returns once it is registered, long before it serves.

    Raises:
        JobError: it refused to start: its words.
        InputError: an option makes no sense.
    """
    folder = servers.Folder.make()
    on_event(Event(HOST, "stage", {"name": "detach", "text": str(folder.path), "fraction": None}))
    process = _spawn(folder, hostfile, check_options(options))
    try:
        running = await _registered(process, folder, on_event)
    except BaseException:  # stopped while it starts: it must not become a server later
        await to_its_end(asyncio.to_thread(_end, process))
        raise
    # whoever started it may live longer than it: no zombie is to be left
    threading.Thread(target=process.wait, daemon=True).start()
    return running


async def _registered(
    process: "subprocess.Popen[bytes]", folder: servers.Folder, on_event: OnEvent
) -> Running:
    loop = asyncio.get_running_loop()
    end = loop.time() + START_S
    offset = 0
    while not ((running := _read(folder)) and running.alive()):
        events, offset = folder.read_events(offset)
        for event in events:
            on_event(event)
        if process.poll() is not None:
            raise JobError(_last_words(folder), fix=f"See {folder.log}.")
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


def _spawn(folder: servers.Folder, hostfile: Path, options: ServeOptions) -> "subprocess.Popen[bytes]":
    asked = folder.path / "asked.json"  # not arguments: the key is in it
    with os.fdopen(os.open(asked, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump({"hostfile": str(hostfile.resolve()), "options": asdict(options)}, file)
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jaccl_kernel.cli", "serve", "--folder", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def read_asked(folder: Path) -> tuple[Path, ServeOptions]:
    """What a detached server was asked for: its hostfile and options."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    options = asked["options"]
    options["cors_origins"] = tuple(options["cors_origins"])
    return Path(asked["hostfile"]), ServeOptions(**options)


def _complaint(told: dict[str, Any]) -> str:
    """What an answer that is an error says."""
    error = told.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "what answers there is no server of ours")


def _read(folder: servers.Folder) -> Running | None:
    state = folder.read()
    return Running(folder, state) if state else None


def _last_words(folder: servers.Folder) -> str:
    """What the process wrote before it ended, without `error: `."""
    try:
        lines = folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    start = next((at for at, line in enumerate(lines) if line.startswith("error: ")), max(0, len(lines) - 3))
    return "\n".join(lines[start:]).removeprefix("error: ") or "it ended without a word"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
