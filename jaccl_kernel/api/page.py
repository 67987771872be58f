"""The page at `/`: the model, its ranks, and example requests. No script, and no external resources."""

import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Template

from jaccl_kernel.api.config import ServedModel

_PAGE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"), autoescape=True)


def render(model: ServedModel | None, status: dict[str, Any], base: str, *, key: bool) -> str:
    """Return the page; `base` is the server's address in the browser, `key` whether it needs a key."""
    if model is None:
        return _PAGE.render(model=None, status=status)
    facts = {name: value for name, value in model.facts.items() if name not in ("rehearsal", "model")}
    facts |= {
        "context": f"{model.context} tokens",
        "running": status.get("running", 0),
        "queued": status.get("queued", 0),
        "tokens generated": status.get("tokens", 0),
    }
    return _PAGE.render(model=model, status=status, facts=facts, calls=examples(base, model.name, key=key))


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
