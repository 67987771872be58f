"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol, which Claude Code speaks.

A body becomes one of the chat protocol, from which ChatCompletions makes the engine's request. The answer
differs: content blocks (thinking, text, tool_use), sent as typed events. `cache_control` is accepted and
has no effect: the prompt cache needs no marks. Facts: Anthropic's API reference of 2026-10.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from jaccl_kernel.api.adapter import Adapter, Answer, Event, encode_typed
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import Number, RequestBody, Whole, check_model, text_of, validate
from jaccl_kernel.api.openai.chat import ChatCompletions
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    CallEnd,
    Chunk,
    Finish,
    Reasoning,
    Request,
    Text,
    Usage,
)

# Fields that only Anthropic's servers support, with the values that request nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"mcp_servers": ([],), "container": ()}
# Anthropic's error types by HTTP status.
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# The chat protocol's field names -> this protocol's, for error messages.
FIELDS = {
    "prompt": "messages",
    "stop": "stop_sequences",
    "grammar": "output_config",
    "response_format": "output_config",
}


class MessagesRequest(RequestBody):
    """The body."""

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: str | list[dict[str, Any]] = ""
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[Whole, Field(ge=-1)] = 0
    stop_sequences: list[str] = Field(default_factory=list)
    stream: bool = False
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: dict[str, Any] = Field(default_factory=lambda: {"type": "auto"})
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] = Field(default_factory=dict)
    output_format: dict[str, Any] | None = None


class Messages(Adapter):
    """The adapter."""

    path = "/v1/messages"
    schema = MessagesRequest
    fields = FIELDS

    def __init__(self, body: dict[str, Any], model: ServedModel) -> None:
        asked = validate(MessagesRequest, body, UNSUPPORTED)
        check_model(asked.model, model)
        self.streams = asked.stream
        self.choices = 1
        self._model = model
        self._chat = ChatCompletions(_chat_body(asked), model)
        self._id = f"msg_{uuid.uuid4().hex}"
        self._prompt_tokens = 0
        self._begun = False
        self._open: str | None = None  # the type of the open content block
        self._blocks = 0  # how many are closed
        self._arguments = False  # whether a part of the open call's arguments was sent
        self._finish: Finish | None = None

    def requests(self) -> list[Request]:
        """See Adapter."""
        [request] = self._chat.requests()
        self._prompt_tokens = len(request.prompt)
        return [request]

    def warnings(self) -> list[str]:
        """See Adapter."""
        return self._chat.warnings()

    def count(self) -> dict[str, int]:
        """Return the response of `/v1/messages/count_tokens`."""
        [request] = self.requests()
        return {"input_tokens": len(request.prompt)}

    def events(self, index: int, chunk: Chunk) -> Iterator[Event]:
        """See Adapter."""
        if not self._begun:
            self._begun = True
            usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0} | _cache(0)
            yield {"type": "message_start", "message": self._message([], None, usage)}
        match chunk:
            case Reasoning():
                yield from self._grow("thinking", chunk.text)
            case Text():
                yield from self._grow("text", chunk.text)
            case CallBegin():
                yield from self._close()
                block = {"type": "tool_use", "id": chunk.id, "name": chunk.name, "input": {}}
                yield self._start("tool_use", block)
                self._arguments = False
            case CallArguments():
                yield self._delta({"type": "input_json_delta", "partial_json": self._json(chunk.text)})
            case CallEnd():
                yield from self._close()
            case Finish():
                yield from self._close()
                self._finish = chunk

    def last_events(self) -> Iterator[Event]:
        """Return the events with the stop reason and the usage."""
        assert self._finish
        yield {
            "type": "message_delta",
            "delta": _stopped(self._finish),
            "usage": _usage(self._finish.usage),
        }
        yield {"type": "message_stop"}

    def response(self, answers: list[Answer]) -> dict[str, Any]:
        """See Adapter."""
        [answer] = answers
        assert answer.finish
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
            for call in answer.calls
        ]
        return self._message(content, answer.finish, _usage(answer.finish.usage))

    @staticmethod
    def error(error: ApiError) -> dict[str, Any]:
        """See Adapter."""
        kind = ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}

    encode = staticmethod(encode_typed)

    def _message(
        self, content: list[dict[str, Any]], finish: Finish | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        stopped = _stopped(finish) if finish else {"stop_reason": None, "stop_sequence": None}
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model.name,
            "content": content,
            **stopped,
            "usage": usage,
        }

    def _grow(self, kind: str, text: str) -> Iterator[Event]:
        """Add text to the open content block, or open one."""
        if not text:
            return
        if self._open != kind:
            yield from self._close()
            begun = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            yield self._start(kind, begun)
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _json(self, text: str) -> str:
        """Return a part of a call's arguments, which must be an object in this protocol."""
        first, self._arguments = not self._arguments, True
        return json.dumps(_input(text), ensure_ascii=False) if first and text[:1] != "{" else text

    def _start(self, kind: str, block: dict[str, Any]) -> Event:
        self._open = kind
        return {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _close(self) -> Iterator[Event]:
        """Close the open content block."""
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": self._blocks}
        self._open = None
        self._blocks += 1


def _stopped(finish: Finish) -> dict[str, Any]:
    reason = "stop_sequence" if finish.stop is not None else STOP_REASONS.get(finish.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": finish.stop}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the usage; Anthropic counts cached tokens separately."""
    fresh = usage.prompt_tokens - usage.cached_tokens
    return {"input_tokens": fresh, "output_tokens": usage.generated_tokens} | _cache(usage.cached_tokens)


def _cache(read: int) -> dict[str, int]:
    return {"cache_creation_input_tokens": 0, "cache_read_input_tokens": read}


def _input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object, as this protocol requires."""
    try:
        given = json.loads(arguments)
    except ValueError:
        given = arguments
    return given if isinstance(given, dict) else {"arguments": given}


# the request as a body of the chat protocol


def _chat_body(asked: MessagesRequest) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if system := _text(asked.system, "system"):
        messages.append({"role": "system", "content": system})
    for at, message in enumerate(asked.messages):
        messages += _messages(message, f"messages.{at}")
    body: dict[str, Any] = {
        "messages": messages,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "stop": asked.stop_sequences,
        "continue_final_message": messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"),
    }
    if asked.max_tokens:
        body["max_completion_tokens"] = asked.max_tokens
    if asked.tools:
        body["tools"] = [_tool(tool, at) for at, tool in enumerate(asked.tools)]
    body |= _choice(asked.tool_choice)
    if asked.thinking is not None:
        body["thinking"] = asked.thinking
    if isinstance(effort := asked.output_config.get("effort"), str):
        body["reasoning_effort"] = effort
        body.setdefault("enable_thinking", True)
    form = asked.output_config.get("format") or asked.output_format
    if form is not None:
        body["response_format"] = _format(form)
    return body


def _messages(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return one message as messages of the chat protocol, tool results first."""
    role, content = message.get("role"), message.get("content")
    if role == "assistant":
        return [_assistant(content, where)]
    if role == "system":
        return [{"role": "system", "content": _text(content, f"{where}.content")}]
    if role != "user":
        raise ApiError(400, f"{where}.role: must be user or assistant", param=f"{where}.role")
    if not isinstance(content, list):
        return [{"role": "user", "content": _text(content, f"{where}.content")}]
    results, others = [], []
    for at, block in enumerate(content):
        if isinstance(block, dict) and block.get("type") == "tool_result":
            text = _text(block.get("content"), f"{where}.content.{at}.content")
            if block.get("is_error"):
                text = f"Error: {text}"
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        else:
            others.append(block)
    if others or not results:
        results.append({"role": "user", "content": _text(others, f"{where}.content")})
    return results


def _assistant(content: Any, where: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if not isinstance(content, list):
        return message | {"content": _text(content, f"{where}.content")}
    texts: list[Any] = []
    reasoning = ""
    calls: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking":
            reasoning += str(block.get("thinking") or "")
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":  # only Anthropic can read it
            texts.append(block)
    message["content"] = _text(texts, f"{where}.content")
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: Any, where: str) -> str:
    return text_of(content, where, separator="\n")


def _tool(tool: Mapping[str, Any], at: int) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise ApiError(400, f"tools.{at}: this server has no {str(kind)[:60]!r} tool", param=f"tools.{at}")
    keys = {"name": "name", "description": "description", "input_schema": "parameters", "strict": "strict"}
    function = {ours: tool[theirs] for theirs, ours in keys.items() if tool.get(theirs) is not None}
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    kind = choice.get("type", "auto")
    chosen: Any = CHOICES.get(kind) if isinstance(kind, str) else None
    if kind == "tool":
        chosen = {"type": "function", "function": {"name": choice.get("name")}}
    if chosen is None:
        raise ApiError(400, "tool_choice.type: must be auto, any, tool or none", param="tool_choice.type")
    return {"tool_choice": chosen, "parallel_tool_calls": not choice.get("disable_parallel_tool_use")}


def _format(given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise ApiError(
            400, "output_config.format: must be a json_schema with a schema", param="output_config.format"
        )
    return {"type": "json_schema", "json_schema": {"schema": given["schema"], "strict": True}}
