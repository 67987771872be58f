"""Serve: start a server on the ranks, monitor it from outside, restart it on failure, and stop it.

`serve` is the supervisor and runs as long as the server; `detached.py` runs it in a process of its own.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from dataclasses import replace
from typing import Any

from jaccl_kernel.core.errors import Busy, JacclError, JobError, RankDied
from jaccl_kernel.core.events import (
    HOST,
    Event,
    Exited,
    Failed,
    RankError,
    RanksKilled,
    Restarting,
    ServerStopped,
    Serving,
    WorkerDown,
    WorkerRecovered,
)  # fmt: skip
from jaccl_kernel.core.messages import Ack, Payload, ServeFacts, Stop, WorkerDied
from jaccl_kernel.core.options import ServeOptions, is_loopback
from jaccl_kernel.hostfile.hostfile import LOCAL, Hostfile, ssh_host
from jaccl_kernel.hostfile.lint import effective_backend
from jaccl_kernel.launch import lock, ports, servers
from jaccl_kernel.launch.cleanup import finish_cleanup
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.run import Deadlines, JobProtocol, OnEvent, ignore, report_job, with_free_ports
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model
from jaccl_kernel.steps.serve.watch import Watch

LOOK_S = 0.5
GOODBYE_S = 6.0  # for open streams and ranks to end
MAX_FAILURES = 5  # within this many seconds, after which a restart is not tried again
FAILURES_WINDOW_S = 600.0
SICK_S = 5.0  # with --restart, a rank without heartbeat for this long fails the server
PAUSE_S = 1.0  # before the first restart; twice as long before each further one


async def serve(
    hostfile: Hostfile,
    options: ServeOptions | None = None,
    *,
    on_event: OnEvent = ignore,
    folder: servers.ServerFolder | None = None,
    deadlines: Deadlines | None = None,
) -> None:
    """Serve until cancelled, which ends all ranks.

    Sends the ranks' events to `on_event`, and these of the host: Failed, Restarting,
    RanksKilled, ServerStopped.

    Raises:
        InputError, HostfileError, ModelError: invalid input; nothing was started.
        Busy: the cluster, or a port, is in use; the message says by whom.
        RankDied, DeadlineExceeded, JobError: it failed, and `restart` is off or its limit was reached.
    """
    options = (options or ServeOptions()).with_api_key()
    check_ports(hostfile, options)
    backend = effective_backend(hostfile, options.backend)
    check_hostfile(hostfile, backend)
    size = len(hostfile.hosts)
    model, facts = await find_model(hostfile, options.model, options.sharding, [size], on_event)
    url = url_of(options, hostfile.hosts[0].ssh)
    title = f"a server of {model.rpartition('/')[2]} at {url}"
    with lock.hold([host.ssh for host in hostfile.hosts], title), contextlib.ExitStack() as stack:
        home = folder or servers.ServerFolder.create()
        stack.enter_context(home.hold_lock())

        def tell(event: Event) -> None:
            if isinstance(event.body, Serving):  # rank 0 knows only its own address
                away = only_there(options, hostfile.hosts[0].ssh)
                event = replace(event, body=replace(event.body, url=url, only_there=away))
            home.add_event(event)
            on_event(event)

        one = _Server(hostfile, options, backend, model, facts, home, tell, deadlines)
        one.register()
        try:
            await one.run()
        except asyncio.CancelledError:
            tell(Event(HOST, ServerStopped()))
            raise
        except JacclError as error:
            tell(Event(HOST, Failed.of(error)))
            raise
        finally:
            servers.remove_old_folders()


def _is_here(ssh: str) -> bool:
    return ssh == LOCAL or ssh_host(ssh) == "localhost"


def check_ports(hostfile: Hostfile, options: ServeOptions) -> None:
    """Reject a port in use if rank 0 runs on this machine; elsewhere rank 0 reports it itself.

    Raises:
        Busy: a port is in use; the message names the server if it is one of ours.
    """
    if hostfile.hosts[0].ssh != LOCAL:
        return
    url = url_of(options)
    for folder in servers.folders():
        state = folder.read()
        if state and state.url == url:
            since = time.strftime("%H:%M:%S", time.localtime(state.since))
            raise Busy(
                f"a server is already running at {url}: {state.model} (process {state.pid}, since {since})",
                fix=f"Stop it with `jaccl stop {state.id}`, or choose another --port.",
            )
    for port in (options.port, options.ctrl_port)[: len(hostfile.hosts)]:
        if not ports.are_free(port, 1):
            raise Busy(f"port {port} is in use by another program", fix="Choose another port.")


def url_of(options: ServeOptions, first: str = LOCAL) -> str:
    """Return the server's URL from this machine, without /v1; `first` is rank 0's ssh name."""
    host = options.host
    if host in ("0.0.0.0", "::"):
        local = "127.0.0.1" if host == "0.0.0.0" else "::1"
        host = local if _is_here(first) else ssh_host(first)
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{options.port}"


def only_there(options: ServeOptions, first: str) -> str:
    """Return why programs on this machine cannot reach the server, with the fix; "" if they can."""
    if _is_here(first) or not is_loopback(options.host):
        return ""
    name, port = ssh_host(first), options.port
    return (
        f"{options.host} is reachable only from {name} itself: serve with --host 0.0.0.0 (generates an API "
        f"key), or use a tunnel: ssh -N -L {port}:{options.host}:{port} {first}"
    )


class _Server:
    """One server, including its restarts."""

    def __init__(
        self,
        hostfile: Hostfile,
        options: ServeOptions,
        backend: str,
        model: str,
        facts: dict[str, Any],
        folder: servers.ServerFolder,
        tell: OnEvent,
        deadlines: Deadlines | None,
    ) -> None:
        self.hostfile = hostfile
        self.options = options
        self.backend = backend
        self.model = model
        self.facts = facts
        self.folder = folder
        self.tell = tell
        self.deadlines = deadlines or Deadlines()
        self.cluster = Cluster.of(hostfile)
        self.has_served = False
        self._failures: deque[float] = deque()

    def register(self) -> None:
        """Register the server, so that other processes find it."""
        first = self.hostfile.hosts[0].ssh
        url = url_of(self.options, first)
        self.folder.write(
            servers.ServerState(
                id=self.folder.id,
                hostfile=str(self.hostfile.path or ""),
                hosts=tuple(host.name for host in self.hostfile.hosts),
                model=self.model,
                url=url,
                only_there=only_there(self.options, first),
                api_key=self.options.api_key,
                pid=os.getpid(),
                rehearsal=self.cluster.rehearsal,
                local=all(host.ssh == LOCAL for host in self.hostfile.hosts),
            )
        )

    async def run(self) -> None:
        """Run, and restart after a failure if `restart` is on.

        A rank that fails before the first answer would fail again: its error is not retried.
        """
        while True:
            try:
                await self._run_once()
            except JobError as error:
                self._failures.append(time.monotonic())
                pause = self._pause()
                hopeless = isinstance(error, RankDied) and not self.has_served
                if not self.options.restart or pause is None or hopeless:
                    raise
                self.tell(Event(HOST, Failed.of(error)))
                number = len(self._failures)
                self.tell(Event(HOST, Restarting(pause, number)))
                await asyncio.sleep(pause)

    def _pause(self) -> float | None:
        """Return the seconds before the next start; None if it failed too often."""
        while self._failures and time.monotonic() - self._failures[0] > FAILURES_WINDOW_S:
            self._failures.popleft()
        count = len(self._failures)
        return None if count >= MAX_FAILURES else PAUSE_S * 2 ** (count - 1)

    async def _run_once(self) -> None:
        spec = JobSpec(
            hostfile=self.hostfile,
            program=self.options.program(self.model),
            backend=self.backend,
            python=self.options.python or sys.executable,
            env=self.options.environment(),
            rank_env=self.cluster.rank_env,
            starting_port=self.options.starting_port,
        )
        job = Job(with_free_ports(spec, reserved=(self.options.port, self.options.ctrl_port)))
        try:
            async with job:
                command = report_job(job, self.tell)
                protocol = JobProtocol(job, self.tell, self.deadlines, command)
                await _Run(self, job, protocol).follow()
        finally:
            killed = [rank.number for rank in job.ranks if rank.returncode == -signal.SIGKILL]
            if killed:
                self.tell(Event(HOST, RanksKilled(tuple(killed))))


class _Run:
    """One start of the server, from its job to its end."""

    def __init__(self, server: _Server, job: Job, protocol: JobProtocol) -> None:
        self.server = server
        self.job = job
        self.protocol = protocol
        self.watch = Watch(server.options.stall_s)
        self._dead: set[int] = set()
        self._sick: dict[int, tuple[float, str]] = {}  # rank -> time of the last heartbeat, and the reason

    async def follow(self) -> None:
        """Start and monitor the server until cancelled; raises on a failure."""
        server = self.server
        payload = Payload(
            api_key=server.options.api_key,
            names=tuple(host.name for host in server.hostfile.hosts),
            facts=ServeFacts(server.cluster.rehearsal, server.facts.get("digest")),
        )
        try:
            await self.protocol.start(payload)
            silence = time.monotonic()
            while True:
                event = await self._next()
                if event:
                    silence = time.monotonic()
                    await self._handle(event)
                elif not self.watch.serving and time.monotonic() - silence > server.deadlines.silence:
                    raise JobError(
                        f"no event from the ranks for {server.deadlines.silence:.0f} s while loading"
                    )
                self._check_sick()
                # a serving rank 0 watches its workers itself, and says so in /health
                if not self.watch.serving and (hung := self.protocol.watchdog.look(time.monotonic())):
                    raise hung
                if wrong := self.watch.look(time.monotonic()):
                    raise JobError(
                        wrong, where=self.job.ranks[0].name, fix=f"See the ranks' logs in {self.job.folder}."
                    )
        except asyncio.CancelledError:
            if self.watch.serving:  # before that, no rank reads the request
                await finish_cleanup(self._stop())
            raise

    async def _next(self) -> Event | None:
        """Return the next event, or None if there is none yet.

        Raises:
            JobError: the launcher has ended.
        """
        try:
            event = await self.job.next_event(LOOK_S)
        except TimeoutError:
            return None
        if event is None:
            raise self.protocol.launcher_error()
        return event

    def _check_sick(self) -> None:
        for rank, (since, why) in self._sick.items():
            if self.server.options.restart and time.monotonic() - since > SICK_S:
                raise RankDied(f"rank {rank}: {why}", rank=rank, where=self.job.ranks[rank].name)

    async def _handle(self, event: Event) -> None:
        self.watch.hear(event, time.monotonic())
        match event.body:
            case Serving():
                self.server.has_served = True
            case WorkerDown(rank, why):
                self._sick[rank] = time.monotonic(), why
            case WorkerRecovered(rank):
                self._sick.pop(rank, None)
        if not isinstance(event.body, RankError | Exited):
            await self.protocol.handle(event)
            return
        if event.rank in self._dead and event.rank != 0:
            self.server.tell(event)
            return
        self._dead.add(event.rank)
        if event.rank == 0 or not self.watch.serving or self.server.options.restart:
            await self.protocol.handle(event)  # raises the root cause
            raise await self.protocol.root_cause()
        # rank 0 stays up and reports the failure until the server is stopped
        self.server.tell(event)
        error = await self.protocol.root_cause()
        await self.job.send(WorkerDied(event.rank, error.what), to=0)
        self.server.tell(Event(HOST, Failed.of(error)))

    async def _stop(self) -> None:
        """Ask the ranks to end and wait briefly; leaving the job's block ends the rest."""
        await self.job.send(Stop())
        with contextlib.suppress(TimeoutError, JobError):
            async with asyncio.timeout(GOODBYE_S):
                while any(not rank.done and rank.returncode is None for rank in self.job.ranks):
                    if await self.job.next_event(GOODBYE_S) is None:
                        return
                await self.job.send(Ack())
                while await self.job.next_event(GOODBYE_S) is not None:
                    pass
