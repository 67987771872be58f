"""Prompts from a notebook: to the running server, or else to the resident ranks.

`ready()` finds or starts a source of answers; `prompt()` asks it and prints the answer as it arrives;
`compare()` asks with several settings. Contains no widgets.
"""

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from IPython.display import HTML, display

from jaccl_kernel.core.errors import InputError, JobError
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.answer import Answer, AnswerReader, OnWords
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import without_traceback
from jaccl_kernel.steps.serve.detached import find_running

CONNECT_S = 5.0
POLL_S = 0.1
READ_S = 600.0  # between two chunks of an answer; includes the prefill of a long prompt

Messages = Sequence[Mapping[str, Any]]


class Source(Protocol):
    """A source of answers."""

    name: str
    rehearsal: bool  # whether its Macs are simulated

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """Answer a conversation; calls `on_words` with (content, reasoning); `stop` ends the answer early.

        Raises:
            InputError: a setting is invalid.
            JobError: the source cannot answer.
        """
        ...


@dataclass
class Server:
    """An OpenAI-compatible server.

    Args:
        url: its address, without /v1.
        api_key: its API key, or None.
        rehearsal: whether its Macs are simulated.
    """

    url: str
    api_key: str | None = None
    rehearsal: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"the server at {self.url}"

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """See Source."""
        body = {
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        } | settings
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = httpx.Timeout(CONNECT_S, read=READ_S)
        reader = AnswerReader(on_words)
        try:
            with (
                httpx.Client(base_url=self.url, timeout=timeout, trust_env=False, headers=headers) as client,
                client.stream("POST", "/v1/chat/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise _refused(answer)
                with _closed_by(stop, answer):
                    for chunk in _chunks(answer):
                        reader.take(chunk)
        except httpx.HTTPError as error:
            if stop.is_set():
                return reader.answer()
            raise JobError(
                f"{self.name} did not answer: {error or type(error).__name__}",
                fix="Run `jaccl status`, or start a server in 06_serve.",
            ) from error
        return reader.answer()


@dataclass
class Resident:
    """Resident ranks as a source of answers."""

    ranks: Ranks
    rehearsal: bool = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.rehearsal = self.ranks.rehearsal
        self.name = f"the resident ranks on {', '.join(self.ranks.names)}"

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """See Source."""
        return self.ranks.prompt(messages, on_words=on_words, stop_when=stop, **settings)


def server() -> Server:
    """The running server, in its own process or on the resident ranks.

    Raises:
        JobError: no server is running.
    """
    found = _server()
    if found is None:
        raise JobError("no server is running", fix="Start one in 06_serve, or with ranks.serve().")
    return found


def source() -> Source:
    """The running server, or else the running resident ranks.

    Raises:
        JobError: there is no source.
    """
    if found := _server():
        return found
    ranks = resident.current()
    if ranks is not None and ranks.model:
        return Resident(ranks)
    raise JobError(
        "no server is running, and no resident ranks have a model",
        fix="Start a server in 06_serve, or start ranks and load a model: Ranks.start(), then load().",
    )


def ready(model: str | None = None) -> Source:
    """The source of answers; if there is none, starts resident ranks and loads the model.

    Args:
        model: the model to load; None for the notebooks' choice, if none is loaded.

    Raises:
        JacclError: the ranks cannot start, or the model cannot be loaded.
    """
    with without_traceback():
        if found := _server():
            return found
        ranks = resident.current() or Ranks.start()
        if not ranks.model or model:
            ranks.load(model)
        return Resident(ranks)


def prompt(
    text: str, *, system: str | None = None, at: Source | None = None, max_tokens: int = 256, **settings: Any
) -> Answer:
    """Ask, and print the answer as it arrives. ■ stops it and keeps the text so far.

    Args:
        text: the question.
        system: the system prompt.
        at: the source of the answer; None for `source()`.
        max_tokens: maximum length of the answer.
        settings: of OpenAI's API.
    """
    with without_traceback():
        answer = ask(text, at or source(), _write, system=system, max_tokens=max_tokens, **settings)
    sys.stdout.write(f"\n— {answer.figures()}\n")
    return answer


def ask(text: str, at: Source, on_words: OnWords, *, system: str | None = None, **settings: Any) -> Answer:
    """Ask from a cell: an interrupt stops the answer."""
    stop = threading.Event()
    messages = [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": text},
    ]
    if isinstance(at, Resident):
        return at.ask(messages, on_words, stop, **settings)  # ranks.prompt handles the interrupt
    parts: list[str] = []

    def collect(content: str, reasoning: str) -> None:
        parts.append(content)
        on_words(content, reasoning)

    try:
        return at.ask(messages, collect, stop, **settings)
    except KeyboardInterrupt:
        # the connection is closed, which cancels the request on the server
        return Answer("".join(parts), finish="stopped", tokens=len(parts))


def compare(
    text: str, *several: Mapping[str, Any], system: str | None = None, at: Source | None = None, **common: Any
) -> list[Answer]:
    """Ask with several settings, and show the answers side by side.

    Args:
        text: the question.
        several: the settings of each answer.
        system: the system prompt.
        at: the source of the answers; None for `source()`.
        common: settings of all answers.
    """
    if not several:
        raise InputError("no settings to compare", fix="For example: compare('…', {'temperature': 0}, …).")
    with without_traceback():
        chosen = at or source()
        answers = [
            ask(text, chosen, lambda *_: None, system=system, **{"max_tokens": 256, **common, **one})
            for one in several
        ]
    display(HTML(side_by_side(answers, several)))
    return answers


def side_by_side(answers: Sequence[Answer], several: Sequence[Mapping[str, Any]]) -> str:
    """Answers in columns, as HTML."""
    columns = "".join(
        '<td style="vertical-align: top; text-align: left; white-space: pre-wrap; padding: 4px 12px">'
        f"<b>{blocks.escape(', '.join(f'{key}={value}' for key, value in one.items()) or 'defaults')}</b>\n"
        f"{blocks.escape(answer.text)}\n<small>{blocks.escape(answer.figures())}</small></td>"
        for answer, one in zip(answers, several, strict=True)
    )
    return f'<table style="table-layout: fixed; width: 100%"><tr>{columns}</tr></table>'


def _server() -> Server | None:
    for running in find_running():
        return Server(running.url, running.state.api_key, running.state.rehearsal)
    ranks = resident.current()
    if ranks is None or ranks.serving is None:
        return None
    return Server(ranks.serving.url, ranks.serving.api_key, ranks.rehearsal)


@contextlib.contextmanager
def _closed_by(stop: threading.Event, answer: httpx.Response) -> Iterator[None]:
    """Close the connection as soon as `stop` is set, which cancels the request on the server."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stop.wait(POLL_S):
                with contextlib.suppress(OSError):
                    answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, name="jaccl-stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _chunks(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def _refused(answer: httpx.Response) -> InputError | JobError:
    answer.read()
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {answer.status_code}"
    if answer.status_code == 401:
        return JobError(message, fix="Pass its API key: Server(url, api_key).")
    return InputError(message) if answer.status_code < 500 else JobError(message)


def _write(content: str, reasoning: str) -> None:
    sys.stdout.write(reasoning + content)
    sys.stdout.flush()
