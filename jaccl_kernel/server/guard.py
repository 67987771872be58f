"""Who may ask, and how much at once: the key, the Host and Origin headers, the size of the bodies.

A server on loopback takes no key, so it must not be reachable through a web page whose name was pointed at
127.0.0.1 (DNS rebinding): a Host header there must be an address or a local name. Nor may a page of another
site start a generation that it cannot even read: what it posts is refused by its Origin.
"""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Callable
from typing import Any

from fastapi import Request
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from jaccl_kernel.server.generation import Served, ServerError
from jaccl_kernel.server.metrics import Metrics

UPLOADS = 256 << 20  # bytes of bodies that are being read, all together
UPLOAD_S = 30.0  # a client that sends nothing of its body for so long is not waited for
LOCAL_NAMES = ("localhost", "testserver")
LOCAL_ENDINGS = (".local", ".localhost", ".internal", ".lan", ".home.arpa")


def check_key(request: Request, served: Served | None) -> None:
    """Refuse a client without the key, where one is set.

    Raises:
        ServerError: 401.
    """
    if served is None or served.api_key is None:
        return
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), served.api_key.encode()):
        raise ServerError(
            401,
            "this server needs its API key: Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
        )


class Uploads:
    """The bodies that are being read: each bounded, and all together."""

    def __init__(self) -> None:
        self._bytes = 0

    async def read(self, request: Request, limit: int) -> bytes:
        """A body, as long as it is not larger than allowed, whatever its headers say.

        Raises:
            ServerError: 413 it is too large; 408 it does not come; 503 too much is being read already; 499
                its client went away.
        """
        body = bytearray()
        pieces = request.stream()
        try:
            while True:
                async with asyncio.timeout(UPLOAD_S):
                    piece = await anext(pieces, None)
                if piece is None:
                    return bytes(body)
                body += piece
                self._bytes += len(piece)
                if len(body) > limit:
                    raise ServerError(413, f"the body is larger than {limit} bytes", code="body_too_large")
                if self._bytes > UPLOADS:
                    raise ServerError(
                        503, "too much is being sent at once", kind="server_error", retry_after=5
                    )
        except TimeoutError:
            raise ServerError(408, f"nothing of the body came for {UPLOAD_S:.0f} s") from None
        except ClientDisconnect:
            raise ServerError(499, "the client went away", kind="client_closed") from None
        finally:
            self._bytes -= len(body)


class Guard:
    """Counts requests, and refuses foreign Host and Origin headers where no key protects the server."""

    def __init__(self, app: Any, served: Callable[[], Served | None], metrics: Metrics) -> None:
        self._app = app
        self._served = served
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(_route(scope["path"]), str(message["status"])).inc()
            await send(message)

        served = self._served()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if served is None or served.api_key is None:
            host, origin = headers.get(b"host", ""), headers.get(b"origin")
            # /health tells little, and has to answer before it is known whether there is a key
            if scope["path"] != "/health" and not is_local(host):
                await _refuse(_wrong_host(host), counting)
                return
            if scope["method"] == "POST" and origin and not _may_call(origin, host, served):
                await _refuse(_wrong_origin(origin), counting)
                return
        await self._app(scope, receive, counting)


class Cors:
    """CORS for the origins that are allowed, once it is known which; none at all otherwise."""

    def __init__(self, app: Any, served: Callable[[], Served | None]) -> None:
        self._app = app
        self._served = served
        self._open: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        served = self._served()
        if served and served.cors_origins and self._open is None:
            self._open = CORSMiddleware(
                self._app,
                allow_origins=list(served.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        await (self._open or self._app)(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether a Host header is an address or a name that no stranger can register."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.rstrip(".").lower()
    plain = "." not in name and ":" not in name  # no top-level domain: a name of the local network
    if plain or name in LOCAL_NAMES or name.endswith(LOCAL_ENDINGS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _may_call(origin: str, host: str, served: Served | None) -> bool:
    """Whether a page of this origin may: our own, and those that were allowed."""
    allowed = served.cors_origins if served else ()
    return origin in allowed or "*" in allowed or origin.partition("://")[2] == host


def _wrong_host(host: str) -> ServerError:
    return ServerError(
        421,
        f"this server does not answer to {host[:100]!r}: use its address, or start it with an API key",
        code="wrong_host",
    )


def _wrong_origin(origin: str) -> ServerError:
    return ServerError(
        403,
        f"pages of {origin[:100]!r} may not use this server: start it with --cors-origin for them",
        code="wrong_origin",
    )


async def _refuse(error: ServerError, send: Any) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _route(path: str) -> str:
    """The path, if it is one of ours: a stranger's paths must not become labels without end."""
    known = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/status", "/metrics", "/")
    return next(
        (one for one in known if path == one or (one == "/v1/models" and path.startswith(one))), "other"
    )
