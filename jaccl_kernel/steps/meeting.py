"""Can the others reach rank 0's address? A listener there for a moment, on its own port, and calls to it.

JACCL's own port is never touched: any stray connection to it ends rank 0. The listener takes a free port that
no job of ours starts from, hears a nonce from each caller, answers it, and ends: by itself after the last
caller or its own deadline, or with us.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.cluster.shell import Completed, Node
from jaccl_kernel.errors import CommandFailed, NodeError
from jaccl_kernel.jobs.ports import FIRST, LAST

LISTEN_S = 30.0  # how long the listener stays at the most
CALL_S = 5.0
SPARE_S = 20.0  # for ssh and a Python to start, on top

_LISTENER = r"""
import socket, sys, time
address, nonce, callers, seconds, first, last = sys.argv[1:]
end = time.monotonic() + float(seconds)
kept = []
while True:
    server = socket.socket()
    try:
        server.bind((address, 0))
    except OSError as error:
        sys.exit(f"cannot listen at {address}: {error.strerror} (errno {error.errno})")
    port = server.getsockname()[1]
    if not int(first) <= port <= int(last) or len(kept) == 64:
        break
    kept.append(server)  # a port that a job may start from: held, so that the next one is another
for one in kept:
    one.close()
server.listen(16)
print(f"listening {port}", flush=True)
waiting = int(callers)
while waiting and (left := end - time.monotonic()) > 0:
    server.settimeout(left)
    try:
        connection, _ = server.accept()
    except TimeoutError:
        break
    with connection:
        connection.settimeout(2)
        try:
            if connection.recv(64).decode("ascii", "replace").strip() == nonce:
                connection.sendall(f"{nonce} heard\n".encode())
                waiting -= 1
        except OSError:
            pass
"""
_CALLER = r"""
import socket, sys
address, port, nonce, seconds = sys.argv[1:]
try:
    with socket.create_connection((address, int(port)), timeout=float(seconds)) as connection:
        connection.sendall(f"{nonce}\n".encode())
        answer = connection.recv(64).decode("ascii", "replace").strip()
except OSError as error:
    sys.exit(f"{error.strerror or error or 'timed out'}")
if answer != f"{nonce} heard":
    sys.exit("somebody else answered there")
"""


@dataclass(frozen=True)
class Meeting:
    """Who listens at which address, and who must reach it; nodes as indices."""

    host: int
    address: str
    callers: tuple[int, ...]


async def meet(meeting: Meeting, nodes: Sequence[Node], labels: Sequence[str], python: str) -> list[Problem]:
    """The problems of one meeting: an address that is not the host's, and each caller that gets no answer."""
    nonce = secrets.token_hex(8)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        word, _, number = line.strip().partition(" ")
        if word == "listening" and number.isdigit() and not port.done():
            port.set_result(int(number))

    arguments = [meeting.address, nonce, str(len(meeting.callers)), str(LISTEN_S), str(FIRST), str(LAST)]
    listener = asyncio.create_task(
        nodes[meeting.host].run(
            [python, "-c", _LISTENER, *arguments], deadline=LISTEN_S + SPARE_S, on_line=on_line
        )
    )
    try:
        listener.add_done_callback(lambda _: port.done() or port.cancel())
        await asyncio.wait({port})
        if port.cancelled():
            return [_no_listener(meeting, labels, listener)]
        calls = [
            _call(meeting, caller, nodes, labels, python, port.result(), nonce) for caller in meeting.callers
        ]
        found = await asyncio.gather(*calls)
        return [problem for problem in found if problem]
    finally:
        port.cancel()
        listener.cancel()
        with contextlib.suppress(asyncio.CancelledError, NodeError):
            await listener


async def _call(
    meeting: Meeting,
    caller: int,
    nodes: Sequence[Node],
    labels: Sequence[str],
    python: str,
    port: int,
    nonce: str,
) -> Problem | None:
    arguments = [meeting.address, str(port), nonce, str(CALL_S)]
    try:
        await nodes[caller].run([python, "-c", _CALLER, *arguments], deadline=CALL_S + SPARE_S)
    except CommandFailed as error:
        text = f"It cannot reach {labels[meeting.host]} at {meeting.address}: {error.output}."
        fix = (
            f"Check the firewall on {labels[meeting.host]}, and that both are in one network; programs that "
            "were started inside VS Code may lack macOS's Local Network permission."
        )
        return Problem("coordinator-unreachable", "error", labels[caller], text, fix)
    except NodeError as error:
        return Problem("untested", "warning", labels[caller], error.what, error.fix)
    return None


def _no_listener(meeting: Meeting, labels: Sequence[str], listener: "asyncio.Task[Completed]") -> Problem:
    """Why there was nobody to call."""
    where = f"host {meeting.host} ({labels[meeting.host]}), ips[0]"
    error = listener.exception()
    if isinstance(error, CommandFailed) and "cannot listen" in error.output:
        text = f"{labels[meeting.host]} {error.output}: it is not one of its addresses (any more)."
        fix = "Detect its address again: notebook 03, or `jaccl hostfile write`."
        return Problem("coordinator-not-own", "error", where, text, fix)
    what = error.what if isinstance(error, NodeError) else "the listener ended without a word"
    return Problem(
        "untested", "warning", where, f"Nobody could listen there: {what}", "Check the interpreter."
    )
