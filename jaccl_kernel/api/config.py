"""A server's launch settings, the model it serves, and the state that its routes read."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaccl_kernel.api.stored import ResponseStore
from jaccl_kernel.inference.request import Request
from jaccl_kernel.inference.stream import Stream


@dataclass(frozen=True)
class ServerConfig:
    """Launch settings, in force from the first request on.

    Args:
        host: the address to listen on.
        port: the TCP port; 0 for any.
        api_key: the key that clients must send, or None.
        cors_origins: allowed web origins, none by default.
        max_body_bytes: the server rejects a larger request with 413.
        max_choices: the maximum number of choices in one request.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    max_choices: int = 16


@dataclass(frozen=True)
class ServedModel:
    """The loaded model as the API presents it.

    Args:
        name: its id in the API (an alias: clients cannot load or evict anything by naming it).
        tokenizer: mlx-lm's TokenizerWrapper.
        context: the maximum tokens of prompt and answer together.
        vocabulary: the number of token ids (the width of the logits).
        created: seconds since the epoch, for /v1/models.
        facts: shown on the page at `/`: model, ranks, sharding, backend, rehearsal.
        needs_boundary: whether the engine needs `Request.boundary`, because it cannot trim prompt caches.
        responses: the responses that clients may continue.
        any_name: whether a request may name any other model, and is answered by this one.
    """

    name: str
    tokenizer: Any
    context: int
    vocabulary: int
    created: int = field(default_factory=lambda: int(time.time()))
    facts: Mapping[str, Any] = field(default_factory=dict)
    needs_boundary: bool = False
    responses: ResponseStore = field(default_factory=ResponseStore)
    any_name: bool = False


class Engine(Protocol):
    """The part of inference.engine.Engine that the API uses, on the event loop's thread."""

    def submit(self, request: Request) -> Stream:
        """Queue a request."""
        ...

    def cancel(self, stream: Stream) -> None:
        """Cancel a request. Harmless after its end."""
        ...

    def status(self) -> dict[str, Any]:
        """Return the engine's state."""
        ...


@dataclass
class ServerState:
    """The server's state: the engine and the model are None until the model is loaded.

    Args:
        engine: runs requests.
        model: the served model.
        stage: the current stage of loading.
    """

    engine: Engine | None = None
    model: ServedModel | None = None
    stage: str = "starting"

    def status(self) -> dict[str, Any]:
        """Return the engine's status, or the stage of loading."""
        if self.engine:
            return self.engine.status()
        return {"state": "starting", "stage": self.stage, "running": 0, "queued": 0, "ranks": []}
