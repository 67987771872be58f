"""The server's panel: started, tried, found again and ended."""

import threading
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.launch import ports
from jaccl_kernel.notebook.panels.serve import ServePanel
from jaccl_kernel.notebook.views.serving import serving
from jaccl_kernel.steps.serve.detached import Running, find_running
from tests.conftest import until

pytestmark = pytest.mark.usefixtures("nothing_left")


def choose_ports(panel: ServePanel) -> None:
    """Free ones: another test's server may hold the usual."""
    panel.form["port"].value = ports.choose(1)


async def test_start_try_find_again_and_end(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = ServePanel(model=tiny_model, ranks=2)
    choose_ports(panel)
    running = await panel.run()
    assert panel.run_button.disabled
    assert f"{running.url}/v1" in panel.result.value
    await until(lambda: "ready: serving" in panel.live.value, "the live view")
    assert "mac2" in panel.live.value
    for name, words in (
        ("models", "owned_by"),
        ("chat", "chat.completion"),
        ("completion", "text_completion"),
    ):
        await until(lambda: not panel._requesting.running, "the request before")
        panel.example_buttons[name].click()
        await until(lambda words=words: words in panel.answer.value, name)
        assert f"curl -s {running.url}/v1/" in panel.answer.value
    again = ServePanel(model=tiny_model)  # as after a kernel's restart
    assert again.report.id == running.id
    await until(lambda: "ready: serving" in again.live.value, "the second panel's view")
    with monkeypatch.context() as patched:
        patched.setattr(Running, "status", silent)
        again.example_buttons["chat"].click()
        await until(lambda: "no answer over HTTP" in again.answer.value, "the silence told")
    asking, go = threading.Event(), threading.Event()
    ask = Running.ask

    def slowly(self: Running, path: str, *rest: Any, **more: Any) -> Any:
        if path.startswith("/v1/"):
            asking.set()
            assert go.wait(300)
        return ask(self, path, *rest, **more)

    monkeypatch.setattr(Running, "ask", slowly)
    again.example_buttons["chat"].click()
    await until(asking.is_set, "the call")
    again.end_button.click()  # a call that is under way holds up no end
    await until(lambda: "Server: stopped" in again.answer.value, "the end")
    go.set()
    await until(lambda: not again._requesting.running, "the call's own end")
    assert "Server: stopped" in again.answer.value
    assert again.end_button.description == "Stop server"
    assert find_running() == []
    await until(lambda: not panel.run_button.disabled, "the first panel to notice")


async def silent(self: Running) -> dict[str, Any]:
    return {"state": "down", "stage": "no answer over HTTP (yet)"}


async def test_stop_while_it_starts_leaves_nothing(tiny_model: Path) -> None:
    panel = ServePanel(model=tiny_model, ranks=2)
    choose_ports(panel)
    panel.start()
    await until(lambda: find_running() != [], "the server's process")
    panel.stop()
    with pytest.raises(Exception, match="stopped before it ended"):
        await panel.wait()
    assert find_running() == []


async def test_what_cannot_start_says_why() -> None:
    panel = ServePanel(model="/nowhere/at/all")
    choose_ports(panel)
    with pytest.raises(Exception, match="nowhere"):
        await panel.run()
    assert "nowhere" in panel.error_view.value
    assert not panel.run_button.disabled


def test_a_failed_rank_stands_out() -> None:
    rank: dict[str, Any] = {
        "rank": 1,
        "name": "<mac2>",
        "step_ms": 1.0,
        "memory_bytes": 1,
        "peak_memory_bytes": 1,
    }
    cache = {"entries": 2, "bytes": 5e6, "limit_bytes": 1e7, "hit_tokens": 30, "lookup_tokens": 60}
    counts = {"running": 1, "queued": 2, "tokens": 7, "prompt_tokens": 9, "tokens_per_s": 3.5}
    told = serving(
        "http://x",
        {
            "state": "failed",
            "stage": "rank 1 (mac2) failed: it is gone",
            "ranks": [rank | {"alive": False}],
            "cache": cache,
            **counts,
        },
    )
    assert "jk-bad" in told
    assert "<td>NO</td>" in told
    assert "50% of prompt tokens" in told
    assert "&lt;mac2&gt;" in told
