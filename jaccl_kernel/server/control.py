"""The control plane: plans from rank 0 to the workers, heartbeats both ways, over TCP that both ends prove.

Both ends prove by HMAC that they know the launch's secret before a word is believed; a client that is silent,
lies or talks nonsense is dropped and keeps nobody waiting. Once every worker is in, nothing listens any more.
Who closes, or is silent for SILENCE_S, is told to the listener with its rank. Knows ranks, no models and no
requests; frames are channel.py's. No mlx.
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

from jaccl_kernel.errors import Busy, DeadlineExceeded, JobError
from jaccl_kernel.server.channel import Channel, Message

HANDSHAKE_S = 5.0
MAX_STRANGERS = 32  # connections that have not proved anything yet; one more ends the oldest
AGAIN_S = 0.1  # before a worker that was not let in tries again
BEAT_S = 0.4
SILENCE_S = 2.0
GOODBYE_S = 1.0  # for the last one


@dataclass
class Worker:
    """What rank 0 knows of one worker."""

    rank: int
    channel: Channel
    heard: float = field(default_factory=time.monotonic)
    beat: Message = field(default_factory=dict)  # its last heartbeat
    silent: bool = False
    dead: bool = False


class Leader:
    """Rank 0's end.

    Args:
        address: the IPv4 address to listen on.
        port: the TCP port; 0 for any.
        size: how many ranks there are, this one included.
        secret: what the workers must know.

    Raises:
        Busy: the port is taken.
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
        self._strangers: list[Channel] = []  # oldest first
        self._listener = _listen(address, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        _thread(self._accept, "jaccl-control-accept")

    def gather(self, deadline: float) -> None:
        """Wait until every worker is in, then stop listening and begin to watch them.

        Raises:
            DeadlineExceeded: not all were in after `deadline` seconds; names the missing ranks.
        """
        with self._changed:
            everyone = self._changed.wait_for(lambda: len(self.workers) == self._size - 1, deadline)
        self._gathered = True
        if not everyone:
            missing = sorted(set(range(1, self._size)) - set(self.workers))
            raise DeadlineExceeded(
                f"rank {', '.join(map(str, missing))} did not reach rank 0's control port "
                f"{self.address[0]}:{self.address[1]} within {deadline:.0f} s",
                where="rank 0",
                fix="Check that this address can be reached from there (firewall, Local Network privacy), "
                "or choose another port with --ctrl-port.",
            )
        for worker in self.workers.values():
            _thread(functools.partial(self._listen_to, worker), f"jaccl-control-{worker.rank}")
        _thread(self._watch, "jaccl-control-watch")

    def send(self, message: Message, within: float | None = None) -> None:
        """Send a message to every worker; one that is gone is told to the listener, not raised."""
        for worker in self.workers.values():
            try:
                worker.channel.send(message, within)
            except OSError as error:
                self._lose(worker, f"its connection to rank 0 broke ({error})")

    def close(self, last: Message | None = None) -> None:
        """Close every connection, after a last message: no worker is missed any more."""
        self._closing = True
        if last:
            self.send(last, GOODBYE_S)
        for worker in self.workers.values():
            worker.channel.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.2)
        while not (self._gathered or self._closing):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody yet
                continue
            connection.settimeout(None)
            channel = Channel(connection)
            with self._changed:
                self._strangers.append(channel)
                oldest = self._strangers.pop(0) if len(self._strangers) > MAX_STRANGERS else None
            if oldest:  # a worker proves itself in no time
                oldest.close()
            _thread(functools.partial(self._greet, connection, channel), "jaccl-control-greet")
        self._listener.close()

    def _greet(self, connection: socket.socket, channel: Channel) -> None:
        """Let a worker prove itself; anyone else is dropped."""
        try:
            rank = self._prove(connection, channel)
        except (OSError, ValueError, KeyError, TypeError):
            channel.close()
            return
        finally:
            with self._changed, contextlib.suppress(ValueError):
                self._strangers.remove(channel)
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
            raise ConnectionError("no such rank")
        if not hmac.compare_digest(expected, str(answer["proof"])):
            raise ConnectionError("a wrong proof")
        with self._changed:
            if channel not in self._strangers:
                raise ConnectionError("others came")
            self._strangers.remove(channel)  # before it hears that it is in: from now on nobody ends it
        channel.send({"proof": _proof(self._secret, "leader", rank, nonce, theirs)})
        channel.deadline(None)
        return rank

    def _listen_to(self, worker: Worker) -> None:
        try:
            while True:
                message = worker.channel.receive()
                worker.heard = time.monotonic()
                worker.beat = message.get("beat", worker.beat)
                self.on_message(worker.rank, message)
        except OSError as error:
            self._lose(worker, f"its process ended ({error})")

    def _watch(self) -> None:
        """Send heartbeats, and notice who sends none. A pause of this very process is nobody's silence."""
        last = time.monotonic()
        while not self._closing:
            time.sleep(BEAT_S)
            now = time.monotonic()
            paused = now - last > SILENCE_S / 2
            last = now
            workers = [worker for worker in self.workers.values() if not worker.dead]
            for worker in workers:
                if paused:
                    worker.heard = now
                self._judge(worker, now)
            for worker in workers:
                with contextlib.suppress(OSError):  # its reader thread tells
                    worker.channel.send_if_free({"beat": True})

    def _judge(self, worker: Worker, now: float) -> None:
        silent = now - worker.heard > SILENCE_S
        if silent and not worker.silent:
            worker.silent = True
            self.on_lost(worker.rank, f"it has been silent for {SILENCE_S:.0f} s", False)
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
    """A worker's end: connected and proven when made.

    Args:
        address: rank 0's control address and port.
        rank: this worker's.
        secret: the launch's.
        deadline: seconds to get through.
        status: makes the body of each heartbeat.
        on_lost: called once when rank 0 is gone or silent, from a thread of its own.

    Raises:
        JobError: rank 0 cannot be reached, or does not know the secret.
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
        _thread(self._listen, "jaccl-control-listen")
        _thread(self._beat, "jaccl-control-beat")

    def receive(self) -> Message:
        """The next message; waits, using no CPU, for as long as it takes."""
        return self._inbox.get()

    def send(self, message: Message) -> None:
        """Tell rank 0 something; if it is gone, `on_lost` hears of it."""
        with contextlib.suppress(OSError):
            self._channel.send(message)

    def close(self) -> None:
        """End the connection without calling that a loss."""
        self._closing = True
        self._channel.close()

    def _listen(self) -> None:
        silences = 0
        self._channel.deadline(SILENCE_S)
        while not self._closing:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                # two in a row: after a pause of the whole machine the first timeout means nothing
                silences += 1
                if silences < 3:
                    continue
                why = f"rank 0 has been silent for {silences * SILENCE_S:.0f} s"
            except OSError as error:
                why = f"rank 0 is gone ({error})"
            else:
                silences = 0
                if "stop" in message:
                    self._closing = True  # rank 0 is about to close: no loss
                if "beat" not in message:
                    self._inbox.put(message)
                continue
            if not self._closing:
                self._on_lost(why)
            return

    def _beat(self) -> None:
        while not self._closing:
            self.send({"beat": self._status()})
            time.sleep(BEAT_S)


def _connect(address: tuple[str, int], rank: int, secret: bytes, deadline: float) -> Channel:
    """Reach rank 0 and prove both ends; tried again until the deadline, as strangers may crowd the port."""
    end = time.monotonic() + deadline
    while True:
        try:
            connection = socket.create_connection(address, timeout=HANDSHAKE_S)
        except OSError as error:
            what, cause = f"cannot reach rank 0's control port {address[0]}:{address[1]}: {error}", error
        else:
            try:
                return _introduce(connection, address, rank, secret)
            except OSError as error:
                what, cause = f"rank 0 did not let this rank in: {error}", error
        if time.monotonic() > end:
            raise JobError(
                what,
                where=f"rank {rank}",
                fix="Check the firewall and Local Network privacy, or choose another --ctrl-port.",
            ) from cause
        time.sleep(AGAIN_S)


def _introduce(connection: socket.socket, address: tuple[str, int], rank: int, secret: bytes) -> Channel:
    """A worker's side of the proof."""
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
        raise ConnectionError(f"it said no {error}") from None
    except OSError:
        channel.close()
        raise
    if not hmac.compare_digest(proven, _proof(secret, "leader", rank, theirs, nonce)):
        channel.close()
        raise JobError(
            f"what answers at {address[0]}:{address[1]} is not this launch's rank 0", where=f"rank {rank}"
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
            fix="Choose another port with --ctrl-port, or stop what uses this one.",
        ) from error
    return listener


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _thread(target: Callable[[], None], name: str) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()
