"""Engines of ipyparallel, one a rank: started as a job of ours, watched, and ended together.

Their life runs on a thread of its own, and its end is theirs. Whoever waits for a result hears of a death at
once, by name, not when ipyparallel's heartbeat would notice. Knows no models.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import ipyparallel

from jaccl_kernel.errors import JacclError, JobError, RankDied, Stopped
from jaccl_kernel.jobs import lock
from jaccl_kernel.jobs.controller import Controller
from jaccl_kernel.jobs.job import Job
from jaccl_kernel.jobs.run import Conversation, Deadlines, OnEvent, tell_job, with_port
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.notebook.work import Work
from jaccl_kernel.wire import Event

TICK_S = 0.02
LAST_WORDS_S = 0.3  # after a rank's end, how long others may take to end too: then the first is named
CLOSE_S = 20.0
REGISTER_S = 30.0
AGAIN_EVERY_S = 1.0  # for a rank that was asked and has not answered, while it connects
RESTART = "Start new ones: Ranks.start()."

T = TypeVar("T")


class Engines:
    """The engines of one job.

    Args:
        spec: the job.
        on_event: hears every event of its ranks, on a thread of its own.

    Attributes:
        client: the ipyparallel.Client, once they are up.
        error: why they are gone, if they did not end by `close`.
        stages: what each rank said last of itself.
        facts: what each rank's machine is.
        command: the plain mlx.launch command of the job.
    """

    def __init__(self, spec: JobSpec, on_event: OnEvent) -> None:
        self.spec = spec
        self.names = list(spec.names())
        self.client: Any = None
        self.error: JacclError | None = None
        self.stages: dict[int, str] = {}
        self.facts: list[dict[str, Any]] = []
        self.command = ""
        self._on_event = on_event
        self._up: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: Job | None = None
        self._work = Work("resident ranks", on_end=self._ended)

    def start(self, deadlines: Deadlines, stop_when: threading.Event) -> None:
        """Start them; returns when all are joined and proven, and each has answered.

        Args:
            deadlines: of the join.
            stop_when: ends the start when it is set (Stopped).

        Raises:
            Busy: another job holds these hosts.
            JobError: a rank did not start, join or answer; says which and why.
        """
        self._work.start(lambda: self._live(deadlines))
        try:
            self._until_up(stop_when)
            self.client = ipyparallel.Client(connection_info=self._up.result(), timeout=10)
            self._register()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether they run."""
        return self.running and self.error is None

    @property
    def running(self) -> bool:
        """Whether anything of them is still there."""
        return self._work.running

    @property
    def pids(self) -> list[int | None]:
        """The process id of each rank that runs on this machine."""
        return [rank.pid for rank in self._job.ranks] if self._job else []

    def refuse_if_down(self) -> None:
        """Raise why they are gone, if they are."""
        if self.error:
            raise self.error
        if not self.running:
            raise JobError("these ranks were closed", fix=RESTART)

    def send(self, kind: str, **data: Any) -> None:
        """Send every rank a message, past whatever it computes; returns at once."""
        if self._loop and self._job and self.running:
            asyncio.run_coroutine_threadsafe(self._job.send(kind, **data), self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on their thread, and wait for it."""
        assert self._loop
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End all of them and the controller. Harmless when they are gone."""
        self._work.stop()
        deadline = time.monotonic() + CLOSE_S
        while self.running and time.monotonic() < deadline:
            time.sleep(TICK_S)
        if self.client is not None and not self.client._closed:
            self.client.close(linger=0)

    def _until_up(self, stop_when: threading.Event) -> None:
        while not self._up.done():
            if stop_when.wait(TICK_S):
                raise Stopped("stopped while the ranks started", fix="Start them when you like.")

    def _register(self) -> None:
        end = time.monotonic() + REGISTER_S
        while len(self.client.ids) < self.spec.size:
            self.refuse_if_down()
            if time.monotonic() > end:
                missing = sorted(set(range(self.spec.size)) - set(self.client.ids))
                raise JobError(
                    f"rank {', '.join(map(str, missing))} did not register with the controller",
                    fix="Check that its machine reaches this one (firewall, Local Network privacy).",
                )
            time.sleep(TICK_S)
        for rank in range(self.spec.size):
            self._reach(rank, end)

    def _reach(self, rank: int, end: float) -> None:
        """Ask a rank until it answers, its output too: what is sent while its sockets connect is dropped."""
        while True:
            self.refuse_if_down()
            pending = self.client[[rank]].execute("pass", silent=False)
            if pending.wait(AGAIN_EVERY_S) and pending.wait_for_output(AGAIN_EVERY_S):
                return
            if time.monotonic() > end:
                raise JobError(
                    f"rank {rank} registered with the controller, but answers nothing",
                    where=self.names[rank],
                    fix="Check that its machine reaches this one (firewall, Local Network privacy).",
                )

    async def _live(self, deadlines: Deadlines) -> None:
        """Start, watch and end; told of by `_up` and `_error`."""
        hosts = [host.ssh for host in self.spec.hostfile.hosts]
        self._loop = asyncio.get_running_loop()
        try:
            with lock.hold(hosts, "resident ranks"):
                async with Controller(hosts) as controller, Job(with_port(self.spec)) as job:
                    self._job = job
                    self.command = tell_job(job, self._hear)
                    talk = Conversation(job, self._hear, deadlines, self.command)
                    try:
                        await talk.start({})  # joins while the controller is still coming up
                        await job.send("connect", connection=await controller.connection())
                        self.facts = talk.outcome.facts
                        self._up.set_result(str(controller.client_file))
                        await self._watch(job, talk, controller)
                    except JacclError as error:
                        self._fail(error)
                        raise
        except BaseException as error:
            if not self._up.done():
                self._up.set_exception(error)
            raise

    async def _watch(self, job: Job, talk: Conversation, controller: Controller) -> None:
        """Hear events until a rank or the controller is gone; never returns."""
        gone = asyncio.create_task(controller.wait())
        try:
            while True:
                heard = asyncio.create_task(job.next_event(threading.TIMEOUT_MAX))
                try:
                    await asyncio.wait({heard, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not heard.done():
                        heard.cancel()
                if gone.done():
                    raise JobError(
                        "ipyparallel's controller is gone; the ranks were ended", fix="Start again."
                    )
                event = heard.result()
                if event is None:
                    raise talk.gone()
                if event.kind in ("error", "exit"):
                    self._hear(event)
                    raise await talk.failure(LAST_WORDS_S)
                self._hear(event)
        finally:
            gone.cancel()

    def _hear(self, event: Event) -> None:
        if event.kind == "stage":
            self.stages[event.rank] = f"{event.data['name']}: {event.data['text']}"
        self._on_event(event)

    def _fail(self, error: JacclError) -> None:
        """Ranks are gone: whoever waits for them hears it now, by name."""
        self.error = error
        client = self.client
        if client is None or client._closed:
            return

        def tell() -> None:
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

        client._io_loop.add_callback(tell)

    def _ended(self, result: Any, error: BaseException | None) -> None:
        del result
        if isinstance(error, RankDied | JobError) and self.error is None:
            self.error = error
