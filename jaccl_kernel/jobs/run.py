"""A job from start to end, the way every batch program goes: ready, go, joined, results, done.

Every wait has a deadline and names the ranks that it waits for. The first rank that fails ends the job; the
error names the rank whose failure explains the others.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from jaccl_kernel.errors import DeadlineExceeded, JobError
from jaccl_kernel.jobs import diagnose, lock, ports
from jaccl_kernel.jobs.job import Job
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.wire import HOST, Event

OnEvent = Callable[[Event], None]

LISTEN_S = 0.1  # from the go until a rank on the ring listens
LAST_WORDS_S = 1.5  # after one rank failed, how long the others may take to say why


@dataclass(frozen=True)
class Deadlines:
    """How long each wait of a job may take, in seconds."""

    ready: float = 180.0  # ssh, interpreter and imports, on the slowest node
    join: float = 60.0  # from go until every rank is in the group
    silence: float = 600.0  # between two events of the work itself (a big model loads in stages)
    finish: float = 20.0  # from the last result until the processes are gone


@dataclass
class Outcome:
    """What a job said: per rank its facts and its result, and how to do the same by hand."""

    job_id: str
    command: str
    facts: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""


async def run(
    spec: JobSpec,
    *,
    what: str = "a job",
    payload: dict[str, Any] | None = None,
    on_event: OnEvent = ignore,
    deadlines: Deadlines | None = None,
) -> Outcome:
    """Run a job to its end.

    Args:
        spec: the job; a port is chosen for it when all its ranks run here and none was given.
        what: its name for others who find this machine busy.
        payload: handed to every rank with the go, never in a command line.
        on_event: hears every event as it comes.
        deadlines: other bounds than the usual ones.

    Raises:
        RankDied: a rank failed.
        DeadlineExceeded: a wait took too long; says which ranks were waited for.
        Busy: another job holds a node, or the port is taken.
        JobError: mlx.launch refused the job, the launcher itself was killed, or a rank's result was lost.
    """
    deadlines = deadlines or Deadlines()
    with lock.hold([host.ssh for host in spec.hostfile.hosts], what):
        async with Job(with_port(spec)) as job:
            command = tell_job(job, on_event)
            return await Conversation(job, on_event, deadlines, command).hold(payload or {})


def with_port(spec: JobSpec, besides: Collection[int] = ()) -> JobSpec:
    """The job with free ports, where all its ranks run here and meet over TCP.

    Args:
        spec: the job.
        besides: ports that its program listens on itself.

    Raises:
        Busy: the ports that it asks for are taken.
        InputError: the ranks would meet at one of `besides`: whoever called there would be taken for a rank.
    """
    if spec.size == 1:
        return spec
    if spec.is_local():
        return replace(spec, starting_port=ports.choose(spec.size, spec.starting_port, besides))
    ports.refuse_shared(spec.starting_port or ports.FIRST, spec.size, besides)
    return spec


def tell_job(job: Job, on_event: OnEvent) -> str:
    """Tell where a job's logs are and what does the same by hand; returns that command."""
    command = job.spec.plain_command(job.folder / "hostfile.json")
    on_event(Event(HOST, "job", {"id": job.id, "folder": str(job.folder), "command": command}))
    return command


class Conversation:
    """The host's half of one job's protocol."""

    def __init__(self, job: Job, on_event: OnEvent, deadlines: Deadlines, command: str) -> None:
        self.job = job
        self.on_event = on_event
        self.deadlines = deadlines
        size = job.spec.size
        self.outcome = Outcome(job.id, command, [{} for _ in range(size)], [{} for _ in range(size)])
        self.joined: set[int] = set()

    async def hold(self, payload: dict[str, Any]) -> Outcome:
        """The whole of it, from the first word to the last."""
        await self.start(payload)
        await self._until(
            lambda: {rank.number for rank in self.job.ranks if rank.done},
            "to go on with the work",
            within=self.deadlines.silence,
            restarts=True,
        )
        await self.end()
        self._check_results()
        return self.outcome

    def _check_results(self) -> None:
        for rank, result in zip(self.job.ranks, self.outcome.results, strict=True):
            if not result:
                raise JobError(
                    f"rank {rank.number} was done, but its result did not arrive whole",
                    where=rank.name,
                    fix=f"Ask for fewer tokens or runs at once; its log is in {self.job.folder}.",
                )

    async def start(self, payload: dict[str, Any]) -> None:
        """Until every rank is in the group."""
        await self._until(
            lambda: {rank.number for rank in self.job.ranks if rank.ready},
            "to be ready (ssh, Python and imports)",
            within=self.deadlines.ready,
        )
        join = self.deadlines.join
        *first, last = range(self.job.spec.size)
        for rank in first:
            await self.job.send("go", to=rank, join_deadline=join, payload=payload)
        if first:
            # MLX's ring begins with the last rank's connection to rank 0; refused, it waits a second
            await asyncio.sleep(LISTEN_S)
        await self.job.send("go", to=last, join_deadline=join, payload=payload)
        await self._until(lambda: self.joined, "to join the group", within=join + 5)

    async def end(self) -> None:
        """Let ranks that are done go, and wait until they have."""
        await self.job.send("ack")
        await self._until_ended()

    async def _until(
        self, there: Callable[[], set[int]], what: str, *, within: float, restarts: bool = False
    ) -> None:
        """Take events until `there()` holds every rank; `restarts`: the deadline is one of silence."""
        everyone = set(range(self.job.spec.size))
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        while missing := everyone - there():
            try:
                event = await self.job.next_event(max(0.0, end - loop.time()))
            except TimeoutError:
                names = ", ".join(f"rank {r} ({self.job.ranks[r].name})" for r in sorted(missing))
                raise DeadlineExceeded(
                    f"waited {within:.0f} s for {names} {what}; last seen at stage "
                    f"'{self.job.ranks[min(missing)].stage}'",
                    where=self.job.ranks[min(missing)].name,
                    fix=f"See the ranks' logs in {self.job.folder}.",
                ) from None
            if event is None:
                raise self.gone()
            if restarts:
                end = loop.time() + within
            await self.hear(event)

    async def hear(self, event: Event) -> None:
        """Take one event.

        Raises:
            JobError: it tells that a rank has failed.
        """
        self.on_event(event)
        if event.kind == "ready":
            self.outcome.facts[event.rank] = event.data
        elif event.kind == "joined":
            self.joined.add(event.rank)
        elif event.kind == "result":
            self.outcome.results[event.rank] |= event.data
        elif event.kind == "error" or (event.kind == "exit" and not self._well_ended(event)):
            raise await self.failure()

    def _well_ended(self, exit_event: Event) -> bool:
        return self.job.ranks[exit_event.rank].done and exit_event.data["returncode"] == 0

    async def failure(self, patience: float = LAST_WORDS_S) -> JobError:
        """Listen a little longer, so that the rank that died first can be told from those that lost it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while (left := end - loop.time()) > 0:
            try:
                event = await self.job.next_event(left)
            except TimeoutError:
                break
            if event is None:
                break
            self.on_event(event)
        return diagnose.died(self.job.ranks)

    def gone(self) -> JobError:
        """Why there is no launcher any more."""
        if any(rank.returncode not in (None, 0) for rank in self.job.ranks):
            return diagnose.died(self.job.ranks)
        refusal = [line for line in self.job.refusal if line.strip()]
        if (self.job.returncode or 0) < 0:
            how = diagnose.describe_exit(self.job.returncode or 0)
            return JobError(f"the launcher process was {how}; its ranks are gone too")
        last = refusal[-1].rpartition("error: ")[2] if refusal else "it gave no reason"
        return JobError(
            f"mlx.launch refused the job: {last}", fix="Check the hostfile: `jaccl hostfile check`."
        )

    async def _until_ended(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.deadlines.finish
        try:
            while (event := await self.job.next_event(max(0.0, end - loop.time()))) is not None:
                await self.hear(event)
        except TimeoutError:
            alive = [rank.name for rank in self.job.ranks if rank.returncode is None]
            raise DeadlineExceeded(
                f"the ranks on {', '.join(alive)} were done but did not exit in {self.deadlines.finish:.0f} s"
            ) from None
