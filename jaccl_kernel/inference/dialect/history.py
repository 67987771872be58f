"""Earlier turns in the format of families whose templates accept less than OpenAI's messages."""

import hashlib
import re
import secrets
import string
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_ALPHABET = string.ascii_letters + string.digits


def mistral_id() -> str:
    """Return an id as Mistral's templates require: nine letters or digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def mistral(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with ids that Mistral's templates accept."""

    def short(given: Any) -> str:
        text = str(given or "")
        return text if _MISTRAL_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]

    found = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = message | {"tool_calls": [call | {"id": short(call.get("id"))} for call in calls]}
        if message.get("role") == "tool":
            message = message | {"tool_call_id": short(message.get("tool_call_id"))}
        found.append(message)
    return found


def harmony(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as gpt-oss's template accepts them.

    It reads reasoning from `thinking`, rejects content beside it in a message with a call, and renders one
    call per message, followed by its result.
    """
    results = {message.get("tool_call_id"): message for message in messages if message.get("role") == "tool"}
    found: list[Message] = []
    rendered: set[Any] = set()
    for message in messages:
        if message.get("role") == "tool" and message.get("tool_call_id") in rendered:
            continue
        message = dict(message)
        reasoning = message.pop("reasoning_content", None) or message.pop("reasoning", None)
        if reasoning:
            message.setdefault("thinking", reasoning)
        calls = message.get("tool_calls")
        if not calls:
            found.append(message)
            continue
        if message.get("thinking") and message.get("content"):
            message["content"] = ""
        for number, call in enumerate(calls):
            one = message if number == 0 else {"role": "assistant", "content": ""}
            found.append(one | {"tool_calls": [call]})
            result = results.get(call.get("id")) if len(calls) > 1 else None
            if result is not None:
                found.append(result)
                rendered.add(call.get("id"))
    return found
