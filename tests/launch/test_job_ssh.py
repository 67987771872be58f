"""Jobs whose ranks run over real ssh."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.core.errors import RankDied
from jaccl_kernel.core.events import Event, Hello, SmokeResult
from jaccl_kernel.core.messages import Go
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.job import Job
from jaccl_kernel.launch.run import run
from jaccl_kernel.launch.spec import JobSpec
from tests.conftest import GONE_DEADLINE_S, until
from tests.events import bodies, is_stage
from tests.launch.test_job import _wait_ready, _wait_stage
from tests.sshd import Macs, is_alive, start_macs

pytestmark = [pytest.mark.sshd, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Macs]:
    with start_macs(tmp_path / "macs") as started:
        monkeypatch.setenv("PATH", started.path)
        with started.config.open("a") as config:
            config.write("  RemoteCommand tmux attach\n")  # a plausible line of a user's own ssh config
        yield started


def smoke(*options: str) -> JobSpec:
    hosts = tuple(Host(ssh=name, ips=("127.0.0.1",)) for name in ("mac1", "mac2"))
    return JobSpec(
        Hostfile(hosts, "ring"),
        ("smoke", *options),
        "ring",
        starting_port=ports.choose(2),
        env={"X": "a 'b' ü"},
    )


async def test_ranks_over_ssh_join_and_keep_their_logs(macs: Macs) -> None:
    outcome = await run(smoke())
    assert [result.size for result in outcome.results_of(SmokeResult)] == [2, 2]
    logs = list((macs["mac1"].home / ".cache").rglob("*rank0.log"))
    assert len(logs) == 1, "each rank keeps its log on its own Mac"


async def test_an_unknown_host_is_reported_with_the_message_of_ssh(macs: Macs) -> None:
    hosts = (Host("mac1", ("127.0.0.1",)), Host("no-such-mac.invalid", ("127.0.0.1",)))
    with pytest.raises(RankDied, match="does not resolve on this machine") as caught:
        await run(JobSpec(Hostfile(hosts, "ring"), ("smoke",), "ring"))
    assert caught.value.where == "no-such-mac.invalid"
    assert any("resolve" in line for line in caught.value.last_lines)


async def test_a_sigkill_of_the_launcher_ends_the_remote_ranks(macs: Macs) -> None:
    async with Job(smoke("--linger")) as job:
        await _wait_ready(job)
        await job.send(Go(30))
        await _wait_stage(job, 0, "idle")
        assert job.pid
        os.kill(job.pid, signal.SIGKILL)
        await until(lambda: job.ended, "the job to end")


@pytest.mark.parametrize("state", ["joining", "stopped"])
async def test_an_unresponsive_remote_rank_is_killed_by_its_pid(macs: Macs, state: str) -> None:
    events: list[Event] = []
    async with Job(smoke("--linger")) as job:
        while not all(rank.ready for rank in job.ranks):
            event = await job.next_event(60)
            assert event is not None
            events.append(event)
        pid = bodies(events, Hello, rank=0)[0].pid
        if state == "joining":
            await job.send(Go(600), to=0)
            await _wait_stage(job, 0, "join")
        else:
            psutil.Process(pid).suspend()
    told = "\n".join(job.launcher_stderr)
    await until(lambda: not is_alive(pid), f"the killed rank to be gone: {told}", GONE_DEADLINE_S)


async def test_a_remote_rank_that_dies_is_named(macs: Macs) -> None:
    def kill(event: Event) -> None:
        if isinstance(event.body, Hello) and event.rank == 1:
            pids.append(event.body.pid)
        if is_stage(event, "idle", 1):
            os.kill(pids[0], signal.SIGKILL)

    pids: list[int] = []
    with pytest.raises(RankDied, match="SIGKILL") as caught:
        await run(smoke("--linger"), on_event=kill)
    assert caught.value.where == "mac2"
