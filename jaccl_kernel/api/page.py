"""The page at `/`: the model, its ranks, and example requests. No script, and no external resources."""

from pathlib import Path
from typing import Any

from jinja2 import Template

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.examples import examples

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
