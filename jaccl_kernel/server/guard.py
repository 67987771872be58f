"""Who may ask, and how much at once: the key, the name in the Host header, the size of the body.

A server on loopback takes no key, so it must not be reachable through a web page whose name was pointed at
127.0.0.1 (DNS rebinding): a Host header there must be an address or a local name.
"""

import hmac
import ipaddress
import json
from collections.abc import Callable
from typing import Any

from fastapi import Request

from jaccl_kernel.server.generation import Served, ServerError
from jaccl_kernel.server.metrics import Metrics

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


async def read_body(request: Request, limit: int) -> bytes:
    """The body, as long as it is not larger than allowed, whatever its headers say.

    Raises:
        ServerError: 413.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise ServerError(413, f"the body is larger than {limit} bytes", code="body_too_large")
    return bytes(body)


class Guard:
    """Counts requests, and refuses foreign Host headers where no key protects the server."""

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
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if (served is None or served.api_key is None) and not is_local(host):
            await _refuse(host, counting)
            return
        await self._app(scope, receive, counting)


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


async def _refuse(host: str, send: Any) -> None:
    error = ServerError(
        421,
        f"this server does not answer to {host[:100]!r}: use its address, or start it with an API key",
        code="wrong_host",
    )
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
