"""Access control and limits: the API key, the Host and Origin headers, the size of the bodies.

With a key, every route except /health requires it, from the first request on. Without one (on loopback), a
web page must not reach the server through a name that resolves to 127.0.0.1 (DNS rebinding): the Host header
must be an address or a local name. The Origin check rejects changes (POST, DELETE) by pages of other
sites.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from jaccl_kernel.api.config import ServerConfig
from jaccl_kernel.api.errors import GONE, ApiError
from jaccl_kernel.api.metrics import Metrics

UPLOADS = 256 << 20  # total bytes of bodies in transfer
UPLOAD_S = 30.0  # without data of the body, the server closes the request
UPLOAD_RATE = 16 << 10  # bytes per second; after UPLOAD_S, the minimum average
READING = ("GET", "HEAD", "OPTIONS")
LOCAL_NAMES = ("localhost", "testserver")
LOCAL_ENDINGS = (".local", ".localhost", ".internal", ".lan", ".home.arpa")


class Uploads:
    """The bodies in transfer, with a limit for each and for the total."""

    def __init__(self) -> None:
        self._bytes = 0

    async def read(self, request: Request, limit: int) -> bytes:
        """Read a body; enforces the limit regardless of its headers.

        Raises:
            ApiError: 413 too large; 408 timeout; 503 the total is too large; 499 the client disconnected.
        """
        body = bytearray()
        loop = asyncio.get_running_loop()
        began = loop.time()
        parts = request.stream()
        try:
            while True:
                # without data, or slower than the minimum
                end = min(loop.time(), began + len(body) / UPLOAD_RATE) + UPLOAD_S
                async with asyncio.timeout_at(end):
                    part = await anext(parts, None)
                if part is None:
                    return bytes(body)
                body += part
                self._bytes += len(part)
                if len(body) > limit:
                    raise ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
                if self._bytes > UPLOADS:
                    raise ApiError(
                        503, "too many request bodies in transfer", kind="server_error", retry_after=5
                    )
        except TimeoutError:
            took = loop.time() - began
            raise ApiError(408, f"the body is too slow: {len(body)} bytes in {took:.0f} s") from None
        except ClientDisconnect:
            raise ApiError(GONE, "the client disconnected", kind="client_closed") from None
        finally:
            self._bytes -= len(body)


class Guard:
    """Counts requests, and rejects those without the key; without a key, foreign Host and Origin headers.

    Args:
        app: the guarded app.
        config: the launch settings.
        metrics: counts requests by route and status.
        paths: the known routes; all other paths share one counter, which bounds the number of labels.
        respond: makes the response of an error for a path, in the format of its protocol.
    """

    def __init__(
        self,
        app: Any,
        config: ServerConfig,
        metrics: Metrics,
        paths: Sequence[str],
        respond: Callable[[str, ApiError], Response],
    ) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._paths = paths
        self._respond = respond

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle an ASGI request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(self._route(scope["path"]), str(message["status"])).inc()
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if error := self._refusal(scope, headers):
            await self._respond(scope["path"], error)(scope, receive, counting)
            return
        await self._app(scope, receive, counting)

    def _refusal(self, scope: Any, headers: Mapping[bytes, str]) -> ApiError | None:
        """Return why this request is rejected, or None."""
        health = scope["path"] == "/health"  # reveals little
        if self._config.api_key is not None:
            if health or _has_key(headers, self._config.api_key):
                return None
            return ApiError(
                401,
                "this server requires its API key: Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
            )
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not health and not is_local(host):
            return ApiError(
                421,
                f"this server does not accept the Host {host[:100]!r}: use its address, or start it with an "
                "API key",
                code="wrong_host",
            )
        if scope["method"] not in READING and origin and not self._may_call(origin, host):
            return ApiError(
                403,
                f"the origin {origin[:100]!r} is not allowed: start the server with --cors-origin",
                code="wrong_origin",
            )
        return None

    def _may_call(self, origin: str, host: str) -> bool:
        """Return whether this origin is allowed: our own, and those of `cors_origins`."""
        allowed = self._config.cors_origins
        return origin in allowed or "*" in allowed or origin.partition("://")[2] == host

    def _route(self, path: str) -> str:
        """Return the known route of a path, which may lack /v1; routes below a known one belong to it."""
        if path == "/" or path in self._paths:
            return path
        path = path if path.startswith("/v1/") else f"/v1{path}"
        return next((one for one in self._paths if path == one or path.startswith(f"{one}/")), "other")


def _has_key(headers: Mapping[bytes, str], api_key: str) -> bool:
    """Whether the key is there, as OpenAI's clients send it or as Anthropic's do."""
    kind, _, key = headers.get(b"authorization", "").partition(" ")
    sent = [key.strip() if kind.lower() == "bearer" else "", headers.get(b"x-api-key", "").strip()]
    return any(hmac.compare_digest(one.encode(), api_key.encode()) for one in sent)


def is_local(host: str) -> bool:
    """Return whether a Host header is an address, or a name that cannot be registered in public DNS."""
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
