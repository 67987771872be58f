"""The output of `POST /v1/responses`: items and events from the engine's chunks.

`encrypted_content` of a reasoning item is the reasoning in base64, without encryption: a client that keeps no
state returns it, and the model's template receives the reasoning again.
"""

import base64
import json
import uuid
from collections.abc import Iterator
from typing import Any

from jaccl_kernel.api.adapter import Event
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    CallEnd,
    Chunk,
    Finish,
    Reasoning,
    Text,
    Usage,
)


class Output:
    """The output items of a response, and the events that report them.

    Args:
        custom: names of the custom tools, whose input is a text.
        encrypted: whether reasoning items have `encrypted_content`.

    Attributes:
        items: the complete items.
        finish: the last chunk, once it has arrived.
    """

    def __init__(self, *, custom: set[Any], encrypted: bool) -> None:
        self._custom = custom
        self._encrypted = encrypted
        self._open: dict[str, Any] | None = None
        self.items: list[dict[str, Any]] = []  # finished ones
        self.finish: Finish | None = None

    def add(self, chunk: Chunk, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Add a chunk. Yields its events."""
        match chunk:
            case Reasoning():
                yield from self._grow("reasoning", chunk.text, [])
            case Text():
                yield from self._grow("message", chunk.text, logprobs)
            case CallBegin():
                yield from self._begin_call(chunk)
            case CallArguments():
                yield from self._grow_call(chunk.text)
            case CallEnd():
                yield from self._close("completed" if chunk.valid else "incomplete")
            case Finish():
                yield from self._close("incomplete" if chunk.reason == "length" else "completed")
                self.finish = chunk

    def _grow(self, kind: str, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Add text to the open item, or open one."""
        if not text:
            return
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        assert self._open
        part = self._open["content"][0]
        part["text"] += text
        event = {"delta": text, **self._place()}
        if kind == "message":
            part["logprobs"] += logprobs
            event |= {"type": "response.output_text.delta", "logprobs": logprobs}
        else:
            event["type"] = "response.reasoning_text.delta"
        yield event

    def _begin(self, kind: str) -> Iterator[Event]:
        item: dict[str, Any]
        if kind == "message":
            item = {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": kind,
                "status": "in_progress",
                "role": "assistant",
            }
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": f"rs_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        yield self._added({**item, "content": []})
        self._open = {**item, "content": [part]}
        yield {"type": "response.content_part.added", **self._place(), "part": dict(part)}

    def _close(self, status: str) -> Iterator[Event]:
        """Close the open item."""
        item, self._open = self._open, None
        if item is None:
            return
        item["status"] = status
        if "call_id" in item:
            yield from self._close_call(item, {"item_id": item["id"], "output_index": len(self.items)})
            return
        [part] = item["content"]
        place = {"item_id": item["id"], "output_index": len(self.items), "content_index": 0}
        if item["type"] == "message":
            done = {"type": "response.output_text.done", "text": part["text"], "logprobs": part["logprobs"]}
        else:
            done = {"type": "response.reasoning_text.done", "text": part["text"]}
            if self._encrypted:
                item["encrypted_content"] = base64.b64encode(part["text"].encode()).decode()
        yield {**done, **place}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield self._done(item)

    def _begin_call(self, call: CallBegin) -> Iterator[Event]:
        yield from self._close("completed")
        custom = call.name in self._custom
        kind, prefix = ("custom_tool_call", "ctc") if custom else ("function_call", "fc")
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "call_id": call.id, "name": call.name}
        self._open = {**item, "status": "in_progress", "input" if custom else "arguments": ""}
        yield self._added(dict(self._open))

    def _grow_call(self, text: str) -> Iterator[Event]:
        """Add to the open call; the input of a custom tool is known only at its end."""
        assert self._open
        if "input" in self._open:
            self._open["input"] += text
            return
        self._open["arguments"] += text
        yield {"type": "response.function_call_arguments.delta", **self._place_of_call(), "delta": text}

    def _close_call(self, item: dict[str, Any], place: dict[str, Any]) -> Iterator[Event]:
        name, event = "arguments", "response.function_call_arguments"
        if "input" in item:
            name, event = "input", "response.custom_tool_call_input"
            item["input"] = _custom_input(item["input"])
            yield {"type": f"{event}.delta", **place, "delta": item["input"]}
        yield {"type": f"{event}.done", **place, "name": item["name"], name: item[name]}
        yield self._done(item)

    def _added(self, item: dict[str, Any]) -> Event:
        return {"type": "response.output_item.added", "output_index": len(self.items), "item": item}

    def _done(self, item: dict[str, Any]) -> Event:
        self.items.append(item)
        return {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _place_of_call(self) -> dict[str, Any]:
        assert self._open
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    def _place(self) -> dict[str, Any]:
        return {**self._place_of_call(), "content_index": 0}


def _custom_input(arguments: str) -> str:
    """Return the input of a custom tool's call."""
    try:
        given = json.loads(arguments)
    except ValueError:
        return arguments
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return `usage` of the response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
    }
