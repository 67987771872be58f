"""Runs one job from start to end: ready, go, joined, results, done.

Every wait has a deadline, and its error names the ranks that are missing. The first failure stops the job;
the error names the rank that failed first.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TypeVar

from jaccl_kernel.core.errors import DeadlineExceeded, JobError
from jaccl_kernel.core.events import (
    HOST,
    BenchResult,
    Event,
    Exited,
    JobStarted,
    Joined,
    RankError,
    Ready,
    SmokeResult,
)  # fmt: skip
from jaccl_kernel.core.messages import Ack, Go, Payload
from jaccl_kernel.launch import diagnose, lock, ports
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.launch.watchdog import LOOK_S, STILL_S, Watchdog

OnEvent = Callable[[Event], None]
Result = SmokeResult | BenchResult
R = TypeVar("R", SmokeResult, BenchResult)

RING_LISTEN_S = 0.1  # time that a rank of the ring backend needs after "go" until it listens
FAILURE_WAIT_S = 1.5  # after one rank failed, how long to collect the errors of the others


@dataclass(frozen=True)
class Deadlines:
    """How long each wait of a job may take, in seconds."""

    ready: float = 180.0  # ssh, interpreter and imports, on the slowest node
    join: float = 60.0  # from go until every rank is in the group
    silence: float = 600.0  # between two events during the work (a large model loads in stages)
    finish: float = 20.0  # from the last result until the processes are gone


@dataclass
class Outcome:
    """The outcome of a job: facts and result of each rank, and the equivalent mlx.launch command."""

    job_id: str
    command: str
    facts: list[Ready] = field(default_factory=list)
    results: list[Result | None] = field(default_factory=list)

    def results_of(self, kind: type[R]) -> list[R]:
        """The ranks' results, which are of this kind."""
        return [one for one in self.results if isinstance(one, kind)]


def ignore(event: Event) -> None:
    """An event listener that does nothing."""


async def run(
    spec: JobSpec,
    *,
    what: str = "a job",
    payload: Payload | None = None,
    on_event: OnEvent = ignore,
    deadlines: Deadlines | None = None,
) -> Outcome:
    """Run a job until it ends.

    Args:
        spec: the job; if all ranks are local and no port is given, a free one is chosen.
        what: its name in the error of another job that finds the node busy.
        payload: sent to every rank with "go", never on a command line.
        on_event: called with every event as it arrives.
        deadlines: replaces the default deadlines.

    Raises:
        RankDied: a rank failed.
        DeadlineExceeded: a wait took too long; the message names the missing ranks.
        Busy: another job uses a node, or the port is in use.
        JobError: mlx.launch rejected the job, the launcher was killed, or a rank's result was lost.
    """
    deadlines = deadlines or Deadlines()
    with lock.hold([host.ssh for host in spec.hostfile.hosts], what):
        async with Job(with_free_ports(spec)) as job:
            command = report_job(job, on_event)
            return await JobProtocol(job, on_event, deadlines, command).run(payload or Payload())


def with_free_ports(spec: JobSpec, reserved: Collection[int] = ()) -> JobSpec:
    """The job with free ports chosen, if all its ranks run on this machine.

    Args:
        spec: the job.
        reserved: ports that the program itself listens on.

    Raises:
        Busy: the requested ports are in use.
        InputError: the ranks' ports contain one of `reserved`; a client there would be accepted as a rank.
    """
    if spec.size == 1:
        return spec
    if spec.is_local():
        return replace(spec, starting_port=ports.choose(spec.size, spec.starting_port, reserved))
    ports.check_not_reserved(spec.starting_port or ports.LAUNCH_DEFAULT, spec.size, reserved)
    return spec


def report_job(job: Job, on_event: OnEvent) -> str:
    """Report the job's log folder and the equivalent mlx.launch command; returns the command."""
    command = job.spec.plain_command(job.folder / "hostfile.json")
    on_event(Event(HOST, JobStarted(job.id, str(job.folder), command)))
    return command


class JobProtocol:
    """The host's side of the protocol between the host and the ranks of one job."""

    def __init__(self, job: Job, on_event: OnEvent, deadlines: Deadlines, command: str) -> None:
        self.job = job
        self.on_event = on_event
        self.deadlines = deadlines
        self.watchdog = Watchdog(job.ranks)
        size = job.spec.size
        self.outcome = Outcome(job.id, command, [Ready()] * size, [None] * size)
        self.joined: set[int] = set()

    async def run(self, payload: Payload) -> Outcome:
        """Start the ranks, wait for their results and end the job."""
        await self.start(payload)
        await self._until(
            lambda: {rank.number for rank in self.job.ranks if rank.done},
            "to make progress",
            within=self.deadlines.silence,
            working=True,
        )
        await self.end()
        self._check_results()
        return self.outcome

    def _check_results(self) -> None:
        for rank, result in zip(self.job.ranks, self.outcome.results, strict=True):
            if result is None:
                raise JobError(
                    f"rank {rank.number} finished, but its result did not arrive complete",
                    where=rank.name,
                    fix=f"Request fewer tokens or runs at once; the rank's log is in {self.job.folder}.",
                )

    async def start(self, payload: Payload) -> None:
        """Send "go" to every rank and wait until all have joined the group."""
        await self._until(
            lambda: {rank.number for rank in self.job.ranks if rank.ready},
            "to be ready (ssh, Python and imports)",
            within=self.deadlines.ready,
        )
        join = self.deadlines.join
        go = Go(join, payload)
        *first, last = range(self.job.spec.size)
        for rank in first:
            await self.job.send(go, to=rank)
        if first:
            # the last rank of MLX's ring connects to rank 0 first; if refused, it waits for a second
            await asyncio.sleep(RING_LISTEN_S)
        await self.job.send(go, to=last)
        await self._until(lambda: self.joined, "to join the group", within=join + 5)

    async def end(self) -> None:
        """Acknowledge the ranks' results and wait until they have exited."""
        await self.job.send(Ack())
        await self._until_ended()

    async def _until(
        self, arrived: Callable[[], set[int]], what: str, *, within: float, working: bool = False
    ) -> None:
        """Handle events until `arrived()` contains every rank.

        Args:
            arrived: returns the ranks that have arrived.
            what: what the others are waited for, for the error.
            within: seconds.
            working: the ranks are at work: each event starts the deadline again, and the watchdog judges
                their progress.
        """
        everyone = set(range(self.job.spec.size))
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while missing := everyone - arrived():
            try:
                event = await self.job.next_event(min(LOOK_S, max(0.0, end - loop.time())))
            except TimeoutError:
                self._look(working)
                if loop.time() < end:
                    continue
                names = ", ".join(f"rank {r} ({self.job.ranks[r].name})" for r in sorted(missing))
                raise DeadlineExceeded(
                    f"waited {within:.0f} s for {names} {what}; last stage: "
                    f"'{self.job.ranks[min(missing)].stage}'",
                    where=self.job.ranks[min(missing)].name,
                    fix=f"See the ranks' logs in {self.job.folder}.",
                ) from None
            if event is None:
                raise self.launcher_error()
            if working:
                end = loop.time() + within
            await self.handle(event)
            self._look(working)

    def _look(self, working: bool) -> None:
        if wrong := self.watchdog.look(time.monotonic(), still_s=STILL_S if working else None):
            raise wrong

    async def handle(self, event: Event) -> None:
        """Handle one event.

        Raises:
            JobError: the event reports that a rank failed.
        """
        self.on_event(event)
        match event.body:
            case Ready() as facts:
                self.outcome.facts[event.rank] = facts
            case Joined():
                self.joined.add(event.rank)
            case SmokeResult() | BenchResult() as result:
                self.outcome.results[event.rank] = result
            case Exited(0) if self.job.ranks[event.rank].done:
                pass
            case RankError() | Exited():
                raise await self.root_cause()

    async def root_cause(self, wait: float = FAILURE_WAIT_S) -> JobError:
        """Collect events for `wait` seconds, then return the error of the rank that failed first."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        while (left := end - loop.time()) > 0:
            try:
                event = await self.job.next_event(left)
            except TimeoutError:
                break
            if event is None:
                break
            self.on_event(event)
        return diagnose.root_cause(self.job.ranks, self.job.spec.hostfile.path)

    def launcher_error(self) -> JobError:
        """The reason why the launcher has exited."""
        if any(rank.returncode not in (None, 0) for rank in self.job.ranks):
            return diagnose.root_cause(self.job.ranks, self.job.spec.hostfile.path)
        stderr = [line for line in self.job.launcher_stderr if line.strip()]
        if (self.job.returncode or 0) < 0:
            how = diagnose.describe_exit(self.job.returncode or 0)
            return JobError(f"the launcher process was {how}; its ranks have ended too")
        last = stderr[-1].rpartition("error: ")[2] if stderr else "no error output"
        return JobError(
            f"mlx.launch rejected the job: {last}", fix="Check the hostfile: `jaccl hostfile check`."
        )

    async def _until_ended(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.deadlines.finish
        try:
            while (event := await self.job.next_event(max(0.0, end - loop.time()))) is not None:
                await self.handle(event)
        except TimeoutError:
            alive = [rank.name for rank in self.job.ranks if rank.returncode is None]
            raise DeadlineExceeded(
                f"the ranks on {', '.join(alive)} finished but did not exit in {self.deadlines.finish:.0f} s"
            ) from None
