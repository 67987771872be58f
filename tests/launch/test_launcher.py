"""The launcher does not have the defects of mlx.launch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jaccl_kernel.core.events import Unknown, decode_line
from jaccl_kernel.launch.records import Deliver, EndJob
from tests.launch.harness import Launcher, send_signal

pytestmark = pytest.mark.usefixtures("nothing_left")

# a rank that exits at EOF on stdin, like our ranks
WAITS = """
    import os, sys
    print("up", flush=True)
    sys.stdin.read()
"""
STUBBORN = """
    import signal, time
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(600)
"""


def test_no_line_is_lost_when_a_rank_exits_quickly(tmp_path: Path) -> None:
    script = """
        import os, sys
        for number in range(2000):
            print("line", number)
        sys.stdout.write("last words without a newline")
    """
    with Launcher(tmp_path, script) as launcher:
        assert launcher.finish() == 0
        expected = [f"line {n}" for n in range(2000)] + ["last words without a newline"]
        assert [launcher.texts(rank, "out") for rank in (0, 1)] == [expected, expected]


def test_the_exit_of_a_rank_is_reported_although_a_child_of_it_writes_on(tmp_path: Path) -> None:
    script = """
        import subprocess, sys
        subprocess.Popen(["/bin/sh", "-c", "while echo on; do sleep 0.2; done"])  # until its pipe is closed
        sys.exit(3)
    """
    with Launcher(tmp_path, script, ranks=1) as launcher:
        assert launcher.finish() == 3
        assert launcher.exits() == {0: 3}
        assert "on" in launcher.texts(0, "out")


def test_both_streams_and_all_encodings_are_relayed(tmp_path: Path) -> None:
    script = r"""
        import sys
        sys.stdout.buffer.write("größer 漢字 🍏\n".encode())
        sys.stderr.buffer.write("Fehler: ñ\n".encode() + b"\xff\xfe broken\n")
        sys.stdout.buffer.write(b"x" * 300_000 + b"\n")
    """
    with Launcher(tmp_path, script, ranks=1) as launcher:
        assert launcher.finish() == 0
        first, *long = launcher.texts(0, "out")
        assert first == "größer 漢字 🍏"
        assert "".join(long) == "x" * 300_000
        assert launcher.texts(0, "err") == ["Fehler: ñ", "\ufffd\ufffd broken"]


def test_a_long_event_that_arrives_slowly_is_not_split(tmp_path: Path) -> None:
    script = """
        import os
        event = b'@@jaccl 0 {"kind":"result","at":1,"tokens":"' + b"9" * 400_000 + b'"}'
        line = b"no newline before it " + event + b"\\n" + b"after it\\n"
        for start in range(0, len(line), 1000):
            os.write(1, line[start : start + 1000])
    """
    with Launcher(tmp_path, script, ranks=1) as launcher:
        assert launcher.finish() == 0
        line, after = launcher.texts(0, "out")
        output, event = decode_line(line)
        assert (output, after) == ("no newline before it ", "after it")
        assert event
        assert event.body == Unknown("result", {"tokens": "9" * 400_000})


@pytest.mark.parametrize(
    ("ending", "status", "told"),
    [
        ("sys.exit(7)", 7, 7),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 128 + 11, -11),
        ("import no_such_package", 1, 1),
    ],
)
def test_the_exit_status_is_that_of_the_rank_that_failed(
    tmp_path: Path, ending: str, status: int, told: int
) -> None:
    script = f"""
        import os, signal, sys
        if os.environ["MLX_RANK"] == "1":
            {ending}
    """
    with Launcher(tmp_path, script) as launcher:
        assert launcher.finish() == status
        assert launcher.exits() == {0: 0, 1: told}


def test_a_rank_that_dies_at_once_is_reported_without_a_crash(tmp_path: Path) -> None:
    with Launcher(tmp_path, "raise SystemExit(3)") as launcher:
        assert launcher.finish() == 3
        assert launcher.exits() == {0: 3, 1: 3}
        assert launcher.process.stderr
        assert launcher.process.stderr.read() == ""


def test_lines_reach_the_ranks_that_they_are_addressed_to(tmp_path: Path) -> None:
    script = """
        import sys
        print("up", flush=True)
        for line in sys.stdin:
            print("got", line.strip(), flush=True)
            if line.startswith("bye"):
                break
    """
    with Launcher(tmp_path, script) as launcher:
        launcher.until_text("up", 2)
        launcher.order(Deliver(1, ("for one",)))
        launcher.order(Deliver(None, ("for all", "bye")))
        assert launcher.finish() == 0
        assert launcher.texts(0, "out") == ["up", "got for all", "got bye"]
        assert launcher.texts(1, "out") == ["up", "got for one", "got for all", "got bye"]


@pytest.mark.parametrize("script", [WAITS, STUBBORN], ids=["lifeline", "stubborn"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "stdin", "order"])
def test_every_way_to_stop_the_launcher_stops_its_ranks(tmp_path: Path, how: str, script: str) -> None:
    with Launcher(tmp_path, script) as launcher:
        launcher.until_text("up", 2)
        if how == "stdin":
            assert launcher.process.stdin
            launcher.process.stdin.close()
        elif how == "order":
            launcher.order(EndJob(0.2))
        else:
            send_signal(launcher, how)
        launcher.finish()
        assert set(launcher.exits()) == {0, 1}


def test_sigint_stops_the_launcher_even_if_it_was_ignored_at_start(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with Launcher(tmp_path, WAITS, preexec_fn=ignore) as launcher:
        launcher.until_text("up", 2)
        send_signal(launcher, "SIGINT")
        launcher.finish()
        assert set(launcher.exits()) == {0, 1}


def test_a_sigkill_of_the_launcher_ends_the_ranks(tmp_path: Path) -> None:
    with Launcher(tmp_path, WAITS) as launcher:
        launcher.until_text("up", 2)
        send_signal(launcher, "SIGKILL")
        launcher.process.wait(timeout=60)
    # the nothing_left fixture checks that the ranks are gone


def test_an_idle_job_uses_no_cpu(tmp_path: Path) -> None:
    with Launcher(tmp_path, WAITS) as launcher:
        launcher.until_text("up", 2)
        family = [psutil.Process(launcher.process.pid)]
        family += family[0].children(recursive=True)
        before = sum(sum(one.cpu_times()[:2]) for one in family)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.process.wait(timeout=3)
        used = sum(sum(one.cpu_times()[:2]) for one in family) - before
        assert used < 0.3  # mlx.launch's own loop uses 3 s and more in these 3 s
        send_signal(launcher, "SIGTERM")
        launcher.finish()


def test_an_error_of_mlx_launch_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text('[{"ssh": "127.0.0.1"}]')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaccl_kernel.launch.launcher", "--backend", "jaccl"),
            *("--hostfile", str(tmp_path / "hosts.json"), "--", "x.py"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "Rank 0 should have an IP" in done.stderr


def test_each_rank_gets_its_own_variables(tmp_path: Path) -> None:
    script = "import os; print(os.environ['HOME'], os.environ['MLX_RANK'])"
    env = os.environ | {"JACCL_KERNEL_RANK_ENV": '[{"HOME": "/a b"}, {"HOME": "/c"}]'}
    with Launcher(tmp_path, script, env=env) as launcher:
        assert launcher.finish() == 0
        assert [launcher.texts(rank, "out") for rank in (0, 1)] == [["/a b 0"], ["/c 1"]]
