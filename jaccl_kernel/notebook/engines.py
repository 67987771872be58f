"""ipyparallel engines, one per rank: started as a `Job`, watched, and ended together.

A thread runs the job; when it ends, the engines end. A pending result fails at once with the name of a dead
rank, before ipyparallel's heartbeat notices. Contains no models.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import ipyparallel

from jaccl_kernel.core.errors import JacclError, JobError, RankDied, Stopped
from jaccl_kernel.core.events import Event, Exited, RankError, Ready, Stage
from jaccl_kernel.core.messages import Connect, Message, Payload
from jaccl_kernel.launch import lock
from jaccl_kernel.launch.controller import Controller
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.run import Deadlines, JobProtocol, OnEvent, report_job, with_free_ports
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.launch.watchdog import FIRST_S, LOOK_S, Watchdog
from jaccl_kernel.notebook.work import Work

TICK_S = 0.02
FAILURE_WAIT_S = 0.3  # after one rank has failed, how long to collect the errors of the others
CLOSE_S = 20.0
REGISTER_S = 60.0
RETRY_S = 1.0  # until a connecting rank gets another request; doubled each time, for a busy machine
RESTART = "Start new ranks: Ranks.start()."

T = TypeVar("T")


class Engines:
    """The engines of one job.

    Args:
        spec: the job.
        on_event: called with every event of the ranks, on the engines' thread.

    Attributes:
        client: the ipyparallel.Client, once the engines run.
        error: why the engines ended, unless by `close`.
        stages: the last stage of each rank.
        facts: the machine and versions of each rank.
        command: the plain mlx.launch command of the job.
        busy: whether a call or a cell is running.
        measurable: whether it is one of ours, which makes progress.
    """

    def __init__(self, spec: JobSpec, on_event: OnEvent) -> None:
        self.spec = spec
        self.names = list(spec.names())
        self.client: Any = None
        self.error: JacclError | None = None
        self.stages: dict[int, str] = {}
        self.facts: list[Ready] = []
        self.command = ""
        self._on_event = on_event
        self.busy = self.measurable = False
        self._up: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: Job | None = None
        self._work = Work("resident ranks", on_end=self._ended)

    def start(self, deadlines: Deadlines, stop_when: threading.Event) -> None:
        """Start the engines; returns when all have joined and proved the group, and have answered.

        Args:
            deadlines: of the job.
            stop_when: stops the start when it is set (Stopped).

        Raises:
            Busy: another job uses these hosts.
            JobError: a rank did not start, join or answer; says which and why.
        """
        self._work.start(lambda: self._run_job(deadlines))
        try:
            self._until_up(stop_when)
            self.client = ipyparallel.Client(connection_info=self._up.result(), timeout=REGISTER_S)
            self._register()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether all engines run."""
        return self.running and self.error is None

    @property
    def running(self) -> bool:
        """Whether the job has not ended."""
        return self._work.running

    @property
    def pids(self) -> list[int | None]:
        """The process id of each rank that runs on this machine."""
        return [rank.pid for rank in self._job.ranks] if self._job else []

    def refuse_if_down(self) -> None:
        """Raise the error that ended the engines, if they have ended."""
        if self.error:
            raise self.error
        if not self.running:
            raise JobError("the ranks are closed", fix=RESTART)

    def send(self, message: Message) -> None:
        """Send every rank a message, also during a computation; returns at once."""
        if self._loop and self._job and self.running:
            asyncio.run_coroutine_threadsafe(self._job.send(message), self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engines' thread, and wait for it."""
        assert self._loop
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End the engines and the controller. Safe to call again."""
        self._work.stop()
        deadline = time.monotonic() + CLOSE_S
        while self.running and time.monotonic() < deadline:
            time.sleep(TICK_S)
        if self.client is not None and not self.client._closed:
            self.client.close(linger=0)

    def _until_up(self, stop_when: threading.Event) -> None:
        while not self._up.done():
            if stop_when.wait(TICK_S):
                raise Stopped("stopped while the ranks started", fix="Start them again.")

    def _register(self) -> None:
        end = time.monotonic() + REGISTER_S
        while len(self.client.ids) < self.spec.size:
            self.refuse_if_down()
            if time.monotonic() > end:
                missing = sorted(set(range(self.spec.size)) - set(self.client.ids))
                raise JobError(
                    f"rank {', '.join(map(str, missing))} did not register with the controller",
                    fix="Check that its node can reach this machine (firewall, Local Network privacy).",
                )
            time.sleep(TICK_S)
        for rank in range(self.spec.size):
            self._reach(rank, end)

    def _reach(self, rank: int, end: float) -> None:
        """Ask a rank until its answer and output arrive: messages are lost while its sockets connect."""
        wait = RETRY_S
        while True:
            self.refuse_if_down()
            pending = self.client[[rank]].execute("pass", silent=False)
            if pending.wait(wait) and pending.wait_for_output(wait):
                return
            wait *= 2
            if time.monotonic() > end:
                raise JobError(
                    f"rank {rank} registered with the controller, but does not answer",
                    where=self.names[rank],
                    fix="Check that its node can reach this machine (firewall, Local Network privacy).",
                )

    async def _run_job(self, deadlines: Deadlines) -> None:
        """Start, watch and end the job; sets `_up` and `error`."""
        hosts = [host.ssh for host in self.spec.hostfile.hosts]
        self._loop = asyncio.get_running_loop()
        try:
            with lock.hold(hosts, "resident ranks"):
                async with Controller(hosts) as controller, Job(with_free_ports(self.spec)) as job:
                    self._job = job
                    self.command = report_job(job, self._handle)
                    protocol = JobProtocol(job, self._handle, deadlines, self.command)
                    try:
                        await protocol.start(Payload())  # joins while the controller is still coming up
                        await job.send(Connect(await controller.connection()))
                        self.facts = protocol.outcome.facts
                        self._up.set_result(str(controller.client_file))
                        await self._watch(job, protocol, controller)
                    except JacclError as error:
                        self._fail(error)
                        raise
        except BaseException as error:
            if not self._up.done():
                self._up.set_exception(error)
            raise

    async def _watch(self, job: Job, protocol: JobProtocol, controller: Controller) -> None:
        """Handle events until a rank or the controller ends; always raises."""
        exited = asyncio.create_task(controller.wait())
        try:
            while not exited.done():
                self._look(protocol.watchdog)
                try:
                    event = await job.next_event(LOOK_S)
                except TimeoutError:
                    continue
                if event is None:
                    raise protocol.launcher_error()
                if isinstance(event.body, RankError | Exited):
                    self._handle(event)
                    raise await protocol.root_cause(FAILURE_WAIT_S)
                self._handle(event)
            raise JobError("the ipyparallel controller has exited; the ranks were ended", fix=RESTART)
        finally:
            exited.cancel()

    def _look(self, watchdog: Watchdog) -> None:
        still_s = FIRST_S if self.measurable else None
        if wrong := watchdog.look(time.monotonic(), still_s=still_s, patient=self.busy):
            raise wrong

    def _handle(self, event: Event) -> None:
        if isinstance(event.body, Stage):
            self.stages[event.rank] = f"{event.body.name}: {event.body.text}"
        self._on_event(event)

    def _fail(self, error: JacclError) -> None:
        """Fail all pending results with this error."""
        self.error = error
        client = self.client
        if client is None or client._closed:
            return

        def fail_pending() -> None:
            try:
                raise error
            except JacclError:
                content = ipyparallel.error.wrap_exception()
            for uuid in list(client._engines.values()):
                for message in list(client._outstanding_dict[uuid]):
                    if message in client.results:
                        continue
                    reply = client.session.msg("apply_reply", content=content)
                    reply["parent_header"]["msg_id"] = message
                    reply["metadata"]["engine"] = uuid
                    client._handle_apply_reply(reply)

        client._io_loop.add_callback(fail_pending)

    def _ended(self, result: Any, error: BaseException | None) -> None:
        del result
        if isinstance(error, RankDied | JobError) and self.error is None:
            self.error = error
