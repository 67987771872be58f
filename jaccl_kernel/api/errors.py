"""Errors for clients: an HTTP status and OpenAI's fields; each protocol formats its body."""

import hashlib
from collections.abc import Mapping
from typing import Any

from jaccl_kernel.inference.request import ErrorKind, RequestError

GONE = 499  # nginx's status for a client that disconnected

# the engine's kinds of errors: status, OpenAI's `type`, OpenAI's `code`
KINDS: dict[ErrorKind, tuple[int, str, str | None]] = {
    "invalid": (400, "invalid_request_error", None),
    "too_long": (400, "invalid_request_error", "context_length_exceeded"),
    "queue_full": (429, "rate_limit_error", "queue_full"),
    "not_ready": (503, "server_error", "not_ready"),
    "failed": (503, "server_error", "engine_failed"),
    "memory_full": (503, "server_error", "memory_full"),
}


class ApiError(Exception):
    """A request cannot be served.

    Args:
        status: the HTTP status.
        message: one or two sentences for the author of the request.
        kind: OpenAI's `type`, such as "invalid_request_error".
        code: OpenAI's `code`, or None.
        param: the invalid field of the request, or None.
        retry_after: seconds after which it may work (429 and 503), or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return `{"error": {…}}` in OpenAI's format."""
        return {"error": {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}}

    def headers(self) -> dict[str, str]:
        """Return `Retry-After` and `WWW-Authenticate` if they apply."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def api_error(error: BaseException, fields: Mapping[str, str] | None = None) -> ApiError:
    """Convert any error for clients; an internal error without its details.

    Args:
        error: the exception.
        fields: the protocol's names of the engine's fields.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        status, kind, code = KINDS[error.kind]
        param = (fields or {}).get(error.field or "", error.field)
        return ApiError(
            status, error.message, kind=kind, code=code, param=param, retry_after=error.retry_after
        )
    digest = hashlib.sha256(repr(error).encode()).hexdigest()[:8]
    return ApiError(500, f"internal server error ({type(error).__name__}, {digest})", kind="server_error")
