"""Messages and prompts become token ids, and what the answer must look like becomes a grammar.

All of it on rank 0 and from the served model's own template; what the template refuses is told as a 400.
Knows no HTTP and starts no generation. Not for two threads at once: tokenizers are not.
"""

import functools
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from jaccl_kernel.server.generation import Served, ServerError
from jaccl_kernel.server.schema import ChatRequest, CompletionRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
FOR_TEMPLATES = {"documents"}  # the one named parameter of apply_chat_template that is the template's
COMPACT = {"whitespace_flexible": False}  # a small model would otherwise fill its answer with blanks


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Args:
        tokens: its token ids, at least one.
        begins: where the answer begins: in the "normal" text, in "reasoning", or in a "tool" call.
        boundary: see Generation.
        grammar: what the answer must follow, or None.
    """

    tokens: list[int]
    begins: str = "normal"
    boundary: int = 0
    grammar: str | None = None


def chat_prompt(request: ChatRequest, served: Served) -> Prompt:
    """The conversation in the model's template.

    Raises:
        ServerError: 400, the messages or tools make no sense, or ask for what this model cannot do.
    """
    tokenizer = served.tokenizer
    if tokenizer.chat_template is None and not tokenizer.has_chat_template:
        raise ServerError(
            400,
            "this model has no chat template: use /v1/completions",
            code="no_chat_template",
            param="messages",
        )
    messages = [_message(one, at) for at, one in enumerate(request.messages)]
    tools = _tools(request, tokenizer)
    forced = _forced_tools(request, tools, tokenizer)
    grammar = _tool_grammar(forced) if forced else _format_grammar(request.response_format)
    if grammar and tools and not forced:
        raise ServerError(
            400,
            "an answer that is held to a format cannot call tools: leave tools or response_format out, "
            "or send tool_choice none",
            code="unsupported_parameter",
            param="response_format",
        )
    kwargs = _template_arguments(request, tokenizer)
    if grammar and tokenizer.has_thinking:
        kwargs.setdefault("enable_thinking", False)
    _refuse_far_too_long((message["content"] for message in messages), served, "messages")
    tokens = _apply(tokenizer, messages, tools, kwargs, prompt=True)
    told = 0  # how many tokens are the messages', not the generation prompt's
    if served.boundaries or _opens_reasoning(tokenizer, tokens):
        told = _common(_apply(tokenizer, messages, tools, kwargs, prompt=False), tokens)
    begins = _begins(tokenizer, tokens[told:])
    if grammar and begins != "normal":
        raise ServerError(
            400,
            "this model's template opens its reasoning, so that an answer cannot be held to a format",
            code="unsupported_parameter",
            param="response_format" if not forced else "tool_choice",
        )
    if forced:
        tokens = [*tokens, *tokenizer.encode(tokenizer.tool_call_start, add_special_tokens=False)]
        begins = "tool"
    boundary = told if served.boundaries else 0
    return Prompt(_checked(tokens, served, "messages"), begins, boundary, grammar)


def completion_prompts(request: CompletionRequest, served: Served) -> list[Prompt]:
    """Each prompt of a completion request: text, texts, token ids, or lists of them.

    Raises:
        ServerError: 400, a prompt is empty, too long, or holds what is no token.
    """
    several = request.prompts()
    _refuse_far_too_long((one for one in several if isinstance(one, str)), served, "prompt", together=False)
    prompts = []
    for one in several:
        tokens = list(served.tokenizer.encode(one)) if isinstance(one, str) else list(one)
        prompts.append(Prompt(_checked(tokens, served, "prompt")))
    if not prompts:
        raise ServerError(400, "prompt: is empty", param="prompt")
    return prompts


def _refuse_far_too_long(texts: Iterable[str], served: Served, param: str, *, together: bool = True) -> None:
    """Refuse a text that cannot fit, however it is cut into tokens, without the work of cutting it."""
    lengths = [len(text) for text in texts]
    characters = sum(lengths) if together else max(lengths, default=0)
    if characters > served.context * _longest_token(served.tokenizer):
        raise ServerError(
            400,
            f"{characters} characters are more than {served.context} tokens, which the context takes",
            code="context_length_exceeded",
            param=param,
        )


@functools.lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)


def _checked(tokens: list[int], served: Served, param: str) -> list[int]:
    if not tokens:
        raise ServerError(400, f"{param}: has no tokens: there is nothing to continue", param=param)
    wrong = next((token for token in tokens if not 0 <= token < served.vocabulary), None)
    if wrong is not None:
        raise ServerError(
            400, f"{param}: {wrong} is no token id of this model (0 to {served.vocabulary - 1})", param=param
        )
    if len(tokens) >= served.context:
        raise ServerError(
            400,
            f"the prompt has {len(tokens)} tokens; the context takes {served.context}, the answer included",
            code="context_length_exceeded",
            param=param,
        )
    return tokens


def _message(given: Mapping[str, Any], at: int) -> dict[str, Any]:
    """A message as templates expect it: text content, arguments of tool calls as objects."""
    where = f"messages.{at}"
    role = given.get("role")
    if role not in ROLES:
        raise ServerError(400, f"{where}.role: must be one of {', '.join(ROLES)}", param=f"{where}.role")
    message = {key: value for key, value in given.items() if value is not None}
    message["role"] = "system" if role == "developer" else role
    message["content"] = _content(given.get("content"), f"{where}.content")
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _past_calls(calls, f"{where}.tool_calls")
    return message


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ServerError(400, f"{where}: must be a text or a list of parts", param=where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("text", "refusal", "input_text") or not isinstance(text, str):
            raise ServerError(
                400,
                f"{where}: a part of type {kind!r} cannot be read: this model takes text only",
                code="unsupported_content",
                param=where,
            )
        texts.append(text)
    return "".join(texts)


def _past_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    try:
        told = []
        for call in calls:
            function = dict(call["function"])
            arguments = function.get("arguments") or {}
            function["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
            told.append({**call, "function": function})
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        raise ServerError(
            400, f"{where}: each needs a function with a name, and arguments that are JSON", param=where
        ) from None
    return told


def _tools(request: ChatRequest, tokenizer: Any) -> list[dict[str, Any]]:
    """The tools that the model is told of; none where the choice is "none"."""
    for at, tool in enumerate(request.tools):
        function = tool.get("function")
        where = f"tools.{at}"
        if tool.get("type", "function") != "function" or not isinstance(function, dict):
            raise ServerError(400, f"{where}: must be a function", param=where)
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ServerError(400, f"{where}.function.name: must be a text", param=f"{where}.function.name")
        if not isinstance(function.get("parameters") or {}, dict):
            raise ServerError(400, f"{where}.function.parameters: must be an object", param=where)
    if not request.tools or request.tool_choice == "none":
        return []
    if not tokenizer.has_tool_calling:
        raise ServerError(
            400,
            "this model's template has no way to call tools; leave them out, or send tool_choice none",
            code="unsupported_parameter",
            param="tools",
        )
    return request.tools


def _forced_tools(request: ChatRequest, tools: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """The tools of which one must be called; none where the model may choose."""
    choice = request.tool_choice
    if choice in ("none", "auto"):
        return []
    forced = tools
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        forced = [tool for tool in tools if tool["function"]["name"] == name]
    if not forced:
        raise ServerError(400, "tool_choice: names none of the tools", param="tool_choice")
    if not tokenizer.tool_parser.__module__.endswith(".json_tools"):
        raise ServerError(
            400,
            "this model's tool calls are not JSON, so that none can be forced: use tool_choice auto",
            code="unsupported_parameter",
            param="tool_choice",
        )
    return forced


def _tool_grammar(tools: list[dict[str, Any]]) -> str:
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": {"type": "object", **(tool["function"].get("parameters") or {})},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return _json_grammar(calls[0] if len(calls) == 1 else {"anyOf": calls}, "tools")


def _format_grammar(wanted: dict[str, Any] | None) -> str | None:
    """The grammar of `response_format`, or None for plain text."""
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return _json_grammar({"type": "object"}, "response_format")
    if wanted.get("type") != "json_schema":
        raise ServerError(
            400,
            "response_format.type: must be text, json_object or json_schema",
            param="response_format.type",
        )
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise ServerError(
            400, "response_format.json_schema.schema: must be a JSON schema", param="response_format"
        )
    return _json_grammar(schema, "response_format")


def _json_grammar(schema: dict[str, Any], param: str) -> str:
    try:
        grammar = str(LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT))
        complaint = LLMatcher.validate_grammar(grammar)
    except ValueError as error:
        complaint = str(error)
    if complaint and not complaint.startswith("WARNING"):
        raise ServerError(400, f"{param}: this schema cannot be honoured: {complaint}", param=param)
    return grammar


def _template_arguments(request: ChatRequest, tokenizer: Any) -> dict[str, Any]:
    kwargs = dict(request.chat_template_kwargs)
    own = reserved(tokenizer)
    if taken := next((name for name in kwargs if name in own), None):
        raise ServerError(
            400, f"chat_template_kwargs: {taken!r} is not for clients", param=f"chat_template_kwargs.{taken}"
        )
    if request.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", request.reasoning_effort)
        kwargs.setdefault("enable_thinking", request.reasoning_effort != "none")
    return kwargs


def reserved(tokenizer: Any) -> set[str]:
    """What `apply_chat_template` takes for itself (padding, truncation, …) and no client may set.

    Read from its signature: every release of transformers has its own.
    """
    named = inspect.signature(tokenizer._tokenizer.apply_chat_template).parameters.values()
    return {one.name for one in named if one.kind is not one.VAR_KEYWORD} - FOR_TEMPLATES | {"messages"}


def _apply(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    kwargs: dict[str, Any],
    *,
    prompt: bool,
) -> list[int]:
    try:
        return list(
            tokenizer.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=prompt, tokenize=True, **kwargs
            )
        )
    except Exception as error:  # a template is a program, and what it is fed here is the client's
        raise ServerError(
            400, f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error


def _begins(tokenizer: Any, opening: list[int]) -> str:
    """Where the answer begins: a template's generation prompt may have opened the reasoning."""
    if _opens_reasoning(tokenizer, opening):
        return "reasoning"
    return "reasoning" if tokenizer.response_initial_state == "reasoning" else "normal"


def _opens_reasoning(tokenizer: Any, tokens: list[int]) -> bool:
    return bool(
        tokenizer.has_thinking and tokenizer.rfind_think_start(tokens) > tokenizer.rfind_think_end(tokens)
    )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shortest = min(len(one), len(other))
    return next((at for at in range(shortest) if one[at] != other[at]), shortest)
