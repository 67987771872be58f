"""Example curl requests for a server, for its page and the notebook. Pure text."""

import json
import shlex
from typing import Any


def examples(url: str, model: str, *, key: bool = False) -> list[dict[str, Any]]:
    """Return three requests (models, chat, completion): `name`, `path`, `body` (None for a GET) and `curl`.

    Args:
        url: the server's URL, without /v1.
        model: the served model's id.
        key: whether the server needs an API key; the text refers to $JACCL_API_KEY.
    """
    chat = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64}
    completion = {"model": model, "prompt": "Hello", "max_tokens": 64}
    calls = [
        ("models", "/v1/models", None),
        ("chat", "/v1/chat/completions", chat),
        ("completion", "/v1/completions", completion),
    ]
    return [
        {"name": name, "path": path, "body": body, "curl": _curl(url + path, body, key=key)}
        for name, path, body in calls
    ]


def _curl(address: str, body: dict[str, Any] | None, *, key: bool) -> str:
    words = [f"curl -s {address}"]
    if key:
        words.append('-H "Authorization: Bearer $JACCL_API_KEY"')
    if body is not None:
        words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body))}"]
    return " \\\n  ".join(words)
