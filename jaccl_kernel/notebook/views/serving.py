"""A server's status as blocks of HTML: requests, rates, and each rank. Pure."""

from collections.abc import Mapping
from typing import Any

from jaccl_kernel.notebook.views import blocks

LIGHTS = {
    "ready": "good",
    "starting": "none",
    "down": "bad",
    "failed": "bad",
    "not tested": "none",
    "stopped": "none",
}


def serving(url: str, status: Mapping[str, Any]) -> str:
    """The result of `Running.status()` as HTML."""
    state = str(status["state"])
    verdict = blocks.verdict(f"{state}: {status['stage']}", LIGHTS.get(state, "fair"))
    if "tokens" not in status:
        return verdict
    cache = status["cache"]
    share = cache["hit_tokens"] / cache["lookup_tokens"] if cache["lookup_tokens"] else 0.0
    rows = [
        ("Address", f"{url}/v1"),
        ("Active requests", f"{status['running']} running, {status['queued']} waiting"),
        ("Speed", f"{status['tokens_per_s']:.1f} tokens/s over the last seconds"),
        ("TTFT", _ttft(status.get("ttft_s") or {})),
        ("Total", f"{status['tokens']} tokens generated, {status['prompt_tokens']} prompt tokens computed"),
        (
            "Prompt cache",
            f"{share:.0%} of prompt tokens; {cache['bytes'] / 1e6:.1f} MB in {cache['entries']} entries",
        ),
    ]
    return verdict + blocks.facts(rows) + _ranks(status["ranks"])


def _ttft(known: Mapping[str, float | None]) -> str:
    if known.get("p50") is None:
        return "No requests yet"
    return f"{known['p50']:.3f} s median, {known['p95']:.3f} s 95th percentile"


def _ranks(ranks: list[dict[str, Any]]) -> str:
    columns = ("Rank", "Node", "Connected", "Step", "Memory", "Peak")
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
