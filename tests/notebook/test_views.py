"""Log, progress and blocks of HTML, without a browser."""

import time
from html.parser import HTMLParser
from typing import Any

import pytest

from jaccl_kernel.core.errors import RankDied
from jaccl_kernel.core.events import HOST, Event, Exited, Line, PointMeasured, Stage
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.views.log import LINE_LIMIT, LogView, describe
from jaccl_kernel.notebook.views.progress import ProgressView
from jaccl_kernel.report.table import BENCH_COLUMNS
from tests.conftest import until

EVIL = "<script>alert('x')</script>&\"quoted\""


class Reader(HTMLParser):
    """The tags and the text of a piece of HTML; unclosed tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text.partition("</style>")[2] or text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> tuple[LogView, list[Any]]:
    """A log, and the messages that it sends to the browser."""
    view, sent = LogView(kept=5), list[Any]()
    monkeypatch.setattr(view, "send", sent.append)
    return view, sent


async def test_lines_travel_once_and_together(log: tuple[LogView, list[Any]]) -> None:
    view, sent = log
    view.append("mac1", "one\ntwo")
    view.append("mac2", "three")
    await until(lambda: sent, "the lines to be sent")
    assert sent == [{"type": "lines", "lines": [("mac1", "one"), ("mac1", "two"), ("mac2", "three")]}]
    view.flush()
    assert len(sent) == 1


def test_the_log_is_bounded_in_lines_and_in_their_length(log: tuple[LogView, list[Any]]) -> None:
    view, sent = log
    for number in range(100):
        view.append("mac1", str(number))
    view.append("mac1", "x" * 10 * LINE_LIMIT)
    view.flush()
    assert [text for _, text in view.lines][:4] == ["96", "97", "98", "99"]
    assert len(sent[-1]["lines"]) == len(view.lines) == 5
    assert len(view.lines[-1][1]) == LINE_LIMIT + 2


def test_a_page_that_opens_later_gets_the_last_lines_once(log: tuple[LogView, list[Any]]) -> None:
    view, sent = log
    view.append("mac1", "before")
    view._handle_custom_msg({"type": "ready"}, [])  # what ipywidgets calls when the browser speaks
    assert sent == [{"type": "replay", "lines": [("mac1", "before")]}]
    view.flush()
    assert len(sent) == 1


def test_a_cleared_log_is_empty_on_both_sides(log: tuple[LogView, list[Any]]) -> None:
    view, sent = log
    view.append("mac1", "old")
    view.clear()
    view.flush()
    assert view.lines == []
    assert sent == [{"type": "replay", "lines": []}]


def test_an_event_is_a_line_of_the_log_when_it_tells_something_new() -> None:
    assert describe(Event(0, Line("hello"))) == "hello"
    assert describe(Event(0, Stage("load", "tiny"))) == "[load] tiny"
    assert describe(Event(0, Stage("load", "tiny", 0.5))) == ""
    assert describe(Event(HOST, PointMeasured({"ranks": 1}))) == ""
    assert describe(Event(1, Exited(-9))) == "[exit] status -9"
    assert describe(Event(1, Exited(0))) == ""


def test_progress_says_what_runs_and_how_it_ended() -> None:
    view = ProgressView(["mac1"])
    assert view.snapshot["state"] == "waiting"
    began = time.time()
    view.begin()
    view.handle(Event(0, Stage("load", "", 0.5)))
    assert view.snapshot["ranks"][0]["label"] == "rank 0 · mac1"
    assert view.snapshot["began"] >= began
    view.end("failed")
    assert [view.snapshot["state"], view.snapshot["ranks"][0]["state"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    "html",
    [
        blocks.heading(EVIL, EVIL),
        blocks.paragraph(EVIL),
        blocks.rehearsal(f"{EVIL}: {EVIL}"),
        blocks.verdict(EVIL, "good"),
        blocks.facts([(EVIL, EVIL)]),
        blocks.table([EVIL, "b"], [[EVIL, EVIL]], EVIL),
        blocks.to_copy(EVIL, EVIL),
        blocks.folded(EVIL),
        blocks.stopped(EVIL),
        blocks.problems([Problem("code", "error", EVIL, EVIL, EVIL)]),
        blocks.error(RankDied(EVIL, rank=1, where=EVIL, fix=EVIL, last_lines=(EVIL,))),
        blocks.error(ValueError(EVIL)),
    ],
)
def test_text_is_always_text(html: str) -> None:
    reader = Reader(blocks.page(html))
    assert "script" not in reader.tags
    assert EVIL in reader.text


def test_an_error_of_ours_says_what_where_and_the_fix() -> None:
    html = blocks.error(
        RankDied("was killed", rank=1, where="mac2", fix="Look at mac2.", last_lines=("bye",))
    )
    text = Reader(html).text
    for word in ("RankDied", "was killed", "mac2", "Look at mac2.", "bye"):
        assert word in text


def test_an_unexpected_error_has_its_traceback_folded_away() -> None:
    try:
        _ = [][1]
    except IndexError as error:
        reader = Reader(blocks.error(error))
    assert "details" in reader.tags
    assert "test_views.py" in reader.text


def test_a_table_has_a_header_for_each_column_and_row() -> None:
    reader = Reader(blocks.table(BENCH_COLUMNS, [["1"] * len(BENCH_COLUMNS)]))
    assert reader.tags.count("th") == len(BENCH_COLUMNS) + 1
    assert reader.tags.count("td") == len(BENCH_COLUMNS) - 1


def test_no_problems_is_said_in_words() -> None:
    assert "No problems" in Reader(blocks.problems([])).text


def test_two_figures_on_a_page_share_no_ids() -> None:
    svg = '<svg ><path id="a" fill="#123456"/><use href="#a" clip-path="url(#a)"/></svg>'
    first, second = (blocks.figure(svg, "a figure", "#123456") for _ in range(2))
    assert first != second
    assert "#123456" not in first
    name = first.partition('id="')[2].partition('"')[0]
    assert f'href="#{name}"' in first
    assert f"url(#{name})" in first
    assert name not in second


def test_an_empty_page_is_empty() -> None:
    assert blocks.page() == ""
