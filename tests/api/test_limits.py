"""What one client can take from the others: connections, headers, threads and locks of the interpreter."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from jaccl_kernel.api import app, connection, fields, guard, http, templates
from jaccl_kernel.api.body import MAX_VALUES, parse_json
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from tests.api.scripted import Engine, serving

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture
def url(engine: Engine, tokenizer: Any) -> Iterator[str]:
    with serving(engine, ServedModel("tiny", tokenizer, context=400, vocabulary=259)) as address:
        yield address


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def rest(client: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    received = b""
    try:
        while data := client.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def refusal(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> str:
    answer = httpx.post(url + path, json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


# bodies


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [1] * 1_000_000 + ["a"]},
        {"prompt": "x", "stop": ["a"] * 1_000_000},
        {"prompt": "x", "ignored": [[]] * 500_000},
        {"prompt": "x", "ignored": [{"a": {}}] * 100_000},
        {"prompt": "x", "ignored": ["\\"] * 500_000},
    ],
)
def test_a_body_of_many_values_is_refused_before_it_is_parsed(body: dict[str, Any], url: str) -> None:
    assert refusal(url, body, "/v1/completions").startswith("the body has more than 65936 values")


def test_text_is_not_counted_as_values() -> None:
    for text in ('[1, 2], {"a": 1}, ' * 50_000, '\\",' * 100_000, "\\" * 100_001, '\\\\"[' * 50_000):
        body = {"messages": [{"role": "user", "content": text}]}
        assert parse_json(json.dumps(body).encode()) == body
    tokens = {"prompt": [1] * MAX_VALUES}
    with pytest.raises(ApiError, match="more than"):
        parse_json(json.dumps(tokens).encode())
    assert parse_json(json.dumps(tokens).encode(), tokens=100) == tokens


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"prompt": [1] * 60_000 + ["a"]},
            "prompt: must be a string, a list of strings, a list of token ids",
        ),
        ({"prompt": [[1], "a"]}, "prompt: must be a string, a list of strings, a list of token ids"),
        ({"prompt": {"a": 1}}, "prompt: must be a string, a list of strings, a list of token ids"),
        ({"prompt": "x", "stop": ["a"] * 60_000}, "stop: at most 4096 items are allowed (got 60000)"),
        ({"prompt": "x", "stop": [1] * 17}, "stop: at most 16 stop strings are allowed"),
        ({"prompt": "x", "stop": "a" * 1025}, "stop: a stop string has at most 1024 characters"),
        (
            {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(5000)), "a")},
            "logit_bias: at most 4096 items are allowed (got 5000)",
        ),
    ],
)
def test_a_long_field_is_refused_before_its_items_are_checked(
    body: dict[str, Any], message: str, url: str
) -> None:
    assert refusal(url, body, "/v1/completions").startswith(message)


def test_prompts_of_every_form_are_accepted(engine: Engine, url: str, tokenizer: Any) -> None:
    encode = tokenizer.encode
    for prompt, expected in (
        ("ab", [encode("ab")]),
        (["ab", "c"], [encode("ab"), encode("c")]),
        ([97, 98.0], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ):
        engine.asked.clear()
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": prompt}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert [list(one.prompt) for one in engine.asked] == expected


def test_many_messages_are_refused(url: str) -> None:
    many = [{"role": "user", "content": ""}] * (fields.MAX_MESSAGES + 1)
    assert refusal(url, {"messages": many}) == "messages: at most 10000 items are allowed (got 10001)"
    assert refusal(url, {"input": many}, "/v1/responses").startswith("input: at most 10000 items")


def test_a_large_schema_is_refused(url: str) -> None:
    def schema(of: Any) -> dict[str, Any]:
        return HI | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}}

    assert "too large: at most 5000 keys" in refusal(url, schema({"enum": [f"v{i}" for i in range(6000)]}))
    assert "131072 characters" in refusal(url, schema({"const": "x" * 200_000}))
    assert "at most 1024 keys" in refusal(url, HI | {"guided_choice": [f"v{i}" for i in range(3000)]})
    assert "131072 characters" in refusal(url, HI | {"guided_regex": "a" * 200_000})
    fine = schema({"enum": [f"v{i}" for i in range(1000)]})
    assert httpx.post(f"{url}/v1/chat/completions", json=fine, timeout=60).status_code == 200


def test_a_large_request_is_tokenized_beside_the_others(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large request holds its thread until the small one has its answer."""
    begun, go = threading.Event(), threading.Event()
    apply = templates._apply

    def held(tokenizer: Any, messages: list[dict[str, Any]], *rest: Any, **more: Any) -> Any:
        if len(messages) > 1:
            begun.set()
            assert go.wait(60)
        return apply(tokenizer, messages, *rest, **more)

    monkeypatch.setattr(templates, "_apply", held)
    monkeypatch.setattr(app, "LARGE", 1000)
    large = {"messages": [{"role": "user", "content": ""}] * 50}
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=large, timeout=60).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert begun.wait(60)
        assert httpx.post(f"{url}/v1/chat/completions", json=HI, timeout=60).status_code == 200
        assert not answers
    finally:
        go.set()
        asking.join(60)
    assert answers in ([200], [400])  # 400: longer than the context


# connections


def test_a_client_that_sends_no_headers_is_disconnected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    for begin in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"):
        with connect(url) as client:
            client.sendall(begin)
            assert rest(client) == b""
    with connect(url) as client:  # also after a request
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert rest(client).startswith(b"HTTP/1.1 200 OK")


def test_half_open_connections_do_not_keep_others_out(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 16)
    monkeypatch.setattr(connection, "HEAD_S", 600.0)
    monkeypatch.setattr(connection, "FRESH_S", 600.0)  # a burst, in which none makes room
    with (
        serving(engine, ServedModel("tiny", tokenizer, context=400, vocabulary=259)) as url,
        ExitStack() as stack,
    ):
        engine.hold_after = 1
        stream = stack.enter_context(
            httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True}, timeout=60)
        )
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        for _ in range(50):
            stack.enter_context(connect(url)).sendall(b"POST /v1/completions HTTP/1.1\r\n")
        assert httpx.get(f"{url}/health", timeout=60).status_code == 503
        monkeypatch.setattr(connection, "FRESH_S", 0.0)
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        engine.go.set()
        assert "data: [DONE]" in list(lines)  # a request in progress is not disconnected


def test_headers_are_bounded(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        _send_until_closed(client, b"x" * (16 << 10))
    with connect(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n")
        assert rest(client).startswith(b"HTTP/1.1 400")


def _send_until_closed(client: socket.socket, data: bytes) -> None:
    """Send at most 4 MB; a server that takes all of them fails the test."""
    for _ in range((4 << 20) // len(data)):
        try:
            client.sendall(data)
        except OSError:  # a reset or a broken pipe
            return
    raise AssertionError("the server reads headers without end")


def test_a_body_after_the_answer_does_not_hold_the_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    with connect(url) as client:
        client.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx")
        assert rest(client).startswith(b"HTTP/1.1 405")


def test_a_slow_upload_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not extend the time without end."""
    monkeypatch.setattr(guard, "UPLOAD_S", 1.0)
    monkeypatch.setattr(guard, "UPLOAD_RATE", 1 << 20)
    ended = threading.Event()
    with connect(url) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n")

        def trickle() -> None:
            try:
                while not ended.wait(0.05):
                    client.sendall(b"x")
            except OSError:
                pass

        sending = threading.Thread(target=trickle)
        sending.start()
        try:
            assert client.recv(100).startswith(b"HTTP/1.1 408")
        finally:
            ended.set()
            sending.join(60)


def test_a_client_that_does_not_read_is_disconnected(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is larger than the buffers of the kernel."""
    monkeypatch.setattr(connection, "READ_S", 0.2)
    engine.script = lambda request: [70] * 100_000
    body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 8000, "n": 4, "logprobs": 20}).encode()
    model = ServedModel("tiny", tokenizer, context=10_000, vocabulary=259)
    with serving(engine, model) as url, connect(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        until(lambda: "jaccl_cancelled_total 1.0" in httpx.get(f"{url}/metrics", timeout=60).text)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
