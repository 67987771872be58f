"""A server's life: started, watched, failing, stopped, found again."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from jaccl_kernel.core.errors import Busy, InputError, RankDied
from jaccl_kernel.core.events import (
    Body,
    Event,
    Failed,
    Hello,
    JobStarted,
    Restarting,
    Serving,
    Stage,
    WorkerDown,
    WorkerRecovered,
)
from jaccl_kernel.core.options import ServeOptions
from jaccl_kernel.launch import ports, servers
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.serve import detached
from jaccl_kernel.steps.serve.detached import Running, find_running, start_detached
from jaccl_kernel.steps.serve.serve import only_there, serve, url_of
from tests.conftest import until
from tests.events import bodies
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("nothing_left")
ENDLESS = {"prompt": "Hello", "max_tokens": 4000, "stream": True, "logit_bias": {"257": -1000}}


def options(model: Path, **more: Any) -> ServeOptions:
    first = ports.choose(2)
    return ServeOptions(model=str(model), port=first, ctrl_port=first + 1, **more)


def ask(url: str, body: dict[str, Any] | None = None, deadline: float = 60.0) -> tuple[int, Any]:
    """The status and JSON of a GET, or of a POST of `body`."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=deadline) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def curl(url: str, body: dict[str, Any]) -> "subprocess.Popen[str]":
    command = ["curl", "-sN", "-m", "300", url, "-d", json.dumps(body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class Seen:
    """What a server has told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def count(self, kind: type[Body]) -> int:
        return len(bodies(self.events, kind))

    def pid(self, rank: int) -> int:
        return bodies(self.events, Hello, rank)[-1].pid


@asynccontextmanager
async def serving(wanted: ServeOptions, macs: int = 2) -> AsyncIterator[tuple[Seen, "asyncio.Task[None]"]]:
    """A server that has come up; stopped at the end of the block."""
    seen = Seen()
    task = asyncio.create_task(serve(make_hostfile(macs), wanted, on_event=seen))
    try:
        await until(lambda: seen.count(Serving) or task.done(), "the server", 120)
        yield seen, task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_it_reports_every_stage_serves_and_stops_completely(tiny_model: Path) -> None:
    wanted = options(tiny_model)
    async with serving(wanted) as (seen, task):
        stages = [stage.name for stage in bodies(seen.events, Stage, rank=1)]
        assert [name for at, name in enumerate(stages) if name not in stages[:at]] == [
            "import", "wait", "join", "load", "warm-up", "serve",
        ]  # fmt: skip
        assert [stage for stage in bodies(seen.events, Stage) if "GB/s" in stage.text]  # how fast it loaded
        url = url_of(wanted)
        assert (await asyncio.to_thread(ask, f"{url}/health"))[0] == 200
        status, answer = await asyncio.to_thread(
            ask, f"{url}/v1/completions", {"prompt": "Hello", "max_tokens": 5}
        )
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 5
        [running] = find_running()
        assert (running.url, running.state.pid) == (url, os.getpid())
        stream = curl(f"{url}/v1/completions", ENDLESS)
        assert stream.stdout
        stream.stdout.readline()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rest = await asyncio.to_thread(stream.communicate)
        events = [line for line in rest[0].splitlines() if line]
        assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "the server is stopping"
        assert events[-1] == "data: [DONE]"
    assert find_running() == []


async def test_a_dead_worker_is_named_at_once_and_rank_0_keeps_reporting_it(tiny_model: Path) -> None:
    wanted = options(tiny_model)
    async with serving(wanted) as (seen, task):
        url = url_of(wanted)
        stream = curl(f"{url}/v1/completions", ENDLESS)
        assert stream.stdout
        stream.stdout.readline()
        os.kill(seen.pid(1), signal.SIGKILL)
        rest = (await asyncio.to_thread(stream.communicate))[0].splitlines()
        assert "rank 1 (mac2) failed" in [line for line in rest if line][-2]
        assert [line for line in rest if line][-1] == "data: [DONE]"
        status, told = await asyncio.to_thread(ask, f"{url}/health")
        assert status == 503
        assert "rank 1 (mac2)" in told["stage"]
        status, told = await asyncio.to_thread(ask, f"{url}/v1/completions", {"prompt": "Hello"})
        assert status == 503
        assert "rank 1 (mac2)" in told["error"]["message"]
        await until(lambda: seen.count(Failed), "the host to say it")
        assert bodies(seen.events, Failed)[-1].rank == 1
        assert not task.done()


async def test_a_stopped_worker_is_named_and_its_return_is_noticed(tiny_model: Path) -> None:
    wanted = options(tiny_model)
    async with serving(wanted) as (seen, _):
        url = url_of(wanted)
        stream = curl(f"{url}/v1/completions", ENDLESS)
        assert stream.stdout
        stream.stdout.readline()
        os.kill(seen.pid(1), signal.SIGSTOP)
        await until(lambda: seen.count(WorkerDown), "the silence")
        rest = [line for line in (await asyncio.to_thread(stream.communicate))[0].splitlines() if line]
        assert "rank 1 (mac2) failed: no heartbeat for 2 s" in rest[-2]
        assert rest[-1] == "data: [DONE]"
        status, told = await asyncio.to_thread(ask, f"{url}/health")
        assert status == 503
        assert "rank 1 (mac2) failed: no heartbeat for 2 s" in told["stage"]
        os.kill(seen.pid(1), signal.SIGCONT)
        await until(lambda: seen.count(WorkerRecovered), "its return")
        status, _ = await asyncio.to_thread(
            ask, f"{url}/v1/completions", {"prompt": "Hello", "max_tokens": 3}
        )
        assert status == 200


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_end_of_rank_0_ends_the_server_with_an_error(tiny_model: Path, how: signal.Signals) -> None:
    wanted = options(tiny_model)
    async with serving(wanted) as (seen, task):
        stream = curl(f"{url_of(wanted)}/v1/completions", ENDLESS)
        assert stream.stdout
        stream.stdout.readline()
        os.kill(seen.pid(0), how)
        with pytest.raises((RankDied, Exception), match="rank 0") as caught:
            await asyncio.wait_for(task, 60)
        assert type(caught.value).__module__ == "jaccl_kernel.core.errors"
        assert seen.count(Failed)
        await asyncio.to_thread(stream.communicate)  # it ends, with all of rank 0


async def test_a_restart_brings_it_back_at_the_same_url(tiny_model: Path) -> None:
    wanted = options(tiny_model, restart=True)
    async with serving(wanted) as (seen, _):
        os.kill(seen.pid(1), signal.SIGKILL)
        await until(lambda: seen.count(Serving) == 2, "the second start", 120)
        assert seen.count(Restarting) == 1
        status, _ = await asyncio.to_thread(ask, f"{url_of(wanted)}/health")
        assert status == 200


async def test_an_error_of_the_first_start_is_not_retried(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "m")
    (model / "tokenizer.json").write_text("{")  # whole for this machine's check, unreadable for the ranks
    seen = Seen()
    with pytest.raises(RankDied, match="at stage 'load'"):
        await serve(make_hostfile(2), options(model, restart=True), on_event=seen)
    assert (seen.count(JobStarted), seen.count(Restarting)) == (1, 0)


async def test_a_second_server_and_a_port_in_use_are_rejected(tiny_model: Path) -> None:
    wanted = options(tiny_model)
    async with serving(wanted):
        with pytest.raises(Busy, match=rf"a server is already running at {url_of(wanted)}"):
            await serve(make_hostfile(2), wanted)
        with pytest.raises(Busy, match="another job is running on this node: a server of") as busy:
            await serve(make_hostfile(2), options(tiny_model))
        [running] = find_running()
        assert f"{running.id}, process {os.getpid()}" in busy.value.what
        assert f"jaccl stop {running.id}" in busy.value.fix
    told = pytest.raises(Busy, match=f"port {wanted.port} is in use by another program")
    with socket.create_server(("127.0.0.1", wanted.port)), told:
        await serve(make_hostfile(2), wanted)


def test_invalid_options_are_rejected_and_a_needed_key_is_generated() -> None:
    for wrong in (
        {"port": 0}, {"port": 70000}, {"ctrl_port": 8080}, {"max_batch": 0}, {"context": -1},
        {"cache_gb": -1.0}, {"memory_gb": float("nan")}, {"stall_s": 0}, {"api_key": "short"},
        {"api_key": "with\nnewline"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ServeOptions(**wrong)
    assert ServeOptions().with_api_key().api_key is None
    assert ServeOptions(host="::1").with_api_key().api_key is None
    made = ServeOptions(host="0.0.0.0").with_api_key().api_key
    assert made
    assert len(made) > 20
    assert made not in " ".join(ServeOptions(host="0.0.0.0", api_key=made).program("m"))


def test_the_url_works_from_this_machine_or_reports_that_none_does() -> None:
    for host, first, url in (
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:8080"),
        ("::", "127.0.0.1", "http://[::1]:8080"),
        ("0.0.0.0", "me@Mac1.local", "http://mac1.local:8080"),
        ("::", "mac1", "http://mac1:8080"),
        ("10.0.0.5", "mac1", "http://10.0.0.5:8080"),
        ("fd00::5", "mac1", "http://[fd00::5]:8080"),
    ):
        assert url_of(ServeOptions(host=host), first) == url
        assert only_there(ServeOptions(host=host), first) == ""
    for host in ("127.0.0.1", "localhost", "::1"):
        told = only_there(ServeOptions(host=host, port=99), "me@mac1")
        assert f"{host} is reachable only from mac1 itself: serve with --host 0.0.0.0" in told
        assert f"ssh -N -L 99:{host}:99 me@mac1" in told


@pytest.mark.parametrize("answer", [{"error": {"message": "this server needs its API key"}}, {}, []])
async def test_an_invalid_status_is_a_failed_state(answer: Any) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with (
        HTTPServer(("127.0.0.1", 0), Refusing) as other,
        known(f"http://127.0.0.1:{other.server_port}") as one,
    ):
        threading.Thread(target=other.handle_request, daemon=True).start()
        status = await one.status()
    assert status["state"] == "failed"
    assert ("API key" if answer else "another program answers") in status["stage"]


async def test_a_server_reachable_only_from_its_own_mac_is_not_queried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        why = only_there(ServeOptions(), "mac1")
        with known(f"http://127.0.0.1:{port}", only_there=why) as one:
            assert await one.status() == {"state": "not tested", "stage": why}
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()


@contextmanager
def known(url: str, **more: Any) -> Iterator[Running]:
    """A server that lives, as others find it."""
    folder = servers.ServerFolder.create()
    folder.write(servers.ServerState(folder.id, "", ("mac1",), "m", url, pid=os.getpid(), **more))
    with folder.hold_lock():
        [found] = find_running()
        yield found


# detached, and through the command line


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "rehearsal.json"
    make_hostfile(2).write(path)
    return path


async def start(hostfile: Path, wanted: ServeOptions) -> tuple[Running, Seen]:
    running = await start_detached(hostfile, wanted, lambda event: None)
    seen = Seen()
    await running.follow(seen, lambda event: isinstance(event.body, Serving | Failed))
    assert seen.count(Serving), seen.events[-3:]
    return running, seen


async def test_a_detached_one_is_found_followed_and_stopped(tiny_model: Path, hostfile: Path) -> None:
    key = "a key that nobody guesses"
    running, seen = await start(hostfile, options(tiny_model, api_key=key))
    [found] = find_running()
    assert (found.id, found.url) == (running.id, running.url)
    again = Seen()  # as after a kernel's restart: all of it is told once more
    await found.follow(again, lambda event: isinstance(event.body, Serving))
    assert again.events == seen.events
    assert (await found.status())["state"] == "ready"
    assert ask(f"{running.url}/v1/models")[0] == 401
    commands = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if key in command]
    assert key not in running.folder.events.read_text() + running.folder.log.read_text()
    assert (running.folder.path / "state.json").stat().st_mode & 0o077 == 0
    assert (running.folder.path / "asked.json").stat().st_mode & 0o077 == 0
    assert await found.stop() == "stopped"
    assert not running.alive()
    assert (await running.status())["state"] == "stopped"


@pytest.mark.parametrize("stopped", ["supervisor", "worker"])
async def test_stop_ends_a_suspended_server_during_a_stream(
    tiny_model: Path, hostfile: Path, stopped: str
) -> None:
    running, seen = await start(hostfile, options(tiny_model))
    stream = curl(f"{running.url}/v1/completions", ENDLESS)
    assert stream.stdout
    stream.stdout.readline()
    os.kill(running.state.pid if stopped == "supervisor" else seen.pid(1), signal.SIGSTOP)
    told = await running.stop()
    assert told.startswith("stopped")
    assert ("reboot" in told) == (stopped == "worker")
    assert not running.alive()
    await asyncio.to_thread(stream.communicate)


async def test_the_supervisors_death_ends_the_ranks(tiny_model: Path, hostfile: Path) -> None:
    running, seen = await start(hostfile, options(tiny_model))
    os.kill(running.state.pid, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(seen.pid(0)), "rank 0 to leave")
    await until(lambda: not psutil.pid_exists(seen.pid(1)), "rank 1 to leave")
    assert find_running() == []


@pytest.mark.parametrize("after", ["process", "registered"])
async def test_a_detached_one_that_is_cancelled_while_it_starts_leaves_nothing(
    tiny_model: Path, hostfile: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    there = asyncio.Event()
    registered = detached._registered

    async def held(*what: Any) -> Any:
        """The start's wait for the process, which comes to its end only by a cancel."""
        found = await registered(*what) if after == "registered" else None
        there.set()
        await asyncio.Event().wait()
        return found

    monkeypatch.setattr(detached, "_registered", held)
    starting = asyncio.create_task(start_detached(hostfile, options(tiny_model), Seen()))
    await asyncio.wait_for(there.wait(), 60)
    if after == "registered":
        assert find_running() != []
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert find_running() == []


async def test_a_detached_one_that_cannot_start_says_why(tiny_model: Path, hostfile: Path) -> None:
    with pytest.raises(Exception, match="nowhere"):
        await start_detached(hostfile, options(Path("/nowhere/at all")), lambda event: None)


@pytest.fixture
def foreground(tiny_model: Path, hostfile: Path) -> Iterator[Any]:
    """`jaccl serve` in the foreground, started with SIGINT ignored, as a script's `&` does."""
    started: list[subprocess.Popen[str]] = []

    def run(**popen: Any) -> tuple["subprocess.Popen[str]", str]:
        wanted = options(tiny_model)
        command = [
            sys.executable,
            "-m",
            "jaccl_kernel.cli",
            "serve",
            str(hostfile),
            "--model",
            str(tiny_model),
        ]
        command += [f"--port={wanted.port}", f"--ctrl-port={wanted.ctrl_port}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **popen)
        started.append(process)
        assert process.stderr
        for line in process.stderr:
            if "serving" in line and url_of(wanted) in line:
                return process, url_of(wanted)
        raise AssertionError("it ended")

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_all_processes_on_a_signal_even_if_sigint_was_ignored(
    foreground: Any, signum: signal.Signals
) -> None:
    process, url = foreground(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert ask(f"{url}/health")[0] == 200
    process.send_signal(signum)
    assert process.wait(60) == 128 + signum
    assert servers.folders() == []


def test_status_stop_and_logs_from_the_command_line(foreground: Any) -> None:
    process, url = foreground()

    def jaccl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jaccl_kernel.cli", *words], capture_output=True, text=True, timeout=120
        )

    status = jaccl("status")
    assert status.returncode == 0
    assert "ready: serving" in status.stdout
    assert f"{url}/v1" in status.stdout
    [row] = json.loads(jaccl("status", "--json").stdout)
    assert [rank["name"] for rank in row["ranks"]] == ["mac1", "mac2"]
    assert "rank 1" in jaccl("logs").stdout
    assert "[rank 0]" not in jaccl("logs", "--rank", "1").stdout
    assert jaccl("stop", "nobody").returncode == 2
    assert "stopped" in jaccl("stop").stdout
    process.wait(60)
    assert jaccl("status").stdout == "no server is running\n"
    assert jaccl("logs").stdout.endswith("[jaccl] stopped\n")
    assert jaccl("stop").returncode == 2
    assert jaccl("serve").returncode == 2
