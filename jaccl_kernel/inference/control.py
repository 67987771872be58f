"""The control plane: plans from rank 0 to the workers and heartbeats both ways, over authenticated TCP.

Both ends prove by HMAC that they know the launch's secret before any message is accepted; a client that sends
nothing, or anything invalid, is disconnected and does not delay the others. The port closes when every worker
is connected. A connection that ends, or sends no heartbeat for SILENCE_S, is reported with its rank. Knows
ranks, but no models and no requests; channel.py sends the frames. No mlx.
"""

import contextlib
import functools
import hashlib
import hmac
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jaccl_kernel.core.errors import Busy, DeadlineExceeded, JobError
from jaccl_kernel.inference.channel import Channel, Message

HANDSHAKE_S = 5.0
MAX_UNAUTHENTICATED = 32  # one more connection closes the oldest
RETRY_S = 0.1  # before a rejected worker connects again
BEAT_S = 0.4
SILENCE_S = 2.0
LAST_MESSAGE_S = 1.0
LAST_STEP_S = 30.0  # a worker takes rank 0's stop within this time, unless it waits in a collective for it


@dataclass
class Worker:
    """Rank 0's state of one worker."""

    rank: int
    channel: Channel
    last_message: float = field(default_factory=time.monotonic)
    beat: Message = field(default_factory=dict)  # its last heartbeat
    silent: bool = False
    dead: bool = False


class Leader:
    """Rank 0's end.

    Args:
        address: the IPv4 address to listen on.
        port: the TCP port; 0 for any.
        size: the number of ranks, including this one.
        secret: the launch's secret.

    Raises:
        Busy: the port is in use.
    """

    def __init__(self, address: str, port: int, size: int, secret: bytes) -> None:
        self.workers: dict[int, Worker] = {}
        self.on_message: Callable[[int, Message], None] = lambda rank, message: None
        self.on_lost: Callable[[int, str, bool], None] = lambda rank, why, for_good: None
        self.on_found: Callable[[int], None] = lambda rank: None
        self._size = size
        self._secret = secret
        self._changed = threading.Condition()
        self._closing = False
        self._gathered = size == 1
        self._unauthenticated: list[Channel] = []  # oldest first
        self._listener = _listen(address, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        _thread(self._accept, "jaccl-control-accept")

    def gather(self, deadline: float) -> None:
        """Wait until every worker is connected, then close the port and start to monitor them.

        Raises:
            DeadlineExceeded: not all connected within `deadline` seconds; names the missing ranks.
        """
        with self._changed:
            complete = self._changed.wait_for(lambda: len(self.workers) == self._size - 1, deadline)
        self._gathered = True
        if not complete:
            missing = sorted(set(range(1, self._size)) - set(self.workers))
            raise DeadlineExceeded(
                f"rank {', '.join(map(str, missing))} did not connect to rank 0's control port "
                f"{self.address[0]}:{self.address[1]} within {deadline:.0f} s",
                where="rank 0",
                fix="Check that this address is reachable from there (firewall, Local Network privacy), "
                "or choose another port with --ctrl-port.",
            )
        for worker in self.workers.values():
            _thread(functools.partial(self._listen_to, worker), f"jaccl-control-{worker.rank}")
        _thread(self._watch, "jaccl-control-watch")

    def send(self, message: Message, within: float | None = None) -> None:
        """Send a message to every worker; a lost connection is reported to `on_lost`, not raised."""
        for worker in self.workers.values():
            try:
                worker.channel.send(message, within)
            except OSError as error:
                self._lose(worker, f"its connection to rank 0 failed ({error})")

    def close(self, last: Message | None = None) -> None:
        """Close every connection after a last message, without reporting a loss. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if last:
            self.send(last, LAST_MESSAGE_S)
        for worker in self.workers.values():
            worker.channel.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.2)
        while not (self._gathered or self._closing):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # no connection yet
                continue
            connection.settimeout(None)
            channel = Channel(connection)
            with self._changed:
                self._unauthenticated.append(channel)
                oldest = (
                    self._unauthenticated.pop(0) if len(self._unauthenticated) > MAX_UNAUTHENTICATED else None
                )
            if oldest:  # a worker authenticates at once
                oldest.close()
            _thread(functools.partial(self._authenticate, connection, channel), "jaccl-control-greet")
        self._listener.close()

    def _authenticate(self, connection: socket.socket, channel: Channel) -> None:
        """Add a worker that authenticates; disconnect any other client."""
        try:
            rank = self._prove(connection, channel)
        except (OSError, ValueError, KeyError, TypeError):
            channel.close()
            return
        finally:
            with self._changed, contextlib.suppress(ValueError):
                self._unauthenticated.remove(channel)
        with self._changed:
            if self._closing or rank in self.workers:
                channel.close()
                return
            self.workers[rank] = Worker(rank, channel)
            self._changed.notify_all()

    def _prove(self, connection: socket.socket, channel: Channel) -> int:
        _tune(connection)
        nonce = secrets.token_hex(16)
        channel.send({"nonce": nonce})
        answer = channel.receive(limit=1024, end=time.monotonic() + HANDSHAKE_S)
        rank, theirs = int(answer["rank"]), str(answer["nonce"])
        expected = _proof(self._secret, "worker", rank, nonce, theirs)
        if not 0 < rank < self._size:
            raise ConnectionError("unknown rank")
        if not hmac.compare_digest(expected, str(answer["proof"])):
            raise ConnectionError("wrong proof")
        with self._changed:
            if channel not in self._unauthenticated:
                raise ConnectionError("too many connections")
            self._unauthenticated.remove(
                channel
            )  # before the answer: from now on it is not closed as the oldest
        channel.send({"proof": _proof(self._secret, "leader", rank, nonce, theirs)})
        channel.deadline(None)
        return rank

    def _listen_to(self, worker: Worker) -> None:
        try:
            while True:
                message = worker.channel.receive()
                worker.last_message = time.monotonic()
                worker.beat = message.get("beat", worker.beat)
                self.on_message(worker.rank, message)
        except OSError as error:
            self._lose(worker, f"its process ended ({error})")

    def _watch(self) -> None:
        """Send heartbeats and check those of the workers, except after a pause of this process."""
        last = time.monotonic()
        while not self._closing:
            time.sleep(BEAT_S)
            now = time.monotonic()
            paused = now - last > SILENCE_S / 2
            last = now
            workers = [worker for worker in self.workers.values() if not worker.dead]
            for worker in workers:
                if paused:
                    worker.last_message = now
                self._judge(worker, now)
            for worker in workers:
                with contextlib.suppress(OSError):  # its reader thread reports the loss
                    worker.channel.send_if_free({"beat": True})

    def _judge(self, worker: Worker, now: float) -> None:
        silent = now - worker.last_message > SILENCE_S
        if silent and not worker.silent:
            worker.silent = True
            self.on_lost(worker.rank, f"no heartbeat for {SILENCE_S:.0f} s", False)
        elif worker.silent and not silent:
            worker.silent = False
            self.on_found(worker.rank)

    def _lose(self, worker: Worker, why: str) -> None:
        with self._changed:
            if worker.dead or self._closing:
                return
            worker.dead = True
        worker.channel.close()
        self.on_lost(worker.rank, why, True)


class Follower:
    """A worker's end, connected and authenticated by its constructor.

    Args:
        address: rank 0's control address and port.
        rank: this worker's rank.
        secret: the launch's secret.
        deadline: seconds for the connection.
        status: returns the body of each heartbeat.
        on_lost: called once, from its own thread, when rank 0 ends or sends no heartbeat, or stops while this
            rank is in a step that rank 0 does not enter.

    Raises:
        JobError: rank 0 is unreachable, or does not know the secret.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rank: int,
        secret: bytes,
        *,
        deadline: float,
        status: Callable[[], Message],
        on_lost: Callable[[str], None],
    ) -> None:
        self._channel = _connect(address, rank, secret, deadline)
        self._status = status
        self._on_lost = on_lost
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closing = False
        self._done = threading.Event()  # the stop was received, or this end was closed
        _thread(self._listen, "jaccl-control-listen")
        _thread(self._beat, "jaccl-control-beat")

    def receive(self) -> Message:
        """Return the next message; waits without limit and without using CPU."""
        message = self._inbox.get()
        if "stop" in message:
            self._done.set()
        return message

    def send(self, message: Message) -> None:
        """Send a message to rank 0; a lost connection is reported to `on_lost`."""
        with contextlib.suppress(OSError):
            self._channel.send(message)

    def close(self) -> None:
        """Close the connection without reporting a loss."""
        self._closing = True
        self._done.set()
        self._channel.close()

    def _listen(self) -> None:
        timeouts = 0
        self._channel.deadline(SILENCE_S)
        while not self._closing:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                # after a pause of the whole machine, the first timeout is not significant
                timeouts += 1
                if timeouts < 3:
                    continue
                why = f"no heartbeat from rank 0 for {timeouts * SILENCE_S:.0f} s"
            except OSError as error:
                why = f"the connection to rank 0 failed ({error})"
            else:
                timeouts = 0
                if "stop" in message:
                    self._closing = True  # rank 0 closes the connection next
                if "beat" not in message:
                    self._inbox.put(message)
                continue
            if not self._closing:
                self._on_lost(why)
            return
        if not self._done.wait(LAST_STEP_S):
            self._on_lost("rank 0 stopped while this rank was in a step")

    def _beat(self) -> None:
        while not self._closing:
            self.send({"beat": self._status()})
            time.sleep(BEAT_S)


def _connect(address: tuple[str, int], rank: int, secret: bytes, deadline: float) -> Channel:
    """Connect and authenticate to rank 0; retries until the deadline, as other clients may crowd the port."""
    end = time.monotonic() + deadline
    while True:
        try:
            connection = socket.create_connection(address, timeout=HANDSHAKE_S)
        except OSError as error:
            what, cause = f"cannot reach rank 0's control port {address[0]}:{address[1]}: {error}", error
        else:
            try:
                return _authenticate_to(connection, address, rank, secret)
            except OSError as error:
                what, cause = f"rank 0 rejected this rank: {error}", error
        if time.monotonic() > end:
            raise JobError(
                what,
                where=f"rank {rank}",
                fix="Check the firewall and Local Network privacy, or choose another --ctrl-port.",
            ) from cause
        time.sleep(RETRY_S)


def _authenticate_to(
    connection: socket.socket, address: tuple[str, int], rank: int, secret: bytes
) -> Channel:
    """The worker's side of the handshake."""
    connection.settimeout(None)
    _tune(connection)
    channel = Channel(connection)
    end = time.monotonic() + HANDSHAKE_S
    try:
        theirs = str(channel.receive(limit=1024, end=end)["nonce"])
        nonce = secrets.token_hex(16)
        channel.send({"rank": rank, "nonce": nonce, "proof": _proof(secret, "worker", rank, theirs, nonce)})
        proven = str(channel.receive(limit=1024, end=end)["proof"])
    except KeyError as error:
        channel.close()
        raise ConnectionError(f"its message has no {error}") from None
    except OSError:
        channel.close()
        raise
    if not hmac.compare_digest(proven, _proof(secret, "leader", rank, theirs, nonce)):
        channel.close()
        raise JobError(
            f"the program at {address[0]}:{address[1]} is not this launch's rank 0", where=f"rank {rank}"
        )
    channel.deadline(None)
    return channel


def _proof(secret: bytes, side: str, rank: int, leader_nonce: str, worker_nonce: str) -> str:
    text = f"jaccl-control 1 {side} {rank} {leader_nonce} {worker_nonce}"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise Busy(
            f"cannot listen on {address}:{port} for the control plane: {os.strerror(error.errno or 0)}",
            where="rank 0",
            fix="Choose another port with --ctrl-port, or stop the program that uses this one.",
        ) from error
    return listener


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _thread(target: Callable[[], None], name: str) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()
