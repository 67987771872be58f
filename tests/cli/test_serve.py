"""`jaccl stop` and `jaccl logs` for servers that are not running."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from jaccl_kernel.cli.main import main
from jaccl_kernel.core.events import HOST, Body, Event, Failed, ServerStopped, Stage
from jaccl_kernel.launch.servers import ServerFolder, ServerState, remove_old_folders

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jaccl(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command: its exit status, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def a_server(*bodies: Body) -> ServerFolder:
    """The folder of a stopped server with these events."""
    folder = ServerFolder.create()
    folder.write(ServerState(folder.id, "", ("mac1",), "tiny", "http://127.0.0.1:9"))
    folder.add_event(Event(0, Stage("serve", "here")))
    for body in bodies:
        folder.add_event(Event(HOST, body))
    return folder


def test_stop_with_nothing_running_says_what_starts_one(jaccl: Run) -> None:
    status, _, told = jaccl("stop")
    assert status == 2
    assert "no server is running" in told
    assert "jaccl serve HOSTFILE" in told
    assert jaccl("stop", "--all")[:2] == (0, "no server is running\n")


def test_the_key_leaves_the_files_of_a_server_that_ended() -> None:
    """Also of one that was killed: at the next start."""
    ended, running = a_server(), a_server()
    with running.hold_lock():
        for one in (ended, running):
            state = one.read()
            assert state
            one.write(replace(state, api_key="jaccl-secret"))
            (one.path / "asked.json").write_text('{"api_key": "jaccl-secret"}')
        remove_old_folders()
        assert [path.name for path in ended.path.rglob("*") if "jaccl-secret" in path.read_text()] == []
        kept = running.read()
        assert kept
        assert kept.api_key == "jaccl-secret"


@pytest.mark.usefixtures("nothing_left")
def test_following_a_log_ends_with_its_reader() -> None:
    """`jaccl logs -f | head -1` of a server that runs and writes nothing."""
    folder = a_server()
    with folder.hold_lock():
        command = [sys.executable, "-m", "jaccl_kernel.cli", "logs", "-f"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as following:
            assert following.stdout
            assert following.stdout.readline()
            following.stdout.close()
            assert following.wait(60) == 0


def test_stop_with_two_servers_names_them(jaccl: Run) -> None:
    with a_server().hold_lock(), a_server().hold_lock():
        status, _, told = jaccl("stop")
        assert status == 2
        assert "2 servers are running" in told
        assert "jaccl stop --all" in told
        status, _, told = jaccl("stop", "nobody")
        assert status == 2
        assert "no server 'nobody' is running" in told


@pytest.mark.parametrize("follow", [[], ["-f"]], ids=["", "followed"])
@pytest.mark.parametrize(
    ("bodies", "last"),
    [
        ([ServerStopped()], "[jaccl] stopped"),
        ([Failed("RankDied", "rank 0 died", "mac1", "Wake it.")], "  Fix: Wake it."),
        ([], "[jaccl] down: the process was killed, or this machine restarted"),
    ],
)
def test_logs_of_a_server_that_ended_say_how(
    jaccl: Run, bodies: list[Body], last: str, follow: list[str]
) -> None:
    folder = a_server(*bodies)
    status, told, _ = jaccl("logs", folder.id, *follow)
    assert status == 0
    assert told.splitlines()[-1] == last


def test_logs_of_a_running_server_say_nothing_of_an_end(jaccl: Run) -> None:
    folder = a_server()
    with folder.hold_lock():
        assert jaccl("logs", folder.id)[1] == "[rank 0] serve: here\n"
