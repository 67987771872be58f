"""The interface of a protocol's adapter: a body to the engine's requests, and chunks to responses.

A new protocol is one module with an Adapter, and one line in app.PROTOCOLS. Adapters know no HTTP server and
no engine: resident ranks use them too (ranks/prompt.py).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    CallEnd,
    Chunk,
    Finish,
    Prefill,
    Reasoning,
    Request,
    Text,
    Token,
    ToolCall,
)

Event = dict[str, Any]


@dataclass
class Answer:
    """All chunks of one choice, joined."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        match chunk:
            case Prefill():
                return
            case Text():
                self.text += chunk.text
            case Reasoning():
                self.reasoning += chunk.text
            case Finish():
                self.finish = chunk
            case CallBegin():
                self.calls.append(ToolCall(chunk.name, "", chunk.id))
            case CallArguments():
                call = self.calls[-1]
                self.calls[-1] = replace(call, arguments=call.arguments + chunk.text)
            case CallEnd():
                if not chunk.valid:  # what the model wrote is text
                    self.calls.pop()
                    self.text += chunk.text
        self.tokens += chunk.tokens


class Adapter(ABC):
    """One request of one protocol.

    Args:
        body: the request's JSON object.
        model: the served model.

    Attributes:
        streams: whether the response is a stream of events.
        choices: the number of requested sequences.

    Raises:
        ApiError: the request is invalid; the message names the field and the reason.
    """

    path: ClassVar[str]
    schema: ClassVar[type[BaseModel]]  # of the body, for /openapi.json
    fields: ClassVar[Mapping[str, str]] = {}  # the engine's field names -> this protocol's
    last_bytes: ClassVar[bytes] = b""  # the end of a stream of events

    streams: bool
    choices: int

    @abstractmethod
    def __init__(self, body: dict[str, Any], model: ServedModel) -> None: ...

    @abstractmethod
    def requests(self) -> list[Request]:
        """Return the engine's requests, one per choice. Tokenizes: not on the event loop or two threads."""

    def warnings(self) -> list[str]:
        """Return what the answer does not enforce, once the requests are made."""
        return []

    @abstractmethod
    def events(self, index: int, chunk: Chunk) -> Iterable[Event]:
        """Return the events of a choice's next chunk."""

    @abstractmethod
    def last_events(self) -> Iterable[Event]:
        """Return the events after all choices have finished."""

    @abstractmethod
    def response(self, answers: list[Answer]) -> dict[str, Any]:
        """Return the response without streaming."""

    @staticmethod
    def error(error: ApiError) -> dict[str, Any]:
        """Return an error's body."""
        return error.body()

    def failure(self, error: ApiError) -> Iterable[Event]:
        """Return the events that end a stream which fails after its first event."""
        yield self.error(error)

    @staticmethod
    def encode(event: Event) -> bytes:
        """Encode an event as a server-sent event."""
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def encode_typed(event: Event) -> bytes:
    """Encode an event whose `type` is also the name of the server-sent event."""
    return b"event: " + str(event["type"]).encode() + b"\n" + Adapter.encode(event)
