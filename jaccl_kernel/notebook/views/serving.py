"""A server's state as blocks of HTML: who asks what, and how each rank does. Pure: status in, HTML out."""

from collections.abc import Mapping
from typing import Any

from jaccl_kernel.notebook.views import blocks

LIGHTS = {
    "ready": "good",
    "starting": "none",
    "silent": "bad",
    "refused": "bad",
    "failed": "bad",
    "gone": "none",
}


def serving(url: str, status: Mapping[str, Any]) -> str:
    """What `Running.status()` told, for a person."""
    state = str(status["state"])
    told = blocks.verdict(f"{state}: {status['stage']}", LIGHTS.get(state, "fair"))
    if "tokens" not in status:
        return told
    cache = status["cache"]
    share = cache["hit_tokens"] / cache["lookup_tokens"] if cache["lookup_tokens"] else 0.0
    rows = [
        ("Address", f"{url}/v1"),
        ("Asked for now", f"{status['running']} running, {status['queued']} waiting"),
        ("Speed", f"{status['tokens_per_s']:.1f} tokens/s over the last seconds"),
        ("TTFT", _ttft(status.get("ttft_s") or {})),
        ("So far", f"{status['tokens']} tokens generated, {status['prompt_tokens']} prompt tokens computed"),
        (
            "Prompt cache",
            f"{share:.0%} of prompt tokens came from it; {cache['bytes'] / 1e6:.1f} MB in {cache['entries']}",
        ),
    ]
    return told + blocks.facts(rows) + _ranks(status["ranks"])


def _ttft(known: Mapping[str, float | None]) -> str:
    if known.get("p50") is None:
        return "nobody has asked yet"
    return f"{known['p50']:.3f} s in the median, {known['p95']:.3f} s at the 95th percentile"


def _ranks(ranks: list[dict[str, Any]]) -> str:
    columns = ("Rank", "Node", "With us", "Step", "Memory", "Peak")
    rows = [
        (
            str(one["rank"]),
            one["name"],
            "yes" if one["alive"] else "NO",
            f"{one['step_ms']:.1f} ms",
            f"{one['memory_bytes'] / 1e9:.3f} GB",
            f"{one['peak_memory_bytes'] / 1e9:.3f} GB",
        )
        for one in ranks
    ]
    return blocks.table(columns, rows, "Ranks")
