"""`POST /v1/chat/completions`: OpenAI's chat protocol."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from jaccl_kernel.api.adapter import Answer
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import Whole, text_of, validate
from jaccl_kernel.api.formats import GUIDES, guided_grammar, json_grammar, unenforced
from jaccl_kernel.api.openai.shared import UNSUPPORTED, OpenAIAdapter, OpenAIRequest
from jaccl_kernel.api.templates import Conversation, Prompt, render
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    Chunk,
    Reasoning,
    Text,
    TextOptions,
    Token,
    ToolCall,
)

ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatRequest(OpenAIRequest):
    """The body."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | bool | None = None
    thinking: dict[str, Any] | bool | None = None
    enable_thinking: bool | None = None
    continue_final_message: bool = False
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class ChatCompletions(OpenAIAdapter):
    """The adapter."""

    path = "/v1/chat/completions"
    schema = ChatRequest
    fields = {"prompt": "messages", "grammar": "response_format"}  # noqa: RUF012  a ClassVar of the base
    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, body: dict[str, Any], model: ServedModel) -> None:
        self._chat = chat = validate(ChatRequest, body, UNSUPPORTED)
        if chat.top_logprobs is not None and not chat.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
        super().__init__(chat, model, choices=chat.n, logprobs=logprobs)
        self._calls: dict[int, int] = {}  # choice -> number of its current tool call
        self._begun: set[int] = set()
        self._warnings: list[str] = []

    def limit(self) -> int | None:
        """See OpenAIAdapter."""
        return self._chat.max_completion_tokens or self._chat.max_tokens

    def prompts(self) -> list[Prompt]:
        """See OpenAIAdapter."""
        chat = self._chat
        tools = _tools(chat)
        forced = _forced(chat, tools)
        self._warnings = _warnings(chat, forced)
        conversation = Conversation(
            messages=[_message(one, at) for at, one in enumerate(chat.messages)],
            tools=tools,
            forced=forced,
            several=chat.parallel_tool_calls and "function" not in chat.tool_choice,
            grammar=_format_grammar(chat.response_format) or _guided_grammar(chat),
            arguments=_template_arguments(chat),
            continues=chat.continue_final_message and chat.messages[-1].get("role") == "assistant",
        )
        return [render(conversation, self.model)]

    def warnings(self) -> list[str]:
        """See Adapter. Keywords of a schema that is not `strict`, which no grammar enforces."""
        return self._warnings

    def text_options(self, prompt: Prompt) -> TextOptions:
        """See OpenAIAdapter."""
        chat = self._chat
        return TextOptions(chat.stops(), _tools(chat), prompt.begins, parallel_calls=chat.parallel_tool_calls)

    def chunk_body(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """See OpenAIAdapter."""
        delta: dict[str, Any] = {}
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": ""}
        match chunk:
            case Text():
                delta["content"] = chunk.text
            case Reasoning():
                delta |= {"reasoning_content": chunk.text, "reasoning": chunk.text}
            case CallBegin():
                self._calls[index] = at = self._calls.get(index, -1) + 1
                delta["tool_calls"] = [{"index": at, **_call(ToolCall(chunk.name, "", chunk.id))}]
            case CallArguments():
                function = {"arguments": chunk.text}
                delta["tool_calls"] = [{"index": self._calls[index], "function": function}]
        return {"delta": delta}

    def choice_body(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIAdapter."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_call(call) for call in answer.calls]
        if answer.reasoning:
            message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
        return {"message": message}

    def logprobs_body(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """See OpenAIAdapter."""

        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            text, raw = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": raw}

        content = [
            entry(one.id, one.logprob) | {"top_logprobs": [entry(*top) for top in one.top]} for one in tokens
        ]
        return {"content": content, "refusal": None}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _message(given: Mapping[str, Any], at: int) -> dict[str, Any]:
    """Convert a message for chat templates: text content, arguments of tool calls as objects."""
    where = f"messages.{at}"
    role = given.get("role")
    if role not in ROLES:
        raise ApiError(400, f"{where}.role: must be one of {', '.join(ROLES)}", param=f"{where}.role")
    message = {key: value for key, value in given.items() if value is not None}
    message["role"] = "system" if role == "developer" else role
    message["content"] = text_of(given.get("content"), f"{where}.content")
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _past_calls(calls, f"{where}.tool_calls")
    return message


def _past_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    try:
        past = []
        for call in calls:
            function = dict(call["function"])
            function["arguments"] = _past_arguments(function.get("arguments"))
            past.append({**call, "function": function | {"name": str(function["name"])}})
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ApiError(400, f"{where}: each call needs a function with a name", param=where) from None
    return past


def _past_arguments(given: Any) -> Any:
    """Return the arguments of an earlier call: an object, or text if they are not a JSON object."""
    if not isinstance(given, str):
        return given if isinstance(given, dict) else {}
    try:
        parsed = json.loads(given) if given.strip() else {}
    except (ValueError, RecursionError):
        return given
    return parsed if isinstance(parsed, dict) else given


def _tools(chat: ChatRequest) -> list[dict[str, Any]]:
    """Return the available tools: all, those that `tool_choice` allows, or none."""
    for at, tool in enumerate(chat.tools):
        function = tool.get("function")
        where = f"tools.{at}"
        if tool.get("type", "function") != "function" or not isinstance(function, dict):
            raise ApiError(400, f"{where}: must be a function", param=where)
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ApiError(400, f"{where}.function.name: must be a string", param=f"{where}.function.name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise ApiError(400, f"{where}.function.parameters: must be an object", param=where)
    mode, names = _choice(chat)
    if mode == "none":
        return []
    offered = [tool for tool in chat.tools if names is None or tool["function"]["name"] in names]
    if names is not None and len({tool["function"]["name"] for tool in offered}) < len(set(names)):
        raise ApiError(400, "tool_choice: names a tool that is not in tools", param="tool_choice")
    return offered


def _choice(chat: ChatRequest) -> tuple[str, list[str] | None]:
    """Return the mode of `tool_choice` (none, auto, required) and the names that it allows, or None."""
    choice = chat.tool_choice
    if isinstance(choice, str):
        return choice, None
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        mode = allowed.get("mode", "auto") if isinstance(allowed, dict) else None
        if mode not in ("auto", "required") or not isinstance(tools, list):
            raise ApiError(
                400,
                "tool_choice.allowed_tools: needs a mode (auto or required) and a list of tools",
                param="tool_choice",
            )
        return mode, [_chosen(one) for one in tools]
    return "required", [_chosen(choice)]


def _chosen(choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = (function if isinstance(function, dict) else choice).get("name") if choice else None
    if not isinstance(name, str):
        raise ApiError(400, "tool_choice: needs the name of a function", param="tool_choice")
    return name


def _forced(chat: ChatRequest, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools of which the model must call one; none if it may choose."""
    if _choice(chat)[0] != "required":
        return []
    if not tools:
        raise ApiError(400, "tool_choice: requires a call, but there are no tools", param="tool_choice")
    return tools


def _format_grammar(response_format: dict[str, Any] | None) -> str | None:
    """Return the grammar of `response_format`, or None for plain text."""
    if response_format is None or response_format.get("type") == "text":
        return None
    if response_format.get("type") == "json_object":
        schema = response_format.get("schema")
        schema = schema if isinstance(schema, dict) else {"type": "object"}
        return json_grammar(schema, "response_format", strict=False)
    if response_format.get("type") != "json_schema":
        raise ApiError(
            400,
            "response_format.type: must be text, json_object or json_schema",
            param="response_format.type",
        )
    outer = response_format.get("json_schema")
    schema = outer.get("schema") if isinstance(outer, dict) else None
    if not isinstance(outer, dict) or not isinstance(schema, dict):
        raise ApiError(
            400, "response_format.json_schema.schema: must be a JSON schema", param="response_format"
        )
    return json_grammar(schema, "response_format", strict=bool(outer.get("strict")))


def _warnings(chat: ChatRequest, forced: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keywords that no grammar enforces, of the format and the forced tools."""
    asked = chat.response_format or {}
    outer = asked.get("json_schema")
    schemas = {"response_format": outer.get("schema") if isinstance(outer, dict) else asked.get("schema")}
    for tool in forced:
        schemas[f"tools.{tool['function']['name'][:60]}"] = tool["function"].get("parameters")
    found = {name: unenforced(schema, name) for name, schema in schemas.items() if isinstance(schema, dict)}
    texts = [f"{name}: not enforced: {keywords}" for name, keywords in found.items() if keywords]
    return ["".join(one if " " <= one <= "~" else "?" for one in text) for text in texts]


def _guided_grammar(chat: ChatRequest) -> str | None:
    """Return the grammar of vLLM's `structured_outputs` or older `guided_…` fields, or None."""
    given = dict(chat.structured_outputs or {})
    for kind in GUIDES:
        if (old := getattr(chat, f"guided_{kind}")) is not None:
            given.setdefault(kind, old)
    given = {kind: value for kind, value in given.items() if kind in GUIDES and value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise ApiError(400, f"structured_outputs: only one of {', '.join(given)}", param="structured_outputs")
    [(kind, value)] = given.items()
    return guided_grammar(kind, value, "structured_outputs")


def _template_arguments(chat: ChatRequest) -> dict[str, Any]:
    """Return the template's arguments, including each client's way to control reasoning."""
    arguments = dict(chat.chat_template_kwargs)
    effort, thinks = chat.reasoning_effort, chat.enable_thinking
    if isinstance(chat.reasoning, dict):  # OpenRouter's and the Responses API's
        effort = _effort(chat.reasoning.get("effort"), "reasoning.effort") or effort
        enabled = chat.reasoning.get("enabled")
        thinks = enabled if isinstance(enabled, bool) else thinks
    elif chat.reasoning is not None:
        thinks = chat.reasoning
    if isinstance(chat.thinking, dict):  # Anthropic's, Z.ai's and Moonshot's
        kind = chat.thinking.get("type", "enabled")
        if kind not in ("enabled", "disabled", "adaptive", "auto"):
            raise ApiError(400, "thinking.type: must be enabled, disabled or auto", param="thinking.type")
        if kind in ("enabled", "disabled"):
            thinks = kind == "enabled"
    elif chat.thinking is not None:
        thinks = chat.thinking
    if effort is not None:
        arguments.setdefault("reasoning_effort", effort)
        thinks = effort != "none" if thinks is None else thinks
    if thinks is not None:
        arguments.setdefault("enable_thinking", thinks)
    return arguments


def _effort(given: Any, param: str) -> str | None:
    if given is not None and not isinstance(given, str):
        raise ApiError(400, f"{param}: must be a string", param=param)
    return given
