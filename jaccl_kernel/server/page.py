"""The page at `/`: what is served, by which ranks, and how to ask it. No script, nothing fetched."""

import html
from typing import Any

from jaccl_kernel.server.examples import examples
from jaccl_kernel.server.generation import Served

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 46rem; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; }
pre { background: #f4f4f6; padding: .8rem; overflow-x: auto; border-radius: 6px; }
.ready { color: #116329; } .other { color: #a40e26; }
.rehearsal { background: #fff3cd; padding: .4rem .8rem; border-radius: 6px; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #16181d; } pre { background: #22252c; }
  .ready { color: #56d364; } .other { color: #ff7b72; } .rehearsal { background: #4d3c00; } }
"""


def render(served: Served | None, status: dict[str, Any], base: str) -> str:
    """The page; `base` is the server's own address as the browser knows it."""
    state = html.escape(str(status["state"]))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>JACCL server</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(served.name) if served else 'JACCL server'}</h1>",
    ]
    if served and served.facts.get("rehearsal"):
        parts.append("<p class=rehearsal>REHEARSAL: simulated Macs; this proves nothing about RDMA.</p>")
    kind = "ready" if status["state"] == "ready" else "other"
    parts.append(f"<p class={kind}><b>{state}</b>: {html.escape(str(status['stage']))}</p>")
    if served:
        parts += [_facts(served, status), _ranks(status), _examples(served, base)]
    return "\n".join(parts)


def _facts(served: Served, status: dict[str, Any]) -> str:
    facts = {key: value for key, value in served.facts.items() if key not in ("rehearsal", "model")}
    rows = facts | {
        "context": f"{served.context} tokens",
        "running": status.get("running", 0),
        "queued": status.get("queued", 0),
        "tokens generated": status.get("tokens", 0),
    }
    cells = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}<td>{html.escape(str(value))}"
        for key, value in rows.items()
    )
    return f"<table>{cells}</table>"


def _ranks(status: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{one['rank']}<td>{html.escape(one['name'])}<td>{'yes' if one['alive'] else 'no'}"
        f"<td>{one['step_ms']:.1f} ms<td>{one['memory_bytes'] / 1e9:.2f} GB"
        for one in status.get("ranks", [])
    )
    return f"<h2>Ranks</h2><table><tr><th>rank<th>node<th>alive<th>step<th>memory{rows}</table>"


def _examples(served: Served, base: str) -> str:
    calls = examples(base, served.name, key=served.api_key is not None)
    blocks = "".join(f"<pre>{html.escape(call['curl'])}</pre>" for call in calls)
    return f"<h2>Ask it</h2>{blocks}"
