"""`POST /v1/responses` in the chat protocol's terms: input items, tools, tool choice, text format."""

import base64
import binascii
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import text_of
from jaccl_kernel.api.stored import ResponseStore

# Items of tools that OpenAI's servers run: they contain no text for this model.
SKIPPED = ("web_search_call", "file_search_call", "ghost_snapshot", "image_generation_call", "compaction")
CUSTOM = {  # the parameters of a custom tool: its input is any text
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def input_items(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the input as items with ids, as `GET …/input_items` lists them."""
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [item if item.get("id") else {**item, "id": f"item_{uuid.uuid4().hex}"} for item in given]


def role_of(item: Mapping[str, Any]) -> Any:
    """Return the role of a message item; None for other items."""
    return item.get("role") if item.get("type", "message") == "message" else None


def messages_of(
    items: Sequence[Mapping[str, Any]], instructions: str | None, stored: ResponseStore
) -> list[dict[str, Any]]:
    """Return the items as messages of the chat protocol.

    Consecutive reasoning, text and calls become one assistant message. Leading system and developer messages
    become one system message, because most templates accept only one.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for at, item in enumerate(items):
        where = f"input.{at}"
        kind = item.get("type") or ("message" if "role" in item else None)
        match kind:
            case "message":
                _add_message(messages, item, where)
            case "reasoning":
                _assistant(messages, fresh=True)["reasoning_content"] = _past_reasoning(item)
            case "function_call" | "custom_tool_call" | "local_shell_call":
                _assistant(messages).setdefault("tool_calls", []).append(_past_call(item, kind))
            case "function_call_output" | "custom_tool_call_output" | "local_shell_call_output":
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": item.get("call_id") or item.get("id"),
                        "content": text_of(item.get("output"), f"{where}.output"),
                    }
                )
            case "item_reference":
                messages += messages_of([_referenced(item, where, stored)], None, stored)
            case _ if kind in SKIPPED:
                continue
            case _:
                raise ApiError(
                    400, f"{where}: items of type {str(kind)[:60]!r} are not supported", param=where
                )
    return messages


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    text = text_of(item.get("content"), f"{where}.content")
    if role == "assistant":
        message = _assistant(messages)
        message["content"] = (message["content"] or "") + text
    elif role in ("system", "developer"):
        if messages and all(one["role"] == "system" for one in messages):
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": "system", "content": text})
    elif role == "user":
        messages.append({"role": "user", "content": text})
    else:
        raise ApiError(
            400, f"{where}.role: must be user, assistant, system or developer", param=f"{where}.role"
        )


def _assistant(messages: list[dict[str, Any]], *, fresh: bool = False) -> dict[str, Any]:
    """Return the assistant message of an item: the last message, or a new one."""
    if not messages or messages[-1]["role"] != "assistant" or (fresh and messages[-1].get("tool_calls")):
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _past_call(item: Mapping[str, Any], kind: str) -> dict[str, Any]:
    arguments: Any = item.get("arguments")
    if kind == "custom_tool_call":
        arguments = json.dumps({"input": item.get("input", "")}, ensure_ascii=False)
    elif kind == "local_shell_call":
        arguments = json.dumps(item.get("action") or {}, ensure_ascii=False)
    name = item.get("name") or ("local_shell" if kind == "local_shell_call" else "")
    call_id = item.get("call_id") or item.get("id")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _past_reasoning(item: Mapping[str, Any]) -> str:
    """Return the reasoning that a client sends back: its text, or from `encrypted_content`."""
    parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
    text = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    carried = item.get("encrypted_content")
    if text or not isinstance(carried, str):
        return text
    try:
        return base64.b64decode(carried, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):  # from another server
        return ""


def _referenced(item: Mapping[str, Any], where: str, stored: ResponseStore) -> Mapping[str, Any]:
    if (found := stored.item(str(item.get("id")))) is None:
        raise ApiError(400, f"{where}: no stored item {str(item.get('id'))[:80]!r}", param=where)
    return found


# tools and formats


def tools_of(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return function and custom tools as functions, without the tools that OpenAI's servers run."""
    offered = []
    for at, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "function":
            keys = ("name", "description", "parameters", "strict")
            function = {key: tool[key] for key in keys if tool.get(key) is not None}
            offered.append({"type": "function", "function": function})
        elif kind == "custom":
            function = {"name": tool.get("name"), "parameters": CUSTOM}
            if tool.get("description"):
                function["description"] = tool["description"]
            offered.append({"type": "function", "function": function})
        elif not isinstance(kind, str):
            raise ApiError(400, f"tools.{at}.type: must be a string", param=f"tools.{at}.type")
    return offered


def tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return `tool_choice` in the chat protocol's form."""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise ApiError(400, "tool_choice: must be none, auto or required", param="tool_choice")
        return choice
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        return choice
    raise ApiError(
        400,
        f"tool_choice: this server has no {str(kind)[:60]!r} tool",
        code="unsupported_parameter",
        param="tool_choice",
    )


def text_format_of(given: Any) -> dict[str, Any]:
    """Return `text.format` in the chat protocol's form."""
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "json_schema":
        return {"type": kind, "json_schema": {key: value for key, value in given.items() if key != "type"}}
    if kind not in ("text", "json_object"):
        raise ApiError(
            400, "text.format.type: must be text, json_object or json_schema", param="text.format.type"
        )
    return dict(given)
