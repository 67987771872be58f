"""What the routes of all protocols share: paths without /v1, errors in each protocol's format, the guard."""

from typing import Any

import httpx
import pytest

from tests.api.scripted import Engine, say


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages", "/completions"])
def test_every_protocol_is_there_without_v1(agent: str, path: str) -> None:
    asked = {"messages": [{"role": "user", "content": "x"}], "input": "x", "max_tokens": 5}
    if path == "/completions":
        asked = {"prompt": "x"}
    for route in (path, f"/v1{path}"):
        assert httpx.post(agent + route, json=asked).status_code == 200
    assert httpx.get(f"{agent}/models").json() == httpx.get(f"{agent}/v1/models").json()


def test_each_path_has_errors_in_the_format_of_its_protocol(agent: str) -> None:
    for path in ("/v1/messages", "/messages", "/v1/messages/count_tokens"):
        refused = httpx.get(agent + path)
        assert (refused.status_code, refused.json()["type"]) == (405, "error")
        assert refused.headers["allow"] == "POST"
    assert httpx.post(f"{agent}/v1/messages/none").json()["error"]["type"] == "not_found_error"
    for path in ("/v1/responses", "/v1/chat/completions", "/nothing"):
        assert set(httpx.get(agent + path).json()["error"]) == {"message", "type", "code", "param"}


def test_a_page_of_another_site_cannot_delete_a_stored_response(
    engine: Engine, agent: str, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, "Hello")
    name = httpx.post(f"{agent}/v1/responses", json={"input": "hi"}).json()["id"]
    foreign = {"Origin": "https://example.com"}
    assert httpx.delete(f"{agent}/v1/responses/{name}", headers=foreign).status_code == 403
    assert httpx.get(f"{agent}/v1/responses/{name}").status_code == 200
    assert httpx.delete(f"{agent}/v1/responses/{name}").json()["deleted"] is True


def test_metrics_count_a_route_whatever_its_prefix(agent: str) -> None:
    for path in (
        "/chat/completions",
        "/v1/chat/completions",
        "/v1/models/tiny",
        "/models/tiny",
        "/health/no",
    ):
        httpx.get(agent + path)
    text = httpx.get(f"{agent}/metrics").text
    assert 'route="/v1/chat/completions",status="405"} 2.0' in text
    assert 'route="/v1/models",status="200"} 2.0' in text
    assert 'route="other",status="404"} 1.0' in text
