"""HTTP on rank 0: uvicorn on its own thread, so that it answers while the engine's thread is in a step.

Starts before the model is loaded, and reports the stage until then. Knows no routes.
"""

import asyncio
import contextlib
import os
import resource
import socket
import threading
from typing import Any

import uvicorn

from jaccl_kernel.api.connection import Connection
from jaccl_kernel.core.errors import Busy

GRACE_S = 2.0  # for open connections to finish
BACKLOG = 512
CONNECTIONS = 1024  # maximum open connections; one more closes an idle one, or gets 503
FILES = 128  # open files reserved for other uses


class Http:
    """A listening socket, and after `start` an app that serves it.

    Args:
        host: the address to bind, a name or an IP address.
        port: the TCP port; 0 for any.

    Raises:
        Busy: the address cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            self._socket = _bind(host, port)
        except OSError as error:
            raise Busy(
                f"cannot serve on {host}:{port}: {error.strerror or os.strerror(error.errno or 0)}",
                where="rank 0",
                fix="Choose another --port (or --host), or stop the server that uses this one: jaccl stop.",
            ) from error
        bound = self._socket.getsockname()
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{bound[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: Any) -> None:
        """Serve this app from now on."""
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http=Connection,
            server_header=False,
            timeout_keep_alive=75,
            limit_concurrency=_connections(),
            timeout_graceful_shutdown=int(GRACE_S),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="jaccl-http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for open connections (bounded), then close."""
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(GRACE_S + 1)
        with contextlib.suppress(OSError):
            self._socket.close()

    def _serve(self) -> None:
        assert self._server
        asyncio.run(self._server.serve(sockets=[self._socket]))


def _connections() -> int:
    """Raise the limit of open files, which is 256 on a Mac, and return the connections that it allows."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        more = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, most))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, max(16, files - FILES))


def _bind(host: str, port: int) -> socket.socket:
    # name the protocol: asyncio sets TCP_NODELAY only on sockets with IPPROTO_TCP
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound
