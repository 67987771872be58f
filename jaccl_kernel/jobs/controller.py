"""ipyparallel's controller as a child that leaves with its starter.

As a program (`python -m jaccl_kernel.jobs.controller …`, arguments as ipcontroller's) it runs the controller
in a session of its own; the end of its stdin ends the whole session, its heart monitor included. `Controller`
is the starter's side. Connection files lie in a folder that only this user can read; no key stands in a
command line.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaccl_kernel.cluster.push import Hop
from jaccl_kernel.cluster.shell import SshNode
from jaccl_kernel.errors import DeadlineExceeded, JobError
from jaccl_kernel.jobs.ending import to_its_end
from jaccl_kernel.paths import cache_dir

PORTS = (41100, 41119)  # where ranks on other machines connect to: to be let through a firewall
START_S = 20.0
HEARTBEAT_MS = 100  # an engine is registered after one or two: with the usual 3000 a start would take 7 s
LOOPBACK = "127.0.0.1"


class Controller:
    """A running controller, for as long as the block runs: `async with Controller(hosts) as controller: …`.

    Args:
        hosts: the ssh names of the ranks' machines; loopback only if all are this one.
    """

    def __init__(self, hosts: list[str]) -> None:
        self._far = next((host for host in hosts if host != LOOPBACK), None)
        self._process: asyncio.subprocess.Process | None = None
        self.folder = cache_dir() / "controllers" / secrets.token_hex(6)

    async def __aenter__(self) -> Self:
        """Start it; it is not ready yet."""
        address = await _own_address(self._far) if self._far else LOOPBACK
        self.folder.mkdir(parents=True, mode=0o700)
        security = self.folder / "security"
        arguments = [
            f"--profile-dir={self.folder}",
            f"--ip={address}",
            f"--location={address}",
            f"--HeartMonitor.period={HEARTBEAT_MS}",
            # who is dead is told by our own watch: a rank that is only stopped for a while is not
            "--HeartMonitor.max_heartmonitor_misses=1000000",
            "--HubFactory.db_class=NoDB",
            "--IPController.use_threads=True",
            "--log-level=40",
        ]
        if self._far:
            arguments += ["--IPController.enable_curve=True", f"--ports={PORTS[0]}-{PORTS[1]}"]
        self._client, self._engine = (security / f"ipcontroller-{who}.json" for who in ("client", "engine"))
        # not to a pipe of ours: its heart monitor would hold that open, and its end would not be seen
        with (self.folder / "stderr.txt").open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "jaccl_kernel.jobs.controller", *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | {"IPYTHONDIR": str(self.folder)},
                start_new_session=True,
            )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and all that it has started."""
        await to_its_end(self.stop())

    @property
    def pid(self) -> int | None:
        """Its process id, which is its session's too."""
        return self._process.pid if self._process else None

    async def connection(self) -> dict[str, Any]:
        """What engines need to know, once it is up.

        Raises:
            JobError: it did not start.
            DeadlineExceeded: not within START_S.
        """
        assert self._process
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, ValueError):
                json.loads(self._client.read_text())
                return dict(json.loads(self._engine.read_text()))
            if self._process.returncode is not None:
                raise JobError(f"ipyparallel's controller did not start: {self._last_words()}")
            if time.monotonic() > end:
                raise DeadlineExceeded(f"ipyparallel's controller was not up after {START_S:.0f} s")
            await asyncio.sleep(0.02)

    @property
    def client_file(self) -> Path:
        """The file that an ipyparallel.Client connects with."""
        return self._client

    async def wait(self) -> None:
        """Until it has ended."""
        assert self._process
        await self._process.wait()

    async def stop(self) -> None:
        """End its whole session, and remove its files. Safe to call again."""
        if self._process:
            # also when it is gone: its heart monitor would stay
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_words(self) -> str:
        text = (self.folder / "stderr.txt").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "it gave no reason"


async def _own_address(host: str) -> str:
    """This machine's address on the way to another one, which ssh may know by an alias."""
    name = (await Hop(SshNode(host)).endpoint()).hostname
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((name, 9))  # sends nothing
        except OSError as error:
            raise JobError(
                f"cannot tell which of this machine's addresses reaches {name}: {error.strerror or error}",
                where=host,
                fix="Check the name: `ssh -G` shows what ssh makes of it.",
            ) from error
        return str(probe.getsockname()[0])


def _watch(lifeline: int) -> None:
    while os.read(lifeline, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


def _hold_on(lifeline: int) -> None:
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def main() -> None:
    """ipcontroller, and its end with our stdin's."""
    lifeline = os.dup(0)
    _hold_on(lifeline)
    # its heart monitor is a fork, which closes stdin: that, too, has to see our starter's end
    os.register_at_fork(after_in_child=lambda: _hold_on(lifeline))
    from ipyparallel.controller.app import main as controller

    controller()


if __name__ == "__main__":
    main()
