"""Resident ranks: real engines that stay, whose model is loaded once."""

import _thread
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ipyparallel
import psutil
import pytest

from jaccl_kernel.core.errors import (
    Busy,
    DeadlineExceeded,
    InputError,
    JobError,
    ModelError,
    RankDied,
    Stopped,
)
from jaccl_kernel.core.events import AnswerChunk, Event
from jaccl_kernel.core.messages import WorkerDied
from jaccl_kernel.core.results import Reference
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.run import Deadlines, ignore
from jaccl_kernel.notebook import rank_calls, resident
from jaccl_kernel.notebook.answer import Answer, CellError
from jaccl_kernel.notebook.magics import run_cell
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.report import record
from tests.conftest import GONE_DEADLINE_S
from tests.events import is_stage

ENDLESS: dict[str, Any] = {"max_tokens": 3000, "temperature": 0, "logit_bias": {"257": -1000}}


# On rank 0: from the `first` text chunk of an answer on, wait until the host has received it or interrupts.
# The host's acknowledgement is a WorkerDied, which a rank that does not serve leaves in its queue.
GATE = """
from queue import Empty
from jaccl_kernel.core.events import AnswerChunk
from jaccl_kernel.core.messages import WorkerDied
send, sent, waited_for = jaccl.link.send, {{}}, []
def gated(body):
    send(body)
    if not isinstance(body, AnswerChunk):
        return
    deltas = [choice.get("delta") or {{"content": choice.get("text")}} for choice in body.body["choices"]]
    if not any(delta.get("content") or delta.get("reasoning_content") for delta in deltas):
        return
    sent[body.call] = sent.get(body.call, 0) + 1
    while sent[body.call] >= {first} and not waited_for and not jaccl.interrupt.requested():
        try:
            message = jaccl._messages.get(timeout=60)
        except Empty:  # it never arrives: the other rank must not wait for this one
            waited_for.append(body)
            break
        if isinstance(message, WorkerDied) and message.rank == body.call:
            if int(message.why) >= sent[body.call]:
                break
jaccl.link.send = gated
"""


@contextlib.contextmanager
def gated(ranks: Ranks, first: int = 1) -> Iterator[Callable[[int], None]]:
    """Rank 0 runs no piece ahead of the host, which tells it by the yielded function how many it heard."""
    rank_0 = ranks.engines.client[[0]]
    rank_0.execute(GATE.format(first=first), block=True)
    try:
        yield lambda heard: ranks.engines.send(WorkerDied(ranks.calls.number, str(heard)))
        assert ranks.engines.client[0]["waited_for"] == [], (
            "these words were not heard while the answer was made"
        )
    finally:
        rank_0.execute("jaccl.link.send = send", block=True)


class Pressing:
    """A stdout that presses ■ when some words are written to it: in the main thread, as the kernel does."""

    def __init__(self, *moments: str) -> None:
        self.text = ""
        self._moments = list(moments)

    def write(self, text: str) -> None:
        self.text += text
        if self._moments and self._moments[0] in self.text:
            del self._moments[0]
            _thread.interrupt_main()

    def flush(self) -> None:
        pass


@pytest.fixture(scope="module")
def ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JACCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        with Ranks.start(make_hostfile(2)) as started:
            family = psutil.Process().children(recursive=True)
            started.load(tiny_model)
            yield started
    gone, alive = psutil.wait_procs(family, timeout=GONE_DEADLINE_S)
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


def test_ranks_agree_on_rank_0s_bytes_the_smallest_number_and_whether_any_says_yes(ranks: Ranks) -> None:
    ranks.view.execute("from jaccl_kernel.inference import agreement", block=True)
    for asked, agreed in (
        ("agreement.broadcast(group, b'rank %d' % rank)", b"rank 0"),
        ("agreement.broadcast(group)", b""),
        ("agreement.minimum(group, 70000 - rank)", 69999),
        ("agreement.any_rank(group, rank == 1)", True),
        ("agreement.any_rank(group, False)", False),
    ):
        ranks.view.execute(f"agreed = {asked}", block=True)
        assert ranks.view["agreed"] == [agreed] * 2


def test_sockets_are_on_loopback_and_no_key_is_in_a_command_line(ranks: Ranks) -> None:
    for child in psutil.Process().children(recursive=True):
        for connection in child.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1", (child.cmdline(), connection)
        assert ranks.engines.client.session.key.decode() not in " ".join(child.cmdline())


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
    came: list[str] = []

    class Out:
        def write(self, text: str) -> None:
            came.append(text)
            ranks.engines.send(WorkerDied("".join(came).count("\n"), "seen"))

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Out())
    code = """
for i in range(5):
    print(i, flush=True)
    while getattr(jaccl._messages.get(timeout=60), "rank", 0) <= i:  # until it has been seen on the host
        pass
"""
    run_cell(ranks, code, rank=0)
    assert "".join(came).split() == [str(i) for i in range(5)]


def test_the_rank_that_failed_first_is_named(ranks: Ranks) -> None:
    with pytest.raises(CellError, match=r"rank 1 \(mac2\): ZeroDivisionError") as caught:
        run_cell(ranks, "import time\nif rank == 1:\n    1 / 0\ntime.sleep(0.3)\nraise KeyError(rank)")
    assert caught.value.rank == 1
    assert "ZeroDivisionError" in caught.value.traceback
    with pytest.raises(InputError, match="no rank 7"):
        run_cell(ranks, "1", rank=7)


def test_a_prompt_streams_and_the_next_turn_uses_the_cache(ranks: Ranks) -> None:
    pieces: list[str] = []
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "logit_bias": {"257": -1000}}
    with gated(ranks) as heard:  # what comes late, or only together with more, never comes

        def hear(words: str, _: str) -> None:
            pieces.append(words)
            heard(len(pieces))

        first = ranks.prompt("Hello there, who are you?", on_words=hear, **settings)
    assert (first.tokens, first.finish) == (40, "length")
    assert "".join(pieces) == first.text
    assert len(pieces) > 5
    turn = [
        {"role": "user", "content": "Hello there, who are you?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Say it again."},
    ]
    second = ranks.prompt(turn, on_words=lambda *_: None, **settings)
    assert second.cached_tokens >= 25
    assert second.tokens == 40


def test_the_last_words_of_an_answer_are_not_taken_for_the_next_ones(ranks: Ranks) -> None:
    """They travel another way than the answer's result, which may be here before them."""
    ranks.prompt("Hello", max_tokens=3, on_words=lambda *_: None)
    late = {"choices": [{"index": 0, "delta": {"content": "late"}}]}
    ranks._handle(Event(0, AnswerChunk(ranks.calls.number, late)))
    pieces: list[str] = []
    answer = ranks.prompt("Hello", max_tokens=5, on_words=lambda words, _: pieces.append(words))
    assert "".join(pieces) == answer.text


def test_the_same_seed_says_the_same_and_a_stop_string_ends_it(ranks: Ranks) -> None:
    def ask(**settings: Any) -> Answer:
        return ranks.prompt("Go on", on_words=lambda *_: None, **{"max_tokens": 30, "seed": 5} | settings)

    one, other = ask(), ask()
    assert one.text == other.text
    stop = one.text[5:7]
    cut = ask(stop=[stop])
    assert cut.finish == "stop"
    assert cut.text == one.text[: one.text.index(stop)]


def test_what_the_server_can_do_works_in_a_prompt(ranks: Ranks) -> None:
    """The same adapters over the same engine: formats, several choices, log-probabilities."""
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99}},
        "required": ["age"],
    }
    form = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}},
    }
    quiet: dict[str, Any] = {"on_words": lambda *_: None, "seed": 3}
    told = ranks.prompt("How old?", response_format=form, max_tokens=200, **quiet)
    assert set(json.loads(told.text)) == {"age"}
    several = ranks.prompt("Go on", n=3, max_tokens=12, **quiet)
    assert several.text == ranks.prompt("Go on", max_tokens=12, **quiet).text
    assert (len(several.others), len({several.text, *several.others})) == (2, 3)
    scored = ranks.complete("a", logprobs=2, max_tokens=5, on_words=lambda *_: None, temperature=0)
    assert len(scored.logprobs) == scored.tokens - (scored.finish == "stop")
    assert all(one["logprob"] <= 0 for one in scored.logprobs)
    with pytest.raises(InputError, match="no parser for the tool calls of this model"):
        ranks.prompt("x", tools=[{"type": "function", "function": {"name": "f"}}], on_words=lambda *_: None)


def test_what_makes_no_sense_is_refused_and_harms_nothing(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="temperature"):
        ranks.prompt("x", temperature=-3)
    with pytest.raises(InputError, match="messages"):
        ranks.prompt([])
    with pytest.raises(InputError, match="--max-tokens must be at least 1"):
        ranks.bench(max_tokens=0)
    with pytest.raises(InputError, match="no option 'nonsense'"):
        ranks.bench(nonsense=1)
    assert ranks.complete("a", max_tokens=3, on_words=lambda *_: None).prompt_tokens == 1


def test_40_interruptions_at_random_moments_leave_the_ranks_usable(ranks: Ranks) -> None:
    chance = random.Random(3)
    finishes = []
    with gated(ranks, first=500):  # no answer is at its end before it was interrupted
        for _ in range(40):
            long = "word " * chance.choice([1, 250])  # the longer ones are interrupted in the prefill too
            stop = threading.Event()
            timer = threading.Timer(chance.uniform(0, 0.4), stop.set)
            timer.start()
            question = f"{chance.random()} {long}"
            answer = ranks.prompt(question, on_words=lambda *_: None, stop_when=stop, **ENDLESS)
            finishes.append(answer.finish)
            timer.join()
    assert set(finishes) == {"stopped"}
    assert ranks.prompt("hello", max_tokens=3, on_words=lambda *_: None).tokens <= 3


def test_the_stop_button_ends_a_prompt_and_keeps_what_came(
    ranks: Ranks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Pressing("")
    monkeypatch.setattr(sys, "stdout", out)
    with gated(ranks):
        answer = ranks.prompt("hello", **ENDLESS)
    assert answer.finish == "stopped"
    assert answer.text
    assert out.text == answer.text + "\n"
    assert "second interrupt within 2 s closes them" in capsys.readouterr().err


def test_a_cell_that_looks_for_it_is_stopped(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Pressing("begun")
    monkeypatch.setattr(sys, "stdout", out)
    code = "n = 0\nprint('begun', flush=True)\nwhile not stopping():\n    n += 1\nprint('turns', n)"
    run_cell(ranks, code, label=True)
    turns = {line.split()[-1] for line in out.text.splitlines() if "turns" in line}
    assert len(turns) == 1, "both ranks stopped after the same turn"
    out.text = ""
    run_cell(ranks, "print(stopping())", label=True)
    assert sorted(out.text.splitlines()) == ["[0] False", "[1] False"], "the next cell is not stopped"


def test_a_second_benchmark_begins_at_once(ranks: Ranks) -> None:
    options: dict[str, Any] = {"prompt_tokens": 16, "max_tokens": 8, "repeats": 2}
    first = ranks.bench(**options)
    point = record.make_point(first)
    assert point["generation_tps"]["median"] > 0
    assert first[0].score
    reference = Reference(first[0].runs[0].tokens, first[0].score.top)
    again = ranks.bench(reference=reference, **options)
    assert again[0].runs[0].tokens == first[0].runs[0].tokens
    assert ranks.load(ranks.model) == 0.0

    def interrupt(event: Event) -> None:
        if is_stage(event, "measure"):
            ranks.interrupt()

    ranks.on_event = interrupt
    with pytest.raises(Stopped):
        ranks.bench(prompt_tokens=8, max_tokens=3000, repeats=1000)
    ranks.on_event = ignore


def test_collectives_are_timed_for_the_group_and_each_pair(ranks: Ranks) -> None:
    told = ranks.collectives([64, 4096], repeats=5)
    assert [(one.op, one.bytes) for one in told.group] == [
        ("all_sum", 64), ("all_sum", 4096), ("all_gather", 64), ("all_gather", 4096)
    ]  # fmt: skip
    assert [(one.pair, one.bytes) for one in told.pairs] == [((0, 1), 64), ((0, 1), 4096)]
    assert all(one.seconds > 0 and one.busbw <= one.algbw for one in told.group)
    with pytest.raises(InputError, match="got 3"):
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
        if "jaccl_kernel.launch.launcher" in one.cmdline()
    )
    monkeypatch.setenv("JACCL_CACHE", cache)
    with pytest.raises(Busy, match="resident ranks"):
        Ranks.start(make_hostfile(2))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_fails_what_is_pending_at_once_by_name(nothing_left: None, victim: int) -> None:
    ranks = Ranks.start(make_hostfile(2))
    assert resident.current() is ranks
    pending = ranks.view.apply_async(time.sleep, 600)
    pid = ranks.pids[victim]
    assert pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((ipyparallel.error.CompositeError, ipyparallel.error.RemoteError)) as caught:
        pending.get(timeout=60)  # a bound for a hang: the benchmark holds it to 1 s
    assert f"rank {victim}" in str(caught.value), "not by ipyparallel's own heartbeat, which knows no ranks"
    with pytest.raises(RankDied, match=f"rank {victim}"):
        ranks.view and ranks.prompt("x")
    assert not ranks.alive
    ranks.close()


def test_a_killed_controller_ends_all_and_says_so(nothing_left: None) -> None:
    before = psutil.Process().children()
    ranks = Ranks.start(make_hostfile(2))
    started = set(psutil.Process().children()) - set(before)
    [controller] = [one for one in started if "jaccl_kernel.launch.controller" in one.cmdline()]
    pending = ranks.view.apply_async(time.sleep, 600)
    controller.kill()
    with pytest.raises((ipyparallel.error.CompositeError, ipyparallel.error.RemoteError), match="controller"):
        pending.get(timeout=60)
    with pytest.raises(JobError, match="controller has exited"):
        ranks.load("x")
    ranks.close()


def test_a_second_interrupt_closes_the_ranks(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_calls, "AGAIN_S", 600.0)
    ranks = Ranks.start(make_hostfile(2))
    # a cell that was asked to stop, and goes on
    code = "print('begun', flush=True)\nwhile not stopping():\n    pass\n"
    code += "print('asked', flush=True)\nimport time\ntime.sleep(600)"
    monkeypatch.setattr(sys, "stdout", Pressing("begun", "asked"))
    with pytest.raises(KeyboardInterrupt):
        run_cell(ranks, code)
    assert not ranks.alive
    with pytest.raises(JobError, match="closed"):
        run_cell(ranks, "1")


def test_a_suspended_rank_is_told_by_name_also_while_no_call_runs(nothing_left: None) -> None:
    ranks = Ranks.start(make_hostfile(2))
    [_, worker] = ranks.pids
    assert worker
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded, match=r"rank 1 \(mac2\) is suspended"):
        run_cell(ranks, "import time\ntime.sleep(600)", rank=0)
    assert not ranks.alive
    with pytest.raises(DeadlineExceeded, match=r"rank 1 \(mac2\) is suspended"):
        ranks.load("x")
    ranks.close()


def test_stopped_for_a_while_and_continued_is_no_death(nothing_left: None) -> None:
    ranks = Ranks.start(make_hostfile(2))
    family = psutil.Process().children(recursive=True)
    for one in family:
        one.suspend()
    pending = ranks.view.apply_async(os.getpid)
    time.sleep(3)  # longer than any silence that counts as a death
    assert not pending.ready()
    for one in family:
        one.resume()
    assert pending.get(timeout=60) == ranks.pids
    ranks.close()


def test_not_even_the_heart_monitor_outlives_controller_and_kernel(nothing_left: None) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    assert kernel.stdout.readline() == "up\n"
    family = psutil.Process(kernel.pid).children(recursive=True)
    psutil.Process(kernel.pid).suspend()  # it cannot clean up after its controller
    [controller] = [
        one
        for one in family
        if "jaccl_kernel.launch.controller" in one.cmdline() and one.ppid() == kernel.pid
    ]
    controller.kill()
    kernel.kill()
    kernel.communicate()
    assert psutil.wait_procs(family, timeout=GONE_DEADLINE_S)[1] == []


KERNEL = """
import sys, time
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.rehearsal.homes import make_hostfile
ranks = Ranks.start(make_hostfile(2))
print("up", flush=True)
time.sleep(600)
"""


def test_a_killed_kernel_leaves_nothing(nothing_left: None) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", KERNEL], stdout=subprocess.PIPE, text=True)
    assert kernel.stdout
    assert kernel.stdout.readline() == "up\n"
    family = psutil.Process(kernel.pid).children(recursive=True)
    assert len(family) >= 5
    kernel.kill()
    kernel.communicate()
    assert psutil.wait_procs(family, timeout=GONE_DEADLINE_S)[1] == []


def test_ranks_that_cannot_join_are_told_and_leave_nothing(nothing_left: None) -> None:
    with pytest.raises(JobError):
        Ranks.start(make_hostfile(2), python="/nowhere/python", deadlines=Deadlines(ready=60))
    with pytest.raises(InputError, match="requested 9 ranks, but the hostfile has 2 hosts"):
        Ranks.start(make_hostfile(2), count=9)
