"""Load on a server, from its clients' side."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.core.events import Event, PointMeasured
from jaccl_kernel.inference.request import RequestError
from jaccl_kernel.notebook.loadtest import Load, LoadTest
from jaccl_kernel.notebook.panels.load import LoadPanel
from jaccl_kernel.notebook.prompting import Server
from jaccl_kernel.report import page, record
from tests.api.scripted import EOS, Engine, serving
from tests.conftest import until
from tests.events import bodies


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    made.script = lambda request: [*b"abcdefghij", EOS]
    return made


@pytest.fixture
def server(engine: Engine, tokenizer: Any) -> Iterator[Server]:
    served = ServedModel("tiny", tokenizer, 4096, 258, facts={"rehearsal": True})
    with serving(engine, served, api_key="secret") as url:
        yield Server(url, "secret")


async def test_every_request_is_counted_and_timed_and_no_two_prompts_begin_alike(
    engine: Engine, server: Server
) -> None:
    heard: list[Event] = []
    load = Load(clients=(1, 3), prompt_tokens=(300,), max_tokens=(8, 20), requests=2)
    report = await LoadTest(load, server, heard.append).run()
    asked = [(one["clients"], one["max_tokens"], one["requests"], one["failed"]) for one in report.points]
    assert asked == [(1, 8, 2, 0), (3, 8, 6, 0), (1, 20, 2, 0), (3, 20, 6, 0)]
    assert [one["tokens"] for one in report.points] == [16, 48, 22, 66]
    for one in report.points:
        assert one["tps"] == pytest.approx(one["tokens"] / one["wall_s"])
        assert 0 < one["ttft_s"]["p50"] <= one["ttft_s"]["p95"] <= one["ttft_s"]["p99"]
        assert len(one["samples"]["ttft_s"]) == one["requests"]
        assert 200 < one["prompt_tokens_mean"] < 420
    prompts = [tuple(one.prompt) for one in engine.asked]
    assert len(set(prompts)) == len(prompts)
    assert report.ok
    assert report.path
    assert record.read(report.path)["provenance"]["model"] == {"name": "tiny"}
    assert report.page
    assert "REHEARSAL" in report.page.read_text()
    assert len(page.rows_of(report.record)[1]) == 4
    assert len(bodies(heard, PointMeasured)) == 4


async def test_requests_that_fail_are_counted_with_their_cause(engine: Engine, server: Server) -> None:
    test = LoadTest(Load(clients=(2,), requests=1), server)

    def refuse_later(event: Event) -> None:
        engine.refuse = RequestError("queue_full", "the queue is full")

    test._on_event = refuse_later  # told when the first point begins
    report = await test.run()
    assert (report.points[0]["failed"], report.points[0]["tokens"]) == (2, 0)
    assert page.failures(report.record) == ["2 clients: 429: the queue is full"]
    assert not report.ok


async def test_stop_keeps_the_points_that_were_measured(engine: Engine, server: Server) -> None:
    panel = LoadPanel(server, Load(clients=(1,), prompt_tokens=(8, 16), max_tokens=(4,), requests=1))
    panel.answers.value = "2, 4000"
    engine.script = lambda request: b"x" * 5000
    engine.hold_after = 5  # the second point would never end by itself
    panel.start()
    await until(lambda: [one.max_tokens for one in engine.asked][-1:] == [4000], "the second point to begin")
    assert len(panel._test.points if panel._test else []) == 1
    panel.stop()
    report = await panel.wait()
    assert (len(report.points), report.record["stopped"]) == (1, True)
    assert "Stopped before the end" in panel.result.value
    await until(lambda: len(engine.cancelled) == 1, "the server to let the request go")


async def test_what_cannot_be_asked_is_said(server: Server) -> None:
    with pytest.raises(JobError, match=r"401|API key"):
        await LoadTest(Load(), Server(server.url, "wrong")).run()
    with pytest.raises(JobError, match="did not answer"):
        await LoadTest(Load(), Server("http://127.0.0.1:9")).run()
    with pytest.raises(InputError, match="must be at least 1"):
        Load(clients=(0,)).points()
    with pytest.raises(InputError, match="empty"):
        Load(max_tokens=()).points()
    with pytest.raises(JobError, match="no server"):
        LoadPanel().start()
