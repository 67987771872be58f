"""The control plane: proven ends, whole frames, and a stranger keeps nobody waiting; who is gone is told."""

import contextlib
import functools
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import Busy, DeadlineExceeded, JobError
from jaccl_kernel.inference import channel, control
from jaccl_kernel.inference.control import MAX_UNAUTHENTICATED, Follower, Leader

SECRET = b"s" * 32
PROMISED_S = control.SILENCE_S + control.BEAT_S  # before a test is patient
ROOT = Path(__file__).parents[2]


def follower(
    leader: Leader,
    rank: int,
    secret: bytes = SECRET,
    lost: Callable[[str], None] = print,
    deadline: float = 60,
) -> Follower:
    return Follower(
        leader.address, rank, secret, deadline=deadline, status=lambda: {"mark": (0, rank)}, on_lost=lost
    )


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowness is no silence: a test of one sets its own bound."""
    monkeypatch.setattr(control, "HANDSHAKE_S", 60.0)
    monkeypatch.setattr(control, "SILENCE_S", 60.0)


@pytest.fixture
def leader() -> Iterator[Leader]:
    one = Leader("127.0.0.1", 0, 3, SECRET)
    yield one
    one.close()


@pytest.fixture
def pair(leader: Leader) -> Iterator[tuple[Leader, list[Follower]]]:
    both = [follower(leader, rank) for rank in (1, 2)]
    leader.gather(60)
    yield leader, both
    for one in both:
        one.close()


def test_plans_arrive_complete_and_in_order(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    big = {"plan": list(range(300_000))}
    for message in ({"plan": 1}, big, {"plan": 2}):
        leader.send(message)
    for worker in workers:
        assert [worker.receive() for _ in range(3)] == [{"plan": 1}, big, {"plan": 2}]


def test_a_workers_messages_and_heartbeats_reach_the_leader(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    heard: queue.Queue[tuple[int, dict[str, object]]] = queue.Queue()
    leader.on_message = lambda rank, message: heard.put((rank, message))
    workers[1].send({"error": "no"})
    while (got := heard.get(timeout=60)) != (2, {"error": "no"}):
        assert "beat" in got[1]
    assert leader.workers[1].beat == {"mark": [0, 1]}


def test_the_port_closes_when_all_workers_are_connected(pair: tuple[Leader, list[Follower]]) -> None:
    leader, _ = pair
    end = time.monotonic() + 60
    with contextlib.suppress(ConnectionRefusedError):
        while time.monotonic() < end:
            socket.create_connection(leader.address, timeout=60).close()
            time.sleep(0.05)
        pytest.fail("the control port still takes connections")


def test_silent_invalid_and_noisy_clients_do_not_block_a_worker(leader: Leader) -> None:
    silent = [socket.create_connection(leader.address) for _ in range(MAX_UNAUTHENTICATED - 2)]
    for liar in (
        b"hello rank=1\n",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 1 << 31) + b"x",
        _frame({"rank": 1, "nonce": "00", "proof": "0" * 64}),
        _frame({"rank": -5, "nonce": "00", "proof": "0" * 64}),
        _frame({"rank": "x"}),
        _frame([1, 2]),
    ):
        with socket.create_connection(leader.address) as stranger:
            stranger.sendall(liar)
            stranger.settimeout(60)
            while stranger.recv(4096):  # the nonce, and then the end
                pass
    workers = [follower(leader, rank) for rank in (1, 2)]
    leader.gather(60)
    assert sorted(leader.workers) == [1, 2]
    for connection in silent:
        connection.close()
    for worker in workers:
        worker.close()


def test_a_port_full_of_other_clients_does_not_block_a_worker(leader: Leader) -> None:
    silent = [socket.create_connection(leader.address) for _ in range(2 * MAX_UNAUTHENTICATED)]
    workers = [follower(leader, rank) for rank in (1, 2)]
    leader.gather(60)
    silent[0].settimeout(control.HANDSHAKE_S / 2)  # before its own time is over
    while silent[0].recv(4096):  # its nonce, and then its end: the oldest made room
        pass
    for connection in silent:
        connection.close()
    for worker in workers:
        worker.close()


def test_a_rejected_worker_retries() -> None:
    turned: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as crowded:
        address = crowded.getsockname()

        def turn_away() -> None:
            turned.append(crowded.accept()[0])
            turned[0].close()
            crowded.close()

        thread = threading.Thread(target=turn_away)
        thread.start()
        made: queue.Queue[Follower] = queue.Queue()
        wants = functools.partial(
            Follower, address, 1, SECRET, deadline=60, status=dict, on_lost=lambda why: None
        )
        threading.Thread(target=lambda: made.put(wants()), daemon=True).start()
        thread.join(60)
    leader = Leader(address[0], address[1], 2, SECRET)
    leader.gather(60)
    made.get(timeout=60).close()
    leader.close()


def test_a_slow_client_is_disconnected_at_the_handshakes_deadline(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "HANDSHAKE_S", 0.3)
    with socket.create_connection(leader.address) as drips:
        drips.sendall(struct.pack(">I", 1000))
        drips.settimeout(0.02)
        end = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            while True:
                assert time.monotonic() < end
                drips.send(b" ")
                with contextlib.suppress(TimeoutError):
                    if drips.recv(4096) == b"":
                        break


def test_a_client_without_the_secret_is_rejected(leader: Leader) -> None:
    with pytest.raises(JobError, match="rejected this rank"):
        follower(leader, 1, secret=b"wrong", deadline=0.2)
    assert leader.workers == {}


def test_a_leader_that_does_not_know_the_secret_is_not_believed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def pretend() -> None:
            connection, _ = impostor.accept()
            with connection:
                connection.sendall(_frame({"nonce": "00"}))
                connection.recv(4096)
                connection.sendall(_frame({"proof": "0" * 64}))
                connection.recv(1)

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(JobError, match="not this launch's rank 0"):
            Follower(impostor.getsockname(), 1, SECRET, deadline=60, status=dict, on_lost=lambda why: None)


def test_a_missing_worker_is_named(leader: Leader) -> None:
    one = follower(leader, 2)
    while 2 not in leader.workers:  # it is in before it is counted
        time.sleep(0.01)
    with pytest.raises(DeadlineExceeded, match="rank 1 did not connect to"):
        leader.gather(0.2)
    one.close()


def test_a_port_in_use_is_reported(leader: Leader) -> None:
    with pytest.raises(Busy, match="cannot listen on"):
        Leader(*leader.address, 3, SECRET)


def test_a_worker_that_closes_is_lost_for_good(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    lost: queue.Queue[tuple[int, str, bool]] = queue.Queue()
    leader.on_lost = lambda *told: lost.put(told)
    workers[0].close()
    rank, why, for_good = lost.get(timeout=60)
    assert (rank, for_good) == (1, True)
    assert "ended" in why
    leader.send({"plan": 1})  # goes to who is left, and raises nothing
    assert workers[1].receive() == {"plan": 1}


_WORKER = """
import sys, json, time
from jaccl_kernel.inference.control import Follower
host, port, rank = json.loads(sys.argv[1])
def lost(why):
    print("lost", why, flush=True)
one = Follower((host, port), rank, b"s" * 32, deadline=60, status=lambda: {"mark": [0, 0]}, on_lost=lost)
print("in", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def stoppable(leader: Leader, rank: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker in a process of its own."""
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, json.dumps([*leader.address, rank])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.usefixtures("nothing_left")
def test_a_suspended_worker_is_lost_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 1.0)
    leader = Leader("127.0.0.1", 0, 2, SECRET)
    lost: queue.Queue[tuple[int, bool]] = queue.Queue()
    found: queue.Queue[int] = queue.Queue()
    leader.on_lost = lambda rank, why, for_good: lost.put((rank, for_good))
    leader.on_found = found.put
    with stoppable(leader, 1) as worker:
        leader.gather(60)
        os.kill(worker.pid, signal.SIGSTOP)
        assert lost.get(timeout=60) == (1, False)
        os.kill(worker.pid, signal.SIGCONT)
        assert found.get(timeout=60) == 1
    leader.close()


BIG = {"plan": "x" * (32 << 20)}  # more than the sockets hold


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_that_accepts_no_plan_is_named_at_once_and_the_others_stay(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 1.0)
    monkeypatch.setattr(channel, "SEND_S", 600.0)  # the plan is still being sent when it is named
    lost: queue.Queue[tuple[int, str, bool]] = queue.Queue()
    alone: queue.Queue[str] = queue.Queue()
    leader.on_lost = lambda *told: lost.put(told)

    def of_rank_1() -> bool:
        """Whether the next word of rank 1's loss is for good."""
        while (told := lost.get(timeout=60))[0] != 1:
            assert not told[2], "a slow one is silent, and comes back"
        return told[2]

    with stoppable(leader, 1) as worker:
        healthy = follower(leader, 2, lost=alone.put)
        leader.gather(60)
        os.kill(worker.pid, signal.SIGSTOP)
        sending = threading.Thread(target=leader.send, args=(BIG,))
        sending.start()
        assert not of_rank_1()
        assert sending.is_alive()
        worker.kill()
        assert of_rank_1()
        assert healthy.receive() == BIG
        sending.join(60)
        assert alone.empty()
        healthy.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_that_accepts_no_plan_in_time_is_lost_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SEND_S", 1.0)
    leader = Leader("127.0.0.1", 0, 2, SECRET)
    lost: queue.Queue[tuple[int, str, bool]] = queue.Queue()
    leader.on_lost = lambda *told: lost.put(told)
    with stoppable(leader, 1) as worker:
        leader.gather(60)
        os.kill(worker.pid, signal.SIGSTOP)
        leader.send(BIG)
        rank, why, for_good = lost.get(timeout=60)
        assert (rank, for_good) == (1, True)
        assert "did not accept a message within 1 s" in why
    leader.close()


def test_a_dead_worker_is_reported_within_three_seconds() -> None:
    """The promise; a connection that ends is told at once."""
    assert PROMISED_S <= 3.0


def test_a_worker_detects_the_end_of_rank_0(leader: Leader) -> None:
    lost: queue.Queue[str] = queue.Queue()
    workers = [follower(leader, 1, lost=lost.put), follower(leader, 2)]
    leader.gather(60)
    leader.close()
    assert "the connection to rank 0 failed" in lost.get(timeout=60)
    for one in workers:
        one.close()


def _frame(message: object) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def test_a_worker_in_a_step_that_rank_0_does_not_enter_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait in the collective for ever: the stop that it cannot take is reported as a loss."""
    monkeypatch.setattr(control, "LAST_STEP_S", 0.2)
    leader = Leader("127.0.0.1", 0, 3, SECRET)
    lost: queue.Queue[str] = queue.Queue()
    stuck = follower(leader, 1, lost=lost.put)
    waiting = follower(leader, 2, lost=lost.put)
    leader.gather(60)
    leader.close({"stop": True})
    assert waiting.receive() == {"stop": True}
    assert lost.get(timeout=60) == "rank 0 stopped while this rank was in a step"
    stuck.close()
    waiting.close()
    assert lost.empty()
