"""Checks that the other nodes reach rank 0's address: a short-lived listener there, and connections to it.

It never uses JACCL's own port: any stray connection to it ends rank 0. The listener takes a free port outside
the range of our jobs, answers a nonce from each caller, and ends after the last caller, at its own deadline,
or with this process.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import CommandFailed, NodeError
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.launch.ports import FIRST, LAST
from jaccl_kernel.nodes.node import Completed, Node

LISTEN_S = 30.0  # the listener's maximum lifetime
CALL_S = 5.0
SPARE_S = 20.0  # extra time for ssh and Python to start

_LISTENER = r"""
import socket, sys, time
address, nonce, callers, seconds, first, last = sys.argv[1:]
end = time.monotonic() + float(seconds)
reserved = []
while True:
    server = socket.socket()
    try:
        server.bind((address, 0))
    except OSError as error:
        sys.exit(f"cannot listen on {address}: {error.strerror} (errno {error.errno})")
    port = server.getsockname()[1]
    if not int(first) <= port <= int(last) or len(reserved) == 64:
        break
    reserved.append(server)  # in the range of our jobs: keep it open, so that the next port differs
for one in reserved:
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
                connection.sendall(f"{nonce} ok\n".encode())
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
if answer != f"{nonce} ok":
    sys.exit("another program answered at that address")
"""


@dataclass(frozen=True)
class Endpoint:
    """An address on a host, and the nodes that must reach it, as indices."""

    host: int
    address: str
    callers: tuple[int, ...]


async def check_endpoint(
    endpoint: Endpoint, nodes: Sequence[Node], labels: Sequence[str], python: str
) -> list[Problem]:
    """Return an endpoint's problems: the address is not the host's, or a caller got no answer."""
    nonce = secrets.token_hex(8)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_line(line: str) -> None:
        word, _, number = line.strip().partition(" ")
        if word == "listening" and number.isdigit() and not port.done():
            port.set_result(int(number))

    arguments = [endpoint.address, nonce, str(len(endpoint.callers)), str(LISTEN_S), str(FIRST), str(LAST)]
    listener = asyncio.create_task(
        nodes[endpoint.host].run(
            [python, "-c", _LISTENER, *arguments], deadline=LISTEN_S + SPARE_S, on_line=on_line
        )
    )
    try:
        listener.add_done_callback(lambda _: port.done() or port.cancel())
        await asyncio.wait({port})
        if port.cancelled():
            return [_no_listener(endpoint, labels, listener)]
        calls = [
            _call(endpoint, caller, nodes, labels, python, port.result(), nonce)
            for caller in endpoint.callers
        ]
        found = await asyncio.gather(*calls)
        return [problem for problem in found if problem]
    finally:
        port.cancel()
        listener.cancel()
        with contextlib.suppress(asyncio.CancelledError, NodeError):
            await listener


async def _call(
    endpoint: Endpoint,
    caller: int,
    nodes: Sequence[Node],
    labels: Sequence[str],
    python: str,
    port: int,
    nonce: str,
) -> Problem | None:
    arguments = [endpoint.address, str(port), nonce, str(CALL_S)]
    try:
        await nodes[caller].run([python, "-c", _CALLER, *arguments], deadline=CALL_S + SPARE_S)
    except CommandFailed as error:
        text = f"Cannot reach {labels[endpoint.host]} at {endpoint.address}: {error.output}."
        fix = (
            f"Check the firewall on {labels[endpoint.host]}, and that both are on the same network; programs "
            "started from VS Code may lack macOS's Local Network permission."
        )
        return Problem("coordinator-unreachable", "error", labels[caller], text, fix)
    except NodeError as error:
        return Problem("untested", "warning", labels[caller], error.what, error.fix)
    return None


def _no_listener(endpoint: Endpoint, labels: Sequence[str], listener: "asyncio.Task[Completed]") -> Problem:
    """Return why the listener did not start."""
    where = f"host {endpoint.host} ({labels[endpoint.host]}), ips[0]"
    error = listener.exception()
    if isinstance(error, CommandFailed) and "cannot listen" in error.output:
        text = f"{labels[endpoint.host]} {error.output}: the address does not belong to it."
        fix = "Detect the address again: notebook 03, or `jaccl hostfile write`."
        return Problem("coordinator-not-own", "error", where, text, fix)
    what = error.what if isinstance(error, NodeError) else "the listener ended without output"
    return Problem(
        "untested", "warning", where, f"Could not start the listener: {what}", "Check the interpreter."
    )
