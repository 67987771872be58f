"""Serve: start a server over the ranks, watch it from outside, restart it if asked, and stop it whole.

`serve` is the supervisor and lives as long as the server; `serve_detached.py` runs one in a process of its
own.
"""

import asyncio
import contextlib
import ipaddress
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.hostfile import LOCAL, Hostfile, ssh_host
from jaccl_kernel.errors import Busy, InputError, JacclError, JobError, RankDied
from jaccl_kernel.jobs import lock, ports, servers
from jaccl_kernel.jobs.ending import to_its_end
from jaccl_kernel.jobs.job import Job
from jaccl_kernel.jobs.run import Conversation, Deadlines, OnEvent, ignore, tell_job, with_port
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.preflight import check_hostfile, find_model
from jaccl_kernel.steps.serve_watch import Watch
from jaccl_kernel.wire import HOST, Event

LOOK_S = 0.5
GOODBYE_S = 6.0  # for open streams to end and ranks to leave by themselves
MAX_FAILURES = 5  # within this many seconds, after which a restart is not tried again
FAILURES_WINDOW_S = 600.0
SICK_S = 5.0  # a rank that is silent for so long is not waited for, where a restart is wanted
PAUSE_S = 1.0  # before the first restart; twice as long before each further one


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and how. None leaves a number to the rank program (see `ranks/serve.py`).

    Args:
        model: a folder, or a hub id in the local cache; None for the demo model.
        host, port: where rank 0 serves HTTP.
        ctrl_port: rank 0's control port, which the workers connect to.
        api_key: what clients must send; made where `host` is not loopback and none is given.
        alias: the model's id in the API.
        sharding: "tensor" or "pipeline".
        backend, env, python, starting_port: as of a benchmark.
        restart: start again what has failed.
        max_batch, max_queue, context, cache_gb, memory_gb, prefill_step: limits.
        cors_origins: web origins that may call.
        stall_s: how long a step may take before the ranks count as stuck.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    ctrl_port: int = 18080
    api_key: str | None = None
    alias: str | None = None
    sharding: str = "tensor"
    backend: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    starting_port: int | None = None
    restart: bool = False
    max_batch: int | None = None
    max_queue: int | None = None
    context: int | None = None
    cache_gb: float | None = None
    memory_gb: float | None = None
    prefill_step: int | None = None
    cors_origins: tuple[str, ...] = ()
    stall_s: float = 300.0

    def program(self, model: str) -> tuple[str, ...]:
        """The rank program's arguments. The key is not among them: it travels on stdin."""
        words = ["serve", "--model", model, "--host", self.host]
        given = {
            "port": self.port,
            "ctrl-port": self.ctrl_port,
            "alias": self.alias,
            "sharding": self.sharding,
            "max-batch": self.max_batch,
            "max-queue": self.max_queue,
            "context": self.context,
            "cache-gb": self.cache_gb,
            "memory-gb": self.memory_gb,
            "prefill-step": self.prefill_step,
        }
        for name, value in given.items():
            words += [f"--{name}={value}"] if value is not None else []
        return (*words, *(f"--cors-origin={origin}" for origin in self.cors_origins))


async def serve(
    hostfile: Hostfile,
    options: ServeOptions | None = None,
    *,
    on_event: OnEvent = ignore,
    folder: servers.Folder | None = None,
    deadlines: Deadlines | None = None,
) -> None:
    """Serve until cancelled, which stops everything.

    Events of the ranks go to `on_event` as they come, and of the host (rank -1): `server` (id, url, api_key
    only if it was made here), `failed` (what, rank, where, fix), `restart` (in seconds, number).

    Raises:
        InputError, HostfileError, ModelError: told before anything starts.
        Busy: the cluster, or a port, is in use; says by whom.
        RankDied, DeadlineExceeded, JobError: it failed, and was not to be restarted.
    """
    options = check_options(options or ServeOptions())
    check_ports(hostfile, options)
    backend = effective_backend(hostfile, options.backend)
    check_hostfile(hostfile, backend)
    size = len(hostfile.hosts)
    model, facts = await find_model(hostfile, options.model, options.sharding, [size], on_event)
    url = url_of(options, hostfile.hosts[0].ssh)
    title = f"a server of {model.rpartition('/')[2]} at {url}"
    with lock.hold([host.ssh for host in hostfile.hosts], title), contextlib.ExitStack() as stack:
        home = folder or servers.Folder.make()
        stack.enter_context(home.held())

        def tell(event: Event) -> None:
            if event.kind == "serving":  # rank 0 knows its address as it is there
                told = {"url": url, "only_there": only_there(options, hostfile.hosts[0].ssh)}
                event = replace(event, data=event.data | told)
            home.add_event(event)
            on_event(event)

        one = _Server(hostfile, options, backend, model, facts, home, tell, deadlines)
        one.register()
        try:
            await one.live()
        except asyncio.CancelledError:
            tell(Event(HOST, "stopped", {}))
            raise
        except JacclError as error:
            tell(_failed(error))
            raise
        finally:
            servers.forget_old()


def check_options(options: ServeOptions) -> ServeOptions:
    """The options, with an API key where they need one.

    Raises:
        InputError: a value makes no sense.
    """
    for name in ("port", "ctrl_port"):
        if not 0 < getattr(options, name) < 1 << 16:
            raise InputError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}",
                fix="Give a number from 1 to 65535.",
            )
    if options.port == options.ctrl_port:
        raise InputError("--port and --ctrl-port are the same", fix="Give each a port of its own.")
    for name in ("max_batch", "max_queue", "context", "prefill_step"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}", fix="Give a number of at least 1.")
    for name in ("cache_gb", "memory_gb"):
        value = getattr(options, name)
        if value is not None and not value >= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}", fix="Give gigabytes, 0 or more.")
    if not options.stall_s > 0:
        raise InputError(f"--stall is {options.stall_s}", fix="Give seconds, more than 0.")
    if options.api_key is not None and (
        not options.api_key.isascii() or not options.api_key.isprintable() or len(options.api_key) < 8
    ):
        raise InputError(
            "the API key is too short, or not plain text", fix="Use at least 8 ASCII characters."
        )
    if options.api_key is None and not is_loopback(options.host):
        return replace(options, api_key=f"jaccl-{secrets.token_urlsafe(24)}")
    return options


def is_loopback(host: str) -> bool:
    """Whether only programs on rank 0's own machine reach this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_here(ssh: str) -> bool:
    return ssh == LOCAL or ssh_host(ssh) == "localhost"


def check_ports(hostfile: Hostfile, options: ServeOptions) -> None:
    """Refuse a port that is taken, where rank 0 runs on this machine; elsewhere it says so itself.

    Raises:
        Busy: says by which of our servers, if it is one.
    """
    if hostfile.hosts[0].ssh != LOCAL:
        return
    url = url_of(options)
    for folder in servers.folders():
        state = folder.read()
        if state and state.url == url:
            since = time.strftime("%H:%M:%S", time.localtime(state.since))
            raise Busy(
                f"a server runs at {url} already: {state.model} (process {state.pid}, since {since})",
                fix=f"Stop it with `jaccl stop {state.id}`, or choose another --port.",
            )
    wanted = [options.port] if len(hostfile.hosts) == 1 else [options.port, options.ctrl_port]
    for port in wanted:
        if not ports.are_free(port, 1):
            raise Busy(f"port {port} is in use by another program", fix="Choose another one.")


def url_of(options: ServeOptions, first: str = LOCAL) -> str:
    """Where the server is reached from this machine, without /v1; `first` is rank 0's ssh name."""
    host = options.host
    if host in ("0.0.0.0", "::"):
        local = "127.0.0.1" if host == "0.0.0.0" else "::1"
        host = local if _is_here(first) else ssh_host(first)
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{options.port}"


def only_there(options: ServeOptions, first: str) -> str:
    """Why no program on this machine reaches the server, and what to do; "" where one does."""
    if _is_here(first) or not is_loopback(options.host):
        return ""
    name, port = ssh_host(first), options.port
    return (
        f"only programs on {name} itself reach {options.host} there: serve with --host 0.0.0.0 (an API key "
        f"is made), or tunnel: ssh -N -L {port}:{options.host}:{port} {first}"
    )


class _Server:
    """One server, over as many starts as it takes."""

    def __init__(
        self,
        hostfile: Hostfile,
        options: ServeOptions,
        backend: str,
        model: str,
        facts: dict[str, Any],
        folder: servers.Folder,
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
        self._failures: deque[float] = deque()

    def register(self) -> None:
        """Let others know."""
        first = self.hostfile.hosts[0].ssh
        url = url_of(self.options, first)
        self.folder.write(
            servers.State(
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
        self.tell(Event(HOST, "server", {"id": self.folder.id, "url": url, "model": self.model}))

    async def live(self) -> None:
        """Run, and run again where that is wanted."""
        while True:
            try:
                await self._run_once()
            except JobError as error:
                self._failures.append(time.monotonic())
                pause = self._pause()
                if not self.options.restart or pause is None:
                    raise
                self.tell(_failed(error))
                number = len(self._failures)
                self.tell(Event(HOST, "restart", {"in_s": pause, "number": number}))
                await asyncio.sleep(pause)

    def _pause(self) -> float | None:
        """How long to wait before the next start; None when it has failed too often."""
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
            env=self.options.env,
            rank_env=self.cluster.rank_env,
            starting_port=self.options.starting_port,
        )
        job = Job(with_port(spec, besides=(self.options.port, self.options.ctrl_port)))
        try:
            async with job:
                command = tell_job(job, self.tell)
                talk = Conversation(job, self.tell, self.deadlines, command)
                await _Run(self, job, talk).follow()
        finally:
            killed = [rank.number for rank in job.ranks if rank.returncode == -signal.SIGKILL]
            if killed:
                self.tell(Event(HOST, "killed", {"ranks": killed}))


class _Run:
    """One start of the server, from its job to its end."""

    def __init__(self, server: _Server, job: Job, talk: Conversation) -> None:
        self.server = server
        self.job = job
        self.talk = talk
        self.watch = Watch(server.options.stall_s)
        self._dead: set[int] = set()
        self._sick: dict[int, tuple[float, str]] = {}  # rank -> since when it is silent, and what was said

    async def follow(self) -> None:
        """Start and watch; returns never: it is cancelled, or raises."""
        server = self.server
        payload = {
            "api_key": server.options.api_key,
            "names": [host.name for host in server.hostfile.hosts],
            "facts": {"rehearsal": server.cluster.rehearsal, "digest": server.facts.get("digest")},
        }
        try:
            await self.talk.start(payload)
            silence = time.monotonic()
            while True:
                event = await self._next()
                if event:
                    silence = time.monotonic()
                    await self._hear(event)
                elif not self.watch.serving and time.monotonic() - silence > server.deadlines.silence:
                    raise JobError(
                        f"the ranks said nothing for {server.deadlines.silence:.0f} s while loading"
                    )
                self._check_sick()
                if wrong := self.watch.look(time.monotonic()):
                    raise JobError(
                        wrong, where=self.job.ranks[0].name, fix=f"See the ranks' logs in {self.job.folder}."
                    )
        except asyncio.CancelledError:
            if self.watch.serving:  # before that, nobody over there listens for it
                await to_its_end(self._goodbye())
            raise

    async def _next(self) -> Event | None:
        """The next event, or None for a moment without any.

        Raises:
            JobError: the launcher is gone.
        """
        try:
            event = await self.job.next_event(LOOK_S)
        except TimeoutError:
            return None
        if event is None:
            raise self.talk.gone()
        return event

    def _check_sick(self) -> None:
        for rank, (since, why) in self._sick.items():
            if self.server.options.restart and time.monotonic() - since > SICK_S:
                raise RankDied(f"rank {rank}: {why}", rank=rank, where=self.job.ranks[rank].name)

    async def _hear(self, event: Event) -> None:
        self.watch.hear(event, time.monotonic())
        if event.kind == "sick":
            self._sick[event.data["rank_of"]] = time.monotonic(), event.data["why"]
        elif event.kind == "well":
            self._sick.pop(event.data["rank_of"], None)
        if event.kind not in ("error", "exit"):
            await self.talk.hear(event)
            return
        if event.rank in self._dead and event.rank != 0:
            self.server.tell(event)
            return
        self._dead.add(event.rank)
        if event.rank == 0 or not self.watch.serving or self.server.options.restart:
            await self.talk.hear(event)  # raises the first cause
            raise await self.talk.failure()
        # rank 0 stays up to say so, until someone stops it
        self.server.tell(event)
        error = await self.talk.failure()
        await self.job.send("died", to=0, rank=event.rank, why=error.what)
        self.server.tell(_failed(error))

    async def _goodbye(self) -> None:
        """Ask the ranks to end, and give them a moment; leaving the job's block ends what did not."""
        await self.job.send("stop")
        with contextlib.suppress(TimeoutError, JobError):
            async with asyncio.timeout(GOODBYE_S):
                while any(not rank.done and rank.returncode is None for rank in self.job.ranks):
                    if await self.job.next_event(GOODBYE_S) is None:
                        return
                await self.job.send("ack")
                while await self.job.next_event(GOODBYE_S) is not None:
                    pass


def _failed(error: JacclError) -> Event:
    return Event(
        HOST,
        "failed",
        {
            "type": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "fix": error.fix,
            "rank": getattr(error, "rank", None),
            "last_words": list(getattr(error, "last_words", ())),
        },
    )
