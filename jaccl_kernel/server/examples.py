"""The curl calls that try a server: the same on its page, in the notebook and in the README. Pure text."""

import json
import shlex
from typing import Any

PROMPT = "hello"


def curl_examples(url: str, model: str, *, key: bool = False) -> dict[str, str]:
    """Three calls, by what they ask for: models, chat, completion.

    Args:
        url: the server, without /v1.
        model: the id that it serves.
        key: whether it needs its API key; it is taken from $JACCL_API_KEY, not written out.
    """
    auth = ' \\\n  -H "Authorization: Bearer $JACCL_API_KEY"' if key else ""
    return {
        "models": f"curl -s {url}/v1/models{auth}",
        "chat": _post(f"{url}/v1/chat/completions", chat_body(model), auth),
        "completion": _post(f"{url}/v1/completions", completion_body(model), auth),
    }


def chat_body(model: str) -> dict[str, Any]:
    """The chat request of the example."""
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}


def completion_body(model: str) -> dict[str, Any]:
    """The completion request of the example."""
    return {"model": model, "prompt": "Hello", "max_tokens": 64}


def _post(url: str, body: dict[str, Any], auth: str) -> str:
    data = shlex.quote(json.dumps(body))
    return f"curl -s {url} \\\n  -H 'Content-Type: application/json'{auth} \\\n  -d {data}"
