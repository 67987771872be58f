"""Converts messages and texts to token ids with the model's chat template, for every protocol.

An error of the template becomes a 400. Not thread-safe, as tokenizers are not.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.formats import answer_grammar
from jaccl_kernel.inference.dialect.detect import dialect_of, thinking

FOR_TEMPLATES = {"documents"}  # the only named parameter of apply_chat_template that belongs to the template


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens.

    Args:
        tokens: its token ids, at least one.
        begins: where the answer begins: in the "normal" text, in "reasoning", or in a message's "header".
        boundary: see inference.request.Request.
        grammar: the grammar of the answer, or None.
    """

    tokens: list[int]
    begins: str = "normal"
    boundary: int = 0
    grammar: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A conversation in the format of chat templates.

    Args:
        messages: {"role", "content": a text, "tool_calls" with arguments as objects, …}.
        tools: definitions of the available tools.
        forced: tools of which the model must call one; none if it may choose.
        several: whether a forced answer may have several calls.
        grammar: the grammar of an answer without calls, or None.
        arguments: the client's arguments for the template.
        continues: whether the answer continues the last message.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] = ()
    forced: Sequence[dict[str, Any]] = ()
    several: bool = False
    grammar: str | None = None
    arguments: Mapping[str, Any] | None = None
    continues: bool = False


def render(conversation: Conversation, model: ServedModel) -> Prompt:
    """Render the conversation with the model's template.

    Raises:
        ApiError: 400, the messages or tools are invalid, or this model does not support the request.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None and not tokenizer.has_chat_template:
        raise ApiError(
            400,
            "this model has no chat template: use /v1/completions",
            code="no_chat_template",
            param="messages",
        )
    forced, tools = list(conversation.forced), list(conversation.tools)
    dialect = dialect_of(tokenizer)
    if tools and dialect.read is None:
        raise ApiError(
            400,
            "this server has no parser for the tool calls of this model's template: omit tools, or send "
            "tool_choice none",
            code="unsupported_parameter",
            param="tools",
        )
    if forced and dialect.form is None:
        raise ApiError(
            400,
            f"this server has no grammar for the tool calls of this model's template ({dialect.name}): use "
            "tool_choice auto",
            code="unsupported_parameter",
            param="tool_choice",
        )
    kwargs = dict(conversation.arguments or {})
    if name := next((name for name in kwargs if name in reserved(tokenizer)), None):
        raise ApiError(
            400,
            f"chat_template_kwargs: {name!r} is reserved",
            param=f"chat_template_kwargs.{name}",
        )
    messages = dialect.history(conversation.messages)
    reject_oversized((message["content"] for message in messages), model, "messages")
    if conversation.continues:
        kwargs["continue_final_message"] = True
    tokens = _apply(tokenizer, messages, tools, kwargs, prompt=not conversation.continues)
    shared = 0  # tokens of the messages, without the generation prompt
    if conversation.continues:
        shared = len(tokens)
    elif model.needs_boundary or _opens_reasoning(tokenizer, tokens):
        shared = _common(_apply(tokenizer, messages, tools, kwargs, prompt=False), tokens)
    begins = _begins(tokenizer, tokens[shared:], continues=conversation.continues)
    grammar = None
    if forced or conversation.grammar:
        thinks = begins == "reasoning" or not _closes_reasoning(tokenizer, tokens[shared:])
        grammar = answer_grammar(
            tokenizer,
            conversation.grammar,
            forced or (tools if dialect.form else []),
            begins if thinks else "answer",
            several=conversation.several,
            must_call=bool(forced),
        )
    return Prompt(checked(tokens, model, "messages"), begins, shared if model.needs_boundary else 0, grammar)


def reject_oversized(texts: Iterable[str], model: ServedModel, param: str, *, together: bool = True) -> None:
    """Reject a text that cannot fit into the context, without tokenizing it.

    Raises:
        ApiError: 400.
    """
    lengths = [len(text) for text in texts]
    characters = sum(lengths) if together else max(lengths, default=0)
    if characters > model.context * _longest_token(model.tokenizer):
        raise _too_long(f"{characters} characters", model, param)


def checked(tokens: list[int], model: ServedModel, param: str) -> list[int]:
    """Check and return a prompt's token ids.

    Raises:
        ApiError: 400, there are none, too many, or one is outside the vocabulary.
    """
    if not tokens:
        raise ApiError(400, f"{param}: must have at least one token", param=param)
    wrong = next((token for token in tokens if not 0 <= token < model.vocabulary), None)
    if wrong is not None:
        raise ApiError(
            400,
            f"{param}: {wrong} is not a token id of this model (0 to {model.vocabulary - 1})",
            param=param,
        )
    if len(tokens) >= model.context:
        raise _too_long(f"{len(tokens)} tokens", model, param)
    return tokens


def _too_long(size: str, model: ServedModel, param: str) -> ApiError:
    """Return the error in OpenAI's words, which clients match to shorten a conversation."""
    return ApiError(
        400,
        f"This model's maximum context length is {model.context} tokens, the answer included. However, your "
        f"{param} resulted in {size}. Please reduce the length of the {param}.",
        code="context_length_exceeded",
        param=param,
    )


def reserved(tokenizer: Any) -> set[str]:
    """Return the parameters of `apply_chat_template` (padding, truncation, …) that clients cannot set.

    Reads its signature, which differs between releases of transformers.
    """
    named = inspect.signature(tokenizer._tokenizer.apply_chat_template).parameters.values()
    return {one.name for one in named if one.kind is not one.VAR_KEYWORD} - FOR_TEMPLATES | {"messages"}


@functools.lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)


def _apply(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    kwargs: dict[str, Any],
    *,
    prompt: bool,
) -> list[int]:
    rejection: Exception | None = None
    for attempt in _argument_forms(messages):
        try:
            return list(
                tokenizer.apply_chat_template(
                    attempt, tools=tools or None, add_generation_prompt=prompt, tokenize=True, **kwargs
                )
            )
        except Exception as error:
            rejection = rejection or error
    raise ApiError(
        400, f"the model's chat template rejected these messages: {rejection}", param="messages"
    ) from rejection


def _argument_forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the messages with the arguments of earlier calls unchanged, then as text, then as objects.

    Most templates accept both, some only text (DeepSeek's), some only objects (Qwen3-Coder's). The arguments
    that a model wrote, and a client returns, may be invalid JSON.
    """
    yield messages
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    if not calls:
        return

    def as_text(arguments: Any) -> Any:
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)

    def as_object(arguments: Any) -> Any:
        return arguments if isinstance(arguments, dict) else {"arguments": arguments}

    for form in (as_text, as_object):
        yield [
            message | {"tool_calls": [_with_arguments(call, form) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]


def _with_arguments(call: dict[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": form(function["arguments"])}}


def _begins(tokenizer: Any, opening: list[int], *, continues: bool) -> str:
    """Return where the answer begins: a template's generation prompt may open the reasoning."""
    if dialect_of(tokenizer).channels:
        return "normal" if continues else "header"
    if _opens_reasoning(tokenizer, opening):
        return "reasoning"
    return "reasoning" if tokenizer.response_initial_state == "reasoning" else "normal"


def _opens_reasoning(tokenizer: Any, tokens: list[int]) -> bool:
    start, end = _last_markers(tokenizer, tokens)
    return start > end


def _closes_reasoning(tokenizer: Any, tokens: list[int]) -> bool:
    start, end = _last_markers(tokenizer, tokens)
    return end > start


def _last_markers(tokenizer: Any, tokens: list[int]) -> tuple[int, int]:
    """Return where a text last has the beginning and the end of reasoning; -1 for nowhere."""
    markers = None if dialect_of(tokenizer).channels else thinking(tokenizer)
    if markers is None or not tokens:
        return -1, -1
    text = tokenizer.decode(tokens)
    return text.rfind(markers[0]), text.rfind(markers[1])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    shortest = min(len(one), len(other))
    return next((at for at in range(shortest) if one[at] != other[at]), shortest)
