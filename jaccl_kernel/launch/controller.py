"""ipyparallel's controller as a child process that ends together with its parent.

`python -m jaccl_kernel.launch.controller …` takes ipcontroller's arguments and runs the controller in its own
session. EOF on stdin kills the whole session, including the forked heart monitor. `Controller` is the
parent's side. Connection files are in a folder that only this user can read; no key appears on a command
line.
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

from jaccl_kernel.core.errors import DeadlineExceeded, JobError
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.cleanup import finish_cleanup
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.nodes.transfer import RoutedNode

FAR_PORTS = (31_100, 31_119)  # ranks on other machines connect to these; a firewall must allow them
PORT_COUNT = 20  # of a controller, which uses 18
START_S = 60.0
HEARTBEAT_MS = (
    100  # an engine registers after one or two heartbeats: the default of 3000 makes a start take 7 s
)
LOOPBACK = "127.0.0.1"


class Controller:
    """A controller that runs for the duration of `async with Controller(hosts) as controller: …`.

    Args:
        hosts: ssh names of the ranks' machines; the controller listens on loopback if all are this machine.
    """

    def __init__(self, hosts: list[str]) -> None:
        self._remote_host = next((host for host in hosts if host != LOOPBACK), None)
        self._process: asyncio.subprocess.Process | None = None
        self.folder = cache_dir() / "controllers" / secrets.token_hex(6)

    async def __aenter__(self) -> Self:
        """Start the process, without waiting until it is ready."""
        address = await _address_towards(self._remote_host) if self._remote_host else LOOPBACK
        # not those that it would choose: a connection of any program can take them before it listens
        fixed = self._remote_host and ports.are_free(FAR_PORTS[0], PORT_COUNT)
        first = FAR_PORTS[0] if fixed else ports.choose(PORT_COUNT)
        self.folder.mkdir(parents=True, mode=0o700)
        security = self.folder / "security"
        arguments = [
            f"--profile-dir={self.folder}",
            f"--ip={address}",
            f"--location={address}",
            f"--HeartMonitor.period={HEARTBEAT_MS}",
            # our own process watch detects dead ranks; a heartbeat timeout would also drop a suspended rank
            "--HeartMonitor.max_heartmonitor_misses=1000000",
            "--IPController.db_class=NoDB",
            "--IPController.use_threads=True",
            f"--ports={first}-{first + PORT_COUNT - 1}",
            "--log-level=40",
        ]
        if self._remote_host:
            arguments.append("--IPController.enable_curve=True")
        self._client, self._engine = (security / f"ipcontroller-{role}.json" for role in ("client", "engine"))
        # a file, not a pipe: the heart monitor would keep a pipe open, which hides the controller's exit
        with (self.folder / "stderr.txt").open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "jaccl_kernel.launch.controller", *arguments,
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
        """Kill the controller and every process it started."""
        await finish_cleanup(self.stop())

    @property
    def pid(self) -> int | None:
        """Process id, which is also the session id."""
        return self._process.pid if self._process else None

    async def connection(self) -> dict[str, Any]:
        """Wait until the controller is ready and return the connection info for engines.

        Raises:
            JobError: the controller did not start.
            DeadlineExceeded: the controller was not ready within START_S.
        """
        assert self._process
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, ValueError):
                json.loads(self._client.read_text())
                return dict(json.loads(self._engine.read_text()))
            if self._process.returncode is not None:
                raise JobError(f"the ipyparallel controller did not start: {self._last_line()}")
            if time.monotonic() > end:
                raise DeadlineExceeded(f"the ipyparallel controller was not ready after {START_S:.0f} s")
            await asyncio.sleep(0.02)

    @property
    def client_file(self) -> Path:
        """The file that an ipyparallel.Client connects with."""
        return self._client

    async def wait(self) -> None:
        """Wait until the process has exited."""
        assert self._process
        await self._process.wait()

    async def stop(self) -> None:
        """Kill the whole session and remove its files. Safe to call again."""
        if self._process:
            # also after the controller has exited: its heart monitor outlives it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_line(self) -> str:
        text = (self.folder / "stderr.txt").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "no error output"


async def _address_towards(host: str) -> str:
    """This machine's source address for connections to `host`, which may be an ssh alias."""
    name = (await RoutedNode(SshNode(host)).endpoint()).hostname
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((name, 9))  # sends nothing
        except OSError as error:
            raise JobError(
                f"cannot determine which local address reaches {name}: {error.strerror or error}",
                where=host,
                fix="Check the host name: `ssh -G` shows the address that ssh uses.",
            ) from error
        return str(probe.getsockname()[0])


def _watch(lifeline: int) -> None:
    while os.read(lifeline, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


def _start_watch(lifeline: int) -> None:
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def main() -> None:
    """Run ipcontroller until stdin reaches EOF."""
    lifeline = os.dup(0)
    _start_watch(lifeline)
    # the heart monitor is a fork that closes stdin: it needs its own watch on the parent's pipe
    os.register_at_fork(after_in_child=lambda: _start_watch(lifeline))
    from ipyparallel.controller.app import main as controller

    controller()


if __name__ == "__main__":
    main()
