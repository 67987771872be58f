"""Asking a model: over the server that runs, or else the resident ranks. One way of asking for both.

`ready()` finds or starts who answers; `prompt()` asks and prints as the words come; `compare()` asks one
thing with several settings. Knows no widgets.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from IPython.display import HTML, display

from jaccl_kernel.errors import InputError, JobError
from jaccl_kernel.notebook import resident
from jaccl_kernel.notebook.answer import Answer
from jaccl_kernel.notebook.resident import Ranks
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.work import briefly
from jaccl_kernel.steps.serve_detached import find_running

CONNECT_S = 5.0
LOOK_S = 0.1
SILENCE_S = 600.0  # between two pieces of an answer: a long prompt is read in between

OnWords = Callable[[str, str], None]
Messages = Sequence[Mapping[str, Any]]


class Source(Protocol):
    """Who answers."""

    name: str
    rehearsal: bool  # whether its Macs are simulated

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """Answer a conversation; `on_words` is told (content, reasoning), `stop` ends it early.

        Raises:
            InputError: a setting makes no sense.
            JobError: it cannot answer.
        """
        ...


@dataclass
class Server:
    """An OpenAI-compatible server.

    Args:
        url: its address, without /v1.
        api_key: what it wants, or None.
        rehearsal: whether its Macs are known to be simulated.
    """

    url: str
    api_key: str | None = None
    rehearsal: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        """Its name is its address."""
        self.name = f"the server at {self.url}"

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """See Source."""
        body = {
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        } | settings
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
        reader = _Reader(on_words)
        try:
            with (
                httpx.Client(base_url=self.url, timeout=timeout, trust_env=False, headers=headers) as client,
                client.stream("POST", "/v1/chat/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise _refused(answer)
                with _hung_up_by(stop, answer):
                    for event in _events(answer):
                        reader.take(event)
        except httpx.HTTPError as error:
            if stop.is_set():
                return reader.answer()
            raise JobError(
                f"{self.name} did not answer: {error or type(error).__name__}",
                fix="See `jaccl status`, or start it in 06_serve.",
            ) from error
        return reader.answer()


@dataclass
class Resident:
    """Resident ranks."""

    ranks: Ranks
    rehearsal: bool = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        """Their name is where they are."""
        self.rehearsal = self.ranks.rehearsal
        self.name = f"the resident ranks on {', '.join(self.ranks.names)}"

    def ask(self, messages: Messages, on_words: OnWords, stop: threading.Event, /, **settings: Any) -> Answer:
        """See Source."""
        return self.ranks.prompt(messages, on_words=on_words, stop_when=stop, **settings)


def server() -> Server:
    """The server that runs, in a process of its own or on the resident ranks.

    Raises:
        JobError: there is none.
    """
    found = _server()
    if found is None:
        raise JobError("no server runs", fix="Start one: in 06_serve, or with ranks.serve().")
    return found


def source() -> Source:
    """The server that runs, else the resident ranks that live.

    Raises:
        JobError: there is neither.
    """
    if found := _server():
        return found
    ranks = resident.current()
    if ranks is not None and ranks.model:
        return Resident(ranks)
    raise JobError(
        "nobody answers: no server runs, and no resident ranks have a model",
        fix="Start a server in 06_serve, or ranks here: Ranks.start().load().",
    )


def ready(model: str | None = None) -> Source:
    """Who answers; where nobody does, ranks that stay are started and the model is loaded on them.

    Args:
        model: for new ranks, or for ranks that have none yet; None for the notebooks' choice.

    Raises:
        JacclError: they cannot start, or the model cannot be loaded.
    """
    with briefly():
        if found := _server():
            return found
        ranks = resident.current() or Ranks.start()
        if not ranks.model or model:
            ranks.load(model)
        return Resident(ranks)


def prompt(
    text: str, *, system: str | None = None, at: Source | None = None, max_tokens: int = 256, **settings: Any
) -> Answer:
    """Ask, and print the answer as it comes. ■ stops it and keeps what came.

    Args:
        text: the question.
        system: what to say to the model first.
        at: who is to answer; None for who is there (`source()`).
        max_tokens: of the answer, at most.
        settings: as of OpenAI's API.
    """
    with briefly():
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
        return at.ask(messages, on_words, stop, **settings)  # ranks.prompt itself hears the interrupt
    came: list[str] = []

    def heard(content: str, reasoning: str) -> None:
        came.append(content)
        on_words(content, reasoning)

    try:
        return at.ask(messages, heard, stop, **settings)
    except KeyboardInterrupt:
        # the connection is closed by now: the server has let the request go
        return Answer("".join(came), finish="stopped", tokens=len(came))


def compare(
    text: str, *several: Mapping[str, Any], system: str | None = None, at: Source | None = None, **common: Any
) -> list[Answer]:
    """Ask the same with several settings, and show the answers side by side.

    Args:
        text: the question.
        several: the settings of each answer.
        system: what to say to the model first.
        at: who is to answer.
        common: settings of all of them.
    """
    if not several:
        raise InputError("no settings to compare", fix="Give some: compare('…', {'temperature': 0}, …).")
    with briefly():
        whom = at or source()
        answers = [
            ask(text, whom, lambda *_: None, system=system, **{"max_tokens": 256, **common, **one})
            for one in several
        ]
    display(HTML(side_by_side(answers, several)))
    return answers


def side_by_side(answers: Sequence[Answer], several: Sequence[Mapping[str, Any]]) -> str:
    """Answers in columns, as HTML."""
    columns = "".join(
        '<td style="vertical-align: top; text-align: left; white-space: pre-wrap; padding: 4px 12px">'
        f"<b>{blocks.escape(', '.join(f'{key}={value}' for key, value in one.items()) or 'as usual')}</b>\n"
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


class _Reader:
    """An answer's events, as they come over HTTP."""

    def __init__(self, on_words: OnWords) -> None:
        self.finish = ""
        self._on_words = on_words
        self._began = time.perf_counter()
        self._first: float | None = None
        self._text = self._reasoning = ""
        self._count = 0  # of pieces: about as many as tokens
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise JobError(str(event["error"]["message"]))
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        for choice in event["choices"]:
            delta = choice["delta"]
            content, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
            if content or reasoning:
                self._first = self._first or time.perf_counter()
                self._text += content
                self._reasoning += reasoning
                self._count += 1
                self._on_words(content, reasoning)
            self.finish = choice.get("finish_reason") or self.finish

    def answer(self) -> Answer:
        usage, details = self._usage, self._usage.get("prompt_tokens_details") or {}
        return Answer(
            self._text,
            self._reasoning,
            self.finish or "stopped",
            usage.get("prompt_tokens", 0),
            details.get("cached_tokens", 0),
            usage.get("completion_tokens", self._count),
            self._first - self._began if self._first else None,
            self._timings.get("predicted_per_second"),
        )


@contextlib.contextmanager
def _hung_up_by(stop: threading.Event, answer: httpx.Response) -> Iterator[None]:
    """Hang up as soon as `stop` is set, also while nothing comes: the server then lets the request go."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stop.wait(LOOK_S):
                with contextlib.suppress(OSError):
                    answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, name="jaccl hang up", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def _refused(answer: httpx.Response) -> InputError | JobError:
    answer.read()
    try:
        told = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        told = f"status {answer.status_code}"
    if answer.status_code == 401:
        return JobError(told, fix="Give its key: Server(url, api_key).")
    return InputError(told) if answer.status_code < 500 else JobError(told)


def _write(content: str, reasoning: str) -> None:
    sys.stdout.write(reasoning + content)
    sys.stdout.flush()
