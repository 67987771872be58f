"""The chat, and asking over HTTP.

Who answers is a stand-in that says what the test wants, or a real HTTP server with a scripted engine.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.inference.request import RequestError
from jaccl_kernel.notebook import prompting
from jaccl_kernel.notebook.answer import Answer
from jaccl_kernel.notebook.panels.prompt import PromptPanel
from jaccl_kernel.notebook.prompting import Server
from jaccl_kernel.notebook.views.chat import markdown
from tests.api.scripted import EOS, Engine, serving
from tests.conftest import until


class Told:
    """Answers with the pieces that it was given; waits before each until it is let go on."""

    name = "a stand-in"
    rehearsal = True

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.go = threading.Event()
        self.go.set()
        self.asked: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        self.error: Exception | None = None

    def ask(self, messages: Any, on_words: Any, stop: threading.Event, /, **settings: Any) -> Answer:
        self.asked.append((list(messages), settings))
        if self.error:
            raise self.error
        said = ""
        for piece in self.pieces:
            on_words(piece, "")
            said += piece
            while not self.go.wait(0.01):
                if stop.is_set():
                    return Answer(said, finish="stopped", tokens=1)
        return Answer(said, tokens=len(self.pieces), tokens_per_s=12.5, ttft_s=0.25)


async def test_turns_go_along_and_figures_stand_under_each_answer() -> None:
    told = Told("It is ", "**red**.")
    panel = PromptPanel(told, system="Be brief.", max_tokens=9, stop=["x"])
    panel.temperature.value, panel.seed.value = 0.5, "7"
    await panel.ask("Which colour?")
    await panel.ask("Sure?")
    messages, settings = told.asked[1]
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "It is **red**."
    assert settings == {"max_tokens": 9, "temperature": 0.5, "top_p": 1.0, "seed": 7, "stop": ["x"]}
    assert "<strong>red</strong>" in panel.view.value
    assert panel.view.value.count("12.5 tokens/s, TTFT 0.25 s") == 2
    assert "REHEARSAL" in panel.whom.value
    assert panel.choice.options[0][0] == "Which colour?"


async def test_stop_keeps_what_came_and_retry_asks_again_with_new_settings() -> None:
    told = Told("one ", "two")
    told.go.clear()
    panel = PromptPanel(told)
    panel.question.value = "Count"
    panel.send_button.click()
    await until(lambda: "one" in panel.view.value, "the first words")
    assert panel.send_button.disabled
    assert panel.question.value == ""
    panel.stop_button.click()
    await until(lambda: not panel.send_button.disabled, "the end")
    assert "stopped" in panel.view.value
    told.go.set()
    panel.max_tokens.value = 5
    panel.retry_button.click()
    await until(lambda: len(told.asked) == 2 and not panel.send_button.disabled, "the second answer")
    assert told.asked[1][1]["max_tokens"] == 5
    assert len(told.asked[1][0]) == 1, "the first answer is gone"
    panel.edit_button.click()
    assert panel.question.value == "Count"
    assert panel.conversation.turns == []


async def test_conversations_are_kept_apart_and_exported() -> None:
    told = Told("yes")
    panel = PromptPanel(told, system="A")
    await panel.ask("First?")
    panel.new_button.click()
    panel.system.value = "B"
    await panel.ask("Second?")
    assert told.asked[1][0][0]["content"] == "B"
    panel.choice.value = 0
    assert panel.system.value == "A"
    panel.export_button.click()
    links = dict(re.findall(r'download="(\S+)" href="data:\S+;base64,(\S+)"', panel.exported.value))
    texts = {name: base64.b64decode(data).decode() for name, data in links.items()}
    assert "**You:** First?" in texts["conversation.md"]
    assert json.loads(texts["conversation.json"])["turns"][0]["answer"]["text"] == "yes"


async def test_what_fails_is_told_and_the_chat_goes_on() -> None:
    told = Told("fine")
    told.error = JobError("rank 1 died", fix="Start again.")
    panel = PromptPanel(told)
    with pytest.raises(JobError):
        await panel.ask("Well?")
    assert "rank 1 died" in panel.error_view.value
    told.error = None
    await panel.ask("And now?")
    assert [one["content"] for one in told.asked[1][0]] == ["And now?"], (
        "a turn without an answer is left out"
    )
    assert panel.error_view.value == ""
    panel.seed.value = "x"
    with pytest.raises(InputError, match="the seed must be a whole number"):
        await panel.ask("?")
    panel.question.value = "?"
    panel.send_button.click()
    assert "the seed must be" in panel.error_view.value
    assert panel.question.value == "?", "what was typed is not lost"


def test_what_a_model_says_runs_nothing_and_loads_nothing() -> None:
    shown = markdown(
        "<script>x()</script> ![i](http://evil/x.png) [l](javascript:x()) <img src=http://evil/y>\n\n`<b>`"
    )
    assert not re.search(r"<(script|img|b)\b", shown)
    assert 'href="javascript' not in shown


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture
def engine(tokenizer: Any) -> Engine:
    made = Engine()
    made.script = lambda request: [*tokenizer.encode("Hello there", add_special_tokens=False), EOS]
    return made


@pytest.fixture
def server(engine: Engine, tokenizer: Any) -> Iterator[Server]:
    with serving(engine, ServedModel("tiny", tokenizer, 4096, 258), api_key="secret") as url:
        yield Server(url, "secret")


def test_a_server_is_asked_and_its_words_come_as_they_are_made(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = prompting.prompt("Hi", at=server, system="Be kind.", temperature=0)
    assert (answer.text, answer.finish, answer.tokens) == ("Hello there", "stop", 12)
    assert answer.prompt_tokens > 0
    assert prompting.ask("Hi", server, lambda *_: None, stop=["there"]).text == "Hello "
    assert capsys.readouterr().out.startswith("Hello there\n— 12 tokens")


def test_a_server_lets_go_of_what_is_stopped(engine: Engine, server: Server, tokenizer: Any) -> None:
    engine.script = lambda request: tokenizer.encode("x" * 4000, add_special_tokens=False)
    engine.hold_after = 5  # it would never end by itself
    stop = threading.Event()

    def heard(content: str, reasoning: str) -> None:
        stop.set()

    messages = [{"role": "user", "content": "Go on"}]
    answer = server.ask(messages, heard, stop, max_tokens=4000)
    assert answer.finish == "stopped"
    assert 0 < len(answer.text) < 4000


def test_refusals_and_failures_are_told_as_what_they_are(engine: Engine, server: Server) -> None:
    with pytest.raises(InputError, match="temperature"):
        prompting.prompt("x", at=server, temperature=-1)
    with pytest.raises(JobError, match="key"):
        prompting.prompt("x", at=Server(server.url, "wrong"))
    with pytest.raises(JobError, match="did not answer"):
        prompting.prompt("x", at=Server("http://127.0.0.1:9"))
    engine.break_after = 2
    with pytest.raises(JobError, match="rank 1"):
        prompting.prompt("x", at=server)
    engine.refuse = RequestError("failed", "the server is ending")
    with pytest.raises(JobError, match="ending"):
        prompting.prompt("x", at=server)
    with pytest.raises(JobError, match="no server is running, and no resident ranks"):
        prompting.source()


def test_several_settings_are_shown_side_by_side(
    server: Server, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = prompting.compare("x", {"temperature": 0}, {"seed": 1, "max_tokens": 3}, at=server)
    assert [one.text for one in answers] == ["Hello there", "Hel"]
    assert [one.sampling.seed for one in engine.asked][1] == 1
    shown = prompting.side_by_side(answers, [{"temperature": 0}, {"seed": "<1>"}])
    assert "seed=&lt;1&gt;" in shown
    with pytest.raises(InputError, match="no settings"):
        prompting.compare("x", at=server)
