"""Resident ranks: real engines that stay, whose model is loaded once."""

import _thread
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ipyparallel
import psutil
import pytest

from jaccl_kernel.errors import Busy, InputError, JobError, ModelError, RankDied, Stopped
from jaccl_kernel.jobs import ports
from jaccl_kernel.jobs.run import Deadlines
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.answer import Answer, CellError
from jaccl_kernel.notebook.magics import run_cell
from jaccl_kernel.notebook.resident import AGAIN_S, Ranks
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.report import record

ENDLESS: dict[str, Any] = {"max_tokens": 3000, "temperature": 0, "logit_bias": {"257": -1000}}


@contextlib.contextmanager
def interrupted(after: float) -> Iterator[None]:
    """■ after so many seconds; and again, as a person would, if nothing has ended long after."""
    over = threading.Event()

    def press() -> None:
        wait = after
        while not over.wait(wait):
            _thread.interrupt_main()  # what ■ does to the kernel's main thread
            wait = 10 * AGAIN_S  # one that Python drops (in a finalizer, say) must not hang the test

    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        over.set()
        presser.join()


@pytest.fixture(scope="module")
def ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JACCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        with Ranks.start(make_hostfile(2)) as started:
            family = psutil.Process().children(recursive=True)
            started.load(tiny_model)
            yield started
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert len(gone) >= 5, "launcher, ranks, controller, heart monitor"
    assert alive == []


def test_the_view_is_plain_ipyparallel_and_engines_are_ranks(ranks: Ranks) -> None:
    assert ranks.view.apply_sync(os.getpid) == ranks.pids
    ranks.view.execute("x = rank * 10 + size", block=True)
    assert ranks.view["x"] == [2, 12]
    summed = (
        "float(mx.distributed.all_sum(mx.array([rank + 1.0] * 16), group=group, stream=mx.cpu)[0].item())"
    )
    ranks.view.execute(f"y = {summed}", block=True)
    assert ranks.view["y"] == [3.0, 3.0]
    assert resident.current() is ranks


def test_sockets_are_on_loopback_and_no_key_is_in_a_command_line(ranks: Ranks) -> None:
    for child in psutil.Process().children(recursive=True):
        for connection in child.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1", (child.cmdline(), connection)
        assert ranks._client.session.key.decode() not in " ".join(child.cmdline())


def test_a_cell_shows_rank_0_plainly_and_others_by_line(
    ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cell(ranks, "print('one', rank)\nprint('two', end='')")
    shown = capsys.readouterr().out
    assert sorted(shown.splitlines()) == ["[1] one 1", "[1] two", "one 0", "two"]
    run_cell(ranks, "print('alone', rank)", rank=1)
    assert capsys.readouterr().out == "alone 1\n"
    run_cell(ranks, "print('all', rank)", label=True)
    assert sorted(capsys.readouterr().out.splitlines()) == ["[0] all 0", "[1] all 1"]


def test_text_comes_while_the_cell_still_runs_and_each_piece_once(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[tuple[float, str]] = []

    class Out:
        def write(self, text: str) -> None:
            came.append((time.monotonic(), text))

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Out())
    run_cell(ranks, "import time\nfor i in range(10):\n    print(i, flush=True)\n    time.sleep(0.1)", rank=0)
    assert "".join(text for _, text in came).split() == [str(i) for i in range(10)]
    assert len(came) >= 5
    assert came[-1][0] - came[0][0] > 0.5


def test_the_rank_that_failed_first_is_named(ranks: Ranks) -> None:
    with pytest.raises(CellError, match=r"rank 1 \(mac2\): ZeroDivisionError") as caught:
        run_cell(ranks, "import time\nif rank == 1:\n    1 / 0\ntime.sleep(0.3)\nraise KeyError(rank)")
    assert caught.value.rank == 1
    assert "ZeroDivisionError" in caught.value.traceback
    with pytest.raises(InputError, match="no rank 7"):
        run_cell(ranks, "1", rank=7)


def test_a_prompt_streams_and_the_next_turn_uses_the_cache(ranks: Ranks) -> None:
    pieces: list[tuple[float, str]] = []
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "logit_bias": {"257": -1000}}
    first = ranks.prompt(
        "Hello there, who are you?",
        on_words=lambda words, _: pieces.append((time.monotonic(), words)),
        **settings,
    )
    assert (first.tokens, first.finish) == (40, "length")
    assert "".join(words for _, words in pieces) == first.text
    assert len(pieces) > 5
    turn = [
        {"role": "user", "content": "Hello there, who are you?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Say it again."},
    ]
    second = ranks.prompt(turn, on_words=lambda *_: None, **settings)
    assert second.cached_tokens >= 25
    assert second.tokens == 40


def test_the_same_seed_says_the_same_and_a_stop_string_ends_it(ranks: Ranks) -> None:
    def ask(**settings: Any) -> Answer:
        return ranks.prompt("Go on", on_words=lambda *_: None, **{"max_tokens": 30, "seed": 5} | settings)

    one, other = ask(), ask()
    assert one.text == other.text
    stop = one.text[5:7]
    cut = ask(stop=[stop])
    assert cut.finish == "stop"
    assert cut.text == one.text[: one.text.index(stop)]


def test_what_makes_no_sense_is_refused_and_harms_nothing(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="temperature"):
        ranks.prompt("x", temperature=-3)
    with pytest.raises(InputError, match="messages"):
        ranks.prompt([])
    with pytest.raises(InputError, match="--max-tokens is 0"):
        ranks.bench(max_tokens=0)
    with pytest.raises(JobError, match="no option 'nonsense'"):
        ranks.bench(nonsense=1)
    assert ranks.complete("a", max_tokens=3, on_words=lambda *_: None).prompt_tokens == 1


def test_40_interruptions_at_random_moments_leave_the_ranks_usable(ranks: Ranks) -> None:
    chance = random.Random(3)
    finishes = []
    for _ in range(40):
        long = "word " * chance.choice([1, 250])  # the longer ones are interrupted in the prefill too
        timer = threading.Timer(chance.uniform(0, 0.4), ranks.interrupt)
        timer.start()
        finishes.append(ranks.prompt(f"{chance.random()} {long}", on_words=lambda *_: None, **ENDLESS).finish)
        timer.join()
    assert set(finishes) == {"stopped"}
    assert ranks.prompt("hello", max_tokens=3, on_words=lambda *_: None).tokens <= 3


def test_the_stop_button_ends_a_prompt_and_keeps_what_came(
    ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted(0.5):
        answer = ranks.prompt("hello", **ENDLESS)
    assert answer.finish == "stopped"
    shown = capsys.readouterr()
    assert answer.text.strip()[:20] in shown.out
    assert "Once more within 2 s closes them" in shown.err


def test_a_cell_that_looks_for_it_is_stopped(ranks: Ranks, capsys: pytest.CaptureFixture[str]) -> None:
    with interrupted(0.5):
        run_cell(ranks, "n = 0\nwhile not stopping():\n    n += 1\nprint('turns', n)", label=True)
    turns = {line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert len(turns) == 1, "both ranks stopped after the same turn"


def test_a_second_benchmark_begins_at_once(ranks: Ranks) -> None:
    options: dict[str, Any] = {"prompt_tokens": 16, "max_tokens": 8, "repeats": 2}
    first = ranks.bench(**options)
    point = record.make_point(first)
    assert point["generation_tps"]["median"] > 0
    reference = {"tokens": point["tokens"], "top": first[0]["score"]["top"]}
    again = ranks.bench(reference=reference, **options)
    assert again[0]["runs"][0]["tokens"] == point["tokens"]
    assert ranks.load(ranks.model) == 0.0
    timer = threading.Timer(0.3, ranks.interrupt)
    timer.start()
    with pytest.raises(Stopped):
        ranks.bench(prompt_tokens=8, max_tokens=3000, repeats=1)


def test_collectives_are_timed_for_the_group_and_each_pair(ranks: Ranks) -> None:
    told = ranks.collectives([64, 4096], repeats=5)
    assert [(one["op"], one["bytes"]) for one in told["group"]] == [
        ("all_sum", 64), ("all_sum", 4096), ("all_gather", 64), ("all_gather", 4096)
    ]  # fmt: skip
    assert [(one["pair"], one["bytes"]) for one in told["pairs"]] == [([0, 1], 64), ([0, 1], 4096)]
    assert all(one["seconds"] > 0 and one["busbw"] <= one["algbw"] for one in told["group"])
    with pytest.raises(InputError, match="3 bytes"):
        ranks.collectives([3])


def test_the_same_ranks_serve_and_go_on_afterwards(ranks: Ranks) -> None:
    port = ports.choose(2)
    serving = ranks.serve(port=port, ctrl_port=port + 1)
    body = {"prompt": "hello", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{serving.url}/v1/completions", json=body, trust_env=False).json()
    assert answer["usage"]["completion_tokens"] <= 4
    with pytest.raises(Busy, match="are serving"):
        ranks.prompt("x")
    serving.stop()
    serving.stop()
    assert (
        ranks.complete("hello", max_tokens=4, temperature=0, on_words=lambda *_: None).text
        == (answer["choices"][0]["text"])
    )
    again = ranks.serve(port=port, ctrl_port=port + 1)
    assert httpx.get(f"{again.url}/health", trust_env=False).status_code == 200
    again.stop()


def test_a_model_that_is_not_there_is_told_by_rank(ranks: Ranks, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="/nowhere"):
        ranks.load("/nowhere")
    ranks.load(tiny_model)


def test_two_at_once_are_refused(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = next(
        one.environ()["JACCL_CACHE"]
        for one in psutil.Process().children(recursive=True)
        if "jaccl_kernel.jobs.launcher" in one.cmdline()
    )
    monkeypatch.setenv("JACCL_CACHE", cache)
    with pytest.raises(Busy, match="resident ranks"):
        Ranks.start(make_hostfile(2))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_fails_what_is_pending_at_once_by_name(nothing_left: None, victim: int) -> None:
    ranks = Ranks.start(make_hostfile(2))
    pending = ranks.view.apply_async(time.sleep, 60)
    time.sleep(0.3)
    pid = ranks.pids[victim]
    assert pid
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises((ipyparallel.error.CompositeError, ipyparallel.error.RemoteError)) as caught:
        pending.get(timeout=5)
    assert time.monotonic() - began < 3  # a bound for a hang: the benchmark holds it to 1 s
    assert f"rank {victim}" in str(caught.value)
    with pytest.raises(RankDied, match=f"rank {victim}"):
        ranks.view and ranks.prompt("x")
    assert not ranks.alive
    ranks.close()


def test_a_killed_controller_ends_all_and_says_so(nothing_left: None) -> None:
    before = psutil.Process().children()
    ranks = Ranks.start(make_hostfile(2))
    started = set(psutil.Process().children()) - set(before)
    [controller] = [one for one in started if "jaccl_kernel.jobs.controller" in one.cmdline()]
    pending = ranks.view.apply_async(time.sleep, 60)
    controller.kill()
    with pytest.raises((ipyparallel.error.CompositeError, ipyparallel.error.RemoteError), match="controller"):
        pending.get(timeout=5)
    with pytest.raises(JobError, match="controller is gone"):
        ranks.load("x")
    ranks.close()


def test_a_second_interrupt_closes_the_ranks(nothing_left: None, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks.start(make_hostfile(2))
    for after in (0.5, 1.2):
        threading.Timer(after, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        run_cell(ranks, "import time\ntime.sleep(60)")
    assert not ranks.alive
    with pytest.raises(JobError, match="closed"):
        run_cell(ranks, "1")


def test_stopped_for_a_while_and_continued_is_no_death(nothing_left: None) -> None:
    ranks = Ranks.start(make_hostfile(2))
    family = psutil.Process().children(recursive=True)
    for one in family:
        one.suspend()
    pending = ranks.view.apply_async(os.getpid)
    time.sleep(3)
    assert not pending.ready()
    for one in family:
        one.resume()
    assert pending.get(timeout=20) == ranks.pids
    ranks.close()


def test_not_even_the_heart_monitor_outlives_controller_and_kernel(nothing_left: None) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    assert kernel.stdout.readline() == "up\n"
    family = psutil.Process(kernel.pid).children(recursive=True)
    psutil.Process(kernel.pid).suspend()  # it cannot clean up after its controller
    [controller] = [
        one for one in family if "jaccl_kernel.jobs.controller" in one.cmdline() and one.ppid() == kernel.pid
    ]
    controller.kill()
    kernel.kill()
    kernel.communicate()
    assert psutil.wait_procs(family, timeout=5)[1] == []


KERNEL = """
import sys, time
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.rehearsal.homes import make_hostfile
ranks = Ranks.start(make_hostfile(2))
print("up", flush=True)
time.sleep(60)
"""


def test_a_killed_kernel_leaves_nothing(nothing_left: None) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    assert kernel.stdout.readline() == "up\n"
    family = psutil.Process(kernel.pid).children(recursive=True)
    assert len(family) >= 5
    kernel.kill()
    kernel.communicate()
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_ranks_that_cannot_join_are_told_and_leave_nothing(nothing_left: None) -> None:
    with pytest.raises(JobError):
        Ranks.start(make_hostfile(2), python="/nowhere/python", deadlines=Deadlines(ready=10))
    with pytest.raises(InputError, match="9 ranks, of 2 hosts"):
        Ranks.start(make_hostfile(2), count=9)
