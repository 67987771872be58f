"""The control plane: proven ends, whole frames, and a stranger keeps nobody waiting; who is gone is told."""

import contextlib
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

from jaccl_kernel.errors import Busy, DeadlineExceeded, JobError
from jaccl_kernel.server.control import MAX_STRANGERS, Follower, Leader

SECRET = b"s" * 32
ROOT = Path(__file__).parents[2]


def follower(
    leader: Leader, rank: int, secret: bytes = SECRET, lost: Callable[[str], None] = print
) -> Follower:
    return Follower(
        leader.address, rank, secret, deadline=5, status=lambda: {"mark": (0, rank)}, on_lost=lost
    )


@pytest.fixture
def leader() -> Iterator[Leader]:
    one = Leader("127.0.0.1", 0, 3, SECRET)
    yield one
    one.close()


@pytest.fixture
def pair(leader: Leader) -> Iterator[tuple[Leader, list[Follower]]]:
    both = [follower(leader, rank) for rank in (1, 2)]
    leader.gather(5)
    yield leader, both
    for one in both:
        one.close()


def test_plans_arrive_whole_and_in_order(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    big = {"plan": list(range(300_000))}
    for message in ({"plan": 1}, big, {"plan": 2}):
        leader.send(message)
    for worker in workers:
        assert [worker.receive() for _ in range(3)] == [{"plan": 1}, big, {"plan": 2}]


def test_a_workers_words_and_beats_reach_the_leader(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    heard: queue.Queue[tuple[int, dict[str, object]]] = queue.Queue()
    leader.on_message = lambda rank, message: heard.put((rank, message))
    workers[1].send({"error": "no"})
    while (got := heard.get(timeout=5)) != (2, {"error": "no"}):
        assert "beat" in got[1]
    assert leader.workers[1].beat == {"mark": [0, 1]}


def test_once_all_are_in_nothing_listens_any_more(pair: tuple[Leader, list[Follower]]) -> None:
    leader, _ = pair
    end = time.monotonic() + 5
    with contextlib.suppress(ConnectionRefusedError):
        while time.monotonic() < end:
            socket.create_connection(leader.address, timeout=5).close()
            time.sleep(0.05)
        pytest.fail("the control port still takes connections")


def test_strangers_silent_lying_and_loud_keep_nobody_out(leader: Leader) -> None:
    silent = [socket.create_connection(leader.address) for _ in range(MAX_STRANGERS - 2)]
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
            stranger.settimeout(10)
            while stranger.recv(4096):  # the nonce, and then the end
                pass
    workers = [follower(leader, rank) for rank in (1, 2)]
    leader.gather(5)
    assert sorted(leader.workers) == [1, 2]
    for connection in silent:
        connection.close()
    for worker in workers:
        worker.close()


def test_who_does_not_know_the_secret_is_not_let_in(leader: Leader) -> None:
    with pytest.raises(JobError, match="did not let this rank in"):
        follower(leader, 1, secret=b"wrong")
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
            Follower(impostor.getsockname(), 1, SECRET, deadline=2, status=dict, on_lost=lambda why: None)


def test_a_missing_worker_is_named(leader: Leader) -> None:
    one = follower(leader, 2)
    with pytest.raises(DeadlineExceeded, match="rank 1 did not reach"):
        leader.gather(0.2)
    one.close()


def test_a_port_in_use_is_told(leader: Leader) -> None:
    with pytest.raises(Busy, match="cannot listen on"):
        Leader(*leader.address, 3, SECRET)


def test_a_worker_that_closes_is_lost_for_good(pair: tuple[Leader, list[Follower]]) -> None:
    leader, workers = pair
    lost: queue.Queue[tuple[int, str, bool]] = queue.Queue()
    leader.on_lost = lambda *told: lost.put(told)
    workers[0].close()
    rank, why, for_good = lost.get(timeout=5)
    assert (rank, for_good) == (1, True)
    assert "ended" in why
    leader.send({"plan": 1})  # goes to who is left, and raises nothing
    assert workers[1].receive() == {"plan": 1}


_WORKER = """
import sys, json, time
from jaccl_kernel.server.control import Follower
host, port, rank = json.loads(sys.argv[1])
def lost(why):
    print("lost", why, flush=True)
one = Follower((host, port), rank, b"s" * 32, deadline=5, status=lambda: {"mark": [0, 0]}, on_lost=lost)
print("in", flush=True)
sys.stdin.read()
"""


def test_a_stopped_worker_is_silent_and_comes_back() -> None:
    leader = Leader("127.0.0.1", 0, 2, SECRET)
    lost: queue.Queue[tuple[int, bool]] = queue.Queue()
    found: queue.Queue[int] = queue.Queue()
    leader.on_lost = lambda rank, why, for_good: lost.put((rank, for_good))
    leader.on_found = found.put
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, json.dumps([*leader.address, 1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        leader.gather(20)
        os.kill(worker.pid, signal.SIGSTOP)
        assert lost.get(timeout=10) == (1, False)
        os.kill(worker.pid, signal.SIGCONT)
        assert found.get(timeout=10) == 1
    finally:
        worker.kill()
        worker.communicate()
        leader.close()


def test_a_worker_notices_that_rank_0_is_gone(leader: Leader) -> None:
    lost: queue.Queue[str] = queue.Queue()
    workers = [follower(leader, 1, lost=lost.put), follower(leader, 2)]
    leader.gather(5)
    leader.close()
    assert "rank 0 is gone" in lost.get(timeout=5)
    for one in workers:
        one.close()


def _frame(message: object) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body
