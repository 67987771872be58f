"""`POST /v1/responses`: OpenAI's Responses protocol, which Codex and the Agents SDK speak.

A body becomes one of the chat protocol (responses_input.py), from which ChatCompletions makes the engine's
request. The answer differs: items (reasoning, messages, calls) instead of one message, sent as typed events.
Responses are kept in memory (stored.py) unless `store` is false, for `previous_response_id` and GET.

Facts: OpenAI's API reference of 2026-10.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from jaccl_kernel.api.adapter import Adapter, Answer, Event, encode_typed
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import Number, RequestBody, Whole, check_model, validate
from jaccl_kernel.api.openai.chat import ChatCompletions
from jaccl_kernel.api.openai.responses_input import (
    input_items,
    messages_of,
    role_of,
    text_format_of,
    tool_choice,
    tools_of,
)
from jaccl_kernel.api.openai.responses_output import Output, usage_of
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    CallEnd,
    Chunk,
    Reasoning,
    Request,
    Text,
    Token,
)

# Fields that this server does not support, with the values that request nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"background": (False,), "conversation": (), "prompt": ()}
# The chat protocol's field names -> this protocol's, for error messages.
FIELDS = {
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "grammar": "text.format",
}


class ResponsesRequest(RequestBody):
    """The body."""

    model: str | None = None
    input: str | list[dict[str, Any]] = Field(default_factory=list)
    instructions: str | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] = 0
    stream: bool = False
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: dict[str, Any] = Field(default_factory=dict)
    text: dict[str, Any] = Field(default_factory=dict)
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    include: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    user: str | None = None
    service_tier: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class Responses(Adapter):
    """The adapter."""

    path = "/v1/responses"
    schema = ResponsesRequest
    fields = FIELDS

    def __init__(self, body: dict[str, Any], model: ServedModel) -> None:
        self._asked = asked = validate(ResponsesRequest, body, UNSUPPORTED)
        check_model(asked.model, model)
        self.streams = asked.stream
        self.choices = 1
        self._model = model
        self._custom = {tool.get("name") for tool in asked.tools if tool.get("type") == "custom"}
        self._items = input_items(asked.input)
        self._before = self._previous()
        self._chat = _renamed(lambda: ChatCompletions(self._chat_body(), model))
        self._output = Output(custom=self._custom, encrypted="reasoning.encrypted_content" in asked.include)
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._sequence = 0
        self._begun = False

    def requests(self) -> list[Request]:
        """See Adapter. `truncation: auto` drops the oldest turns until the rest fits.

        Drops 1, 1, 2, 4, … turns: each attempt tokenizes the rest.
        """
        dropped = 0
        while True:
            try:
                return _renamed(self._chat.requests)
            except ApiError as error:
                too_long = error.code == "context_length_exceeded"
                turns = max(1, dropped)
                if not too_long or self._asked.truncation != "auto" or not self._drop_oldest(turns):
                    raise
                dropped += turns
                self._chat = _renamed(lambda: ChatCompletions(self._chat_body(), self._model))

    def warnings(self) -> list[str]:
        """See Adapter."""
        return self._chat.warnings()

    def events(self, index: int, chunk: Chunk) -> Iterator[Event]:
        """See Adapter."""
        if not self._begun:
            self._begun = True
            for kind in ("response.created", "response.in_progress"):
                yield self._numbered({"type": kind, "response": self._response("in_progress")})
        for event in self._output.add(chunk, self._logprobs(chunk)):
            yield self._numbered(event)

    def last_events(self) -> Iterator[Event]:
        """Return the event with the complete response."""
        response = self._finished()
        yield self._numbered({"type": f"response.{response['status']}", "response": response})

    def failure(self, error: ApiError) -> Iterator[Event]:
        """See Adapter."""
        failed = self._response("failed") | {
            "error": {"code": error.code or error.kind, "message": error.message}
        }
        yield self._numbered({"type": "response.failed", "response": failed})

    def response(self, answers: list[Answer]) -> dict[str, Any]:
        """See Adapter."""
        [answer] = answers
        assert answer.finish
        parts: list[Chunk] = []
        if answer.reasoning:
            parts.append(Reasoning(answer.reasoning))
        if answer.text:
            parts.append(Text(answer.text, tuple(answer.tokens)))
        for call in answer.calls:
            parts += [CallBegin(call.id, call.name), CallArguments(call.arguments), CallEnd()]
        for part in (*parts, answer.finish):
            for _ in self._output.add(part, self._logprobs(part)):
                pass
        return self._finished()

    encode = staticmethod(encode_typed)

    def _numbered(self, event: Event) -> Event:
        self._sequence += 1
        return {**event, "sequence_number": self._sequence - 1}

    def _logprobs(self, chunk: Chunk) -> list[dict[str, Any]]:
        if not isinstance(chunk, Text) or "message.output_text.logprobs" not in self._asked.include:
            return []
        content: list[dict[str, Any]] = self._chat.logprobs_body(0, _known(chunk.tokens))["content"]
        return content

    # the conversation

    def _previous(self) -> list[dict[str, Any]]:
        """Return the items of the previous response's conversation."""
        previous = self._asked.previous_response_id
        if previous is None:
            return []
        stored = self._model.responses.get(previous)
        if stored is None:
            raise ApiError(
                400,
                f"previous_response_id: no stored response {previous[:80]!r}: send the whole conversation in "
                "input (responses with store false are not stored, and old ones are dropped)",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return list(stored.items)

    def _drop_oldest(self, turns: int) -> bool:
        """Drop the oldest turns, each with all items before the next user message; not the last one.

        Returns False for a single turn.
        """
        every = [*self._before, *self._items]
        users = [at for at, item in enumerate(every) if role_of(item) == "user"]
        if len(users) < 2:
            return False
        begin = users[min(turns, len(users) - 1)]
        kept = [item for item in every[:begin] if role_of(item) in ("system", "developer")]
        self._before, self._items = [], [*kept, *every[begin:]]
        return True

    def _chat_body(self) -> dict[str, Any]:
        asked = self._asked
        messages = messages_of([*self._before, *self._items], asked.instructions, self._model.responses)
        if not messages:
            raise ApiError(400, "input: is empty", param="input")
        body: dict[str, Any] = {
            "messages": messages,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "chat_template_kwargs": asked.chat_template_kwargs,
            "reasoning": asked.reasoning,
        }
        if asked.max_output_tokens:
            body["max_completion_tokens"] = asked.max_output_tokens
        if "message.output_text.logprobs" in asked.include:
            body |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
        if tools := tools_of(asked.tools):
            body["tools"] = tools
        body["tool_choice"] = tool_choice(asked.tool_choice)
        if text_format := asked.text.get("format"):
            body["response_format"] = text_format_of(text_format)
        return body

    # the response

    def _finished(self) -> dict[str, Any]:
        finish = self._output.finish
        assert finish
        length = finish.reason == "length"
        response = self._response("incomplete" if length else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if length else None
        response["completed_at"] = int(time.time())
        response["usage"] = usage_of(finish.usage)
        if self._asked.store:
            items = [*self._before, *self._items, *self._output.items]
            self._model.responses.put(self._id, response, items, [*self._before, *self._items])
        return response

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata,
            "model": self._model.name,
            "output": list(self._output.items),
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.get("effort"), "summary": None},
            "service_tier": "default",
            "store": asked.store,
            "temperature": asked.temperature,
            "text": {"format": {"type": "text"}} | asked.text,
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_logprobs": asked.top_logprobs,
            "top_p": asked.top_p,
            "truncation": asked.truncation,
            "usage": None,
            "user": asked.user,
        }


def _known(tokens: Sequence[Token]) -> list[Token]:
    return [token for token in tokens if token.logprob is not None]


def _renamed(work: Any) -> Any:
    """Return the result of `work`; errors name this protocol's fields."""
    try:
        return work()
    except ApiError as error:
        if error.param:
            head, dot, rest = error.param.partition(".")
            error.param = FIELDS.get(head, head) + dot + rest
            if error.message.startswith(f"{head}{dot}{rest}:"):
                error.message = error.param + error.message.removeprefix(f"{head}{dot}{rest}")
        raise
