"""Requests in the shape that real clients send, each with its right answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import llguidance
import llguidance.hf
import pytest

from jaccl_kernel.api.config import ServedModel
from tests.api.agents import make_tokenizer
from tests.api.families import FAMILIES
from tests.api.scripted import Engine, events, prompt, say, serving

CHAT = "/v1/chat/completions"
USER: Any = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}}}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": "w", "parameters": parameters, **more},
    }


WEATHER = tool("weather", CITY | {"required": ["city"], "additionalProperties": False})


@pytest.fixture(scope="module")
def tokenizers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def tokenizer(name: str) -> Any:
        if name not in made:
            family = FAMILIES[name]
            thinks = family.thinks if family.thinks[0] == "<think>" else ()
            folder = tmp_path_factory.mktemp("replay")
            made[name] = make_tokenizer(tiny_model, folder, family.template(), (*thinks, *family.markers))
        return made[name]

    return tokenizer


@pytest.fixture
def family() -> str:
    """The family of the served model."""
    return "Hermes"


@pytest.fixture
def tokenizer(family: str, tokenizers: Callable[[str], Any]) -> Any:
    return tokenizers(family)


@pytest.fixture
def url(engine: Engine, tokenizer: Any) -> Iterator[str]:
    with serving(engine, ServedModel("tiny", tokenizer, 4000, len(tokenizer) + 2)) as address:
        yield address


def of(family: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [family])


def post(url: str, path: str, body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60)


def message(url: str, **body: Any) -> dict[str, Any]:
    answer = post(url, CHAT, {"model": "tiny", "messages": USER} | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0]["message"])


def accepted(tokenizer: Any, engine: Engine, text: str) -> bool:
    """Whether the last request's grammar allows this answer."""
    vocabulary = llguidance.hf.from_tokenizer(tokenizer._tokenizer, n_vocab=len(tokenizer) + 2)
    matcher = llguidance.LLMatcher(vocabulary, engine.asked[-1].grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_codex_creates_a_streamed_response(engine: Engine, url: str, tokenizer: Any) -> None:
    say(engine, tokenizer, hermes("exec_command", '{"cmd": "touch out.txt"}'))
    command = {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}
    parts = [{"type": "input_text", "text": "Use tools."}]
    body = {
        "model": "tiny",
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": False,
        "prompt_cache_key": "x",
        "input": [
            {"type": "message", "id": "msg_1", "role": "developer", "content": parts},
            {"type": "message", "id": "msg_2", "role": "user", "content": parts},
        ],
        "tools": [{"type": "function", "name": "exec_command", "strict": False, "parameters": command}],
    }
    told = events(post(url, "/v1/responses", body).text)
    kinds = [event["type"] for event in told]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.function_call_arguments.delta") > 3  # as they are generated
    assert kinds[-1] == "response.completed"
    [item] = told[-1]["response"]["output"]
    assert (item["name"], json.loads(item["arguments"])) == ("exec_command", {"cmd": "touch out.txt"})


def test_the_other_protocols_answer(engine: Engine, url: str) -> None:
    answer = post(url, "/v1/responses", {"model": "tiny", "input": "hi"}).json()
    assert (answer["object"], answer["status"]) == ("response", "completed")
    body = {"model": "tiny", "max_tokens": 50, "messages": USER}
    told = events(post(url, "/v1/messages?beta=true", body | {"stream": True}).text)
    assert [told[0]["type"], told[-1]["type"]] == ["message_start", "message_stop"]
    counted = post(url, "/v1/messages/count_tokens", {"model": "tiny", "messages": USER}).json()
    assert counted["input_tokens"] > 0


def test_definitions_inside_the_parameters_of_a_forced_tool_resolve(
    engine: Engine, url: str, tokenizer: Any
) -> None:
    inner = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    parameters = {
        "type": "object",
        "properties": {"inner": {"$ref": "#/$defs/Inner"}},
        "required": ["inner"],
        "additionalProperties": False,
        "$defs": {"Inner": inner | {"additionalProperties": False}},
    }
    say(engine, tokenizer, hermes("final_result", '{"inner": {"ok": true}}'))
    told = message(url, tools=[tool("final_result", parameters)], tool_choice="required")
    assert json.loads(told["tool_calls"][0]["function"]["arguments"]) == {"inner": {"ok": True}}
    assert accepted(tokenizer, engine, hermes("final_result", '{"inner":{"ok":true}}'))
    assert not accepted(tokenizer, engine, hermes("final_result", '{"inner":{"ok":1}}'))


def test_the_root_of_recursive_parameters_is_the_parameters(engine: Engine, url: str, tokenizer: Any) -> None:
    kids = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"$ref": "#"}}
    parameters = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kids": kids},
        "required": ["ok"],
        "additionalProperties": False,
    }
    message(url, tools=[tool("node", parameters)], tool_choice="required", max_tokens=120)
    assert accepted(tokenizer, engine, hermes("node", '{"ok":true,"kids":[{"ok":false}]}'))
    wrong = '{"ok":true,"kids":[{"name":"node","arguments":{"ok":true}}]}'
    assert not accepted(tokenizer, engine, hermes("node", wrong))


def test_keywords_that_no_grammar_enforces_are_refused_only_if_strict(
    engine: Engine, url: str, tokenizer: Any
) -> None:
    several = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}
    parameters = {"type": "object", "properties": {"a": several}, "required": ["a"]}
    body = {"messages": USER, "tools": [tool("set", parameters)], "tool_choice": "required"}
    for stream in (False, True):
        answer = post(url, CHAT, body | {"stream": stream})
        assert answer.headers["x-warning"] == "tools.set: not enforced: uniqueItems"
    assert "x-warning" not in post(url, CHAT, body | {"tool_choice": "auto"}).headers
    message(url, tools=[tool("set", parameters)], tool_choice="required")
    assert accepted(tokenizer, engine, hermes("set", '{"a":["x"]}'))
    assert not accepted(tokenizer, engine, hermes("set", '{"a":[1]}'))
    body = {"messages": USER, "tool_choice": "required", "tools": [tool("set", parameters, strict=True)]}
    refused = post(url, CHAT, body)
    assert refused.status_code == 400
    assert "uniqueItems" in refused.json()["error"]["message"]


@of("Qwen3-Coder")
def test_a_forced_call_of_a_model_without_json_calls(engine: Engine, url: str, tokenizer: Any) -> None:
    call = "<tool_call>\n<function=weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
    say(engine, tokenizer, call.format("Oslo"))
    told = message(url, tools=[WEATHER], tool_choice="required")
    assert json.loads(told["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    assert accepted(tokenizer, engine, call.format("Paris"))
    assert not accepted(tokenizer, engine, call.format("Rome"))


def test_allowed_tools_are_the_tools(engine: Engine, url: str, tokenizer: Any) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    message(url, tools=[WEATHER, tool("other", CITY)], tool_choice=choice)
    assert "tool weather" in prompt(engine, tokenizer)
    assert "tool other" not in prompt(engine, tokenizer)


@pytest.mark.parametrize("more", [{"max_tokens": -1}, {"store": True}])
def test_what_asks_for_nothing_is_accepted(
    engine: Engine, url: str, tokenizer: Any, more: dict[str, Any]
) -> None:
    say(engine, tokenizer, "Hello")
    assert message(url, **more)["content"] == "Hello"


def test_an_overflow_has_openais_words(url: str) -> None:
    long = [{"role": "user", "content": "words " * 20000}]
    for path, body in ((CHAT, {"messages": long}), ("/v1/completions", {"prompt": "words " * 20000})):
        refused = post(url, path, body)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("This model's maximum context length is 4000 tokens")


@pytest.mark.parametrize("path", ["/chat/completions", CHAT])
def test_paths_without_v1(url: str, path: str) -> None:
    assert post(url, path, {"messages": USER}).status_code == 200


def test_an_image_is_refused_by_a_model_of_text(url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [{"type": "text", "text": "x"}, image]
    refused = post(url, CHAT, {"messages": [{"role": "user", "content": content}]})
    assert refused.status_code == 400
    assert "only text" in refused.json()["error"]["message"]


@of("Kimi K2")
def test_the_id_that_kimi_writes_is_kept(engine: Engine, url: str, tokenizer: Any) -> None:
    say(engine, tokenizer, FAMILIES["Kimi K2"].calls)
    calls = message(url, tools=[WEATHER])["tool_calls"]
    assert [call["id"] for call in calls] == ["functions.weather:0", "functions.weather:1"]


@of("Kimi K2")
@pytest.mark.parametrize("arguments", ['{"city": Paris', "just Berlin", "null", "", None])
def test_arguments_of_earlier_calls_may_be_no_json(
    engine: Engine, url: str, tokenizer: Any, arguments: str | None
) -> None:
    say(engine, tokenizer, "Hello")
    past = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [past]},
        {"role": "tool", "tool_call_id": "call_1", "content": "error"},
    ]
    assert message(url, messages=history, tools=[WEATHER])["content"] == "Hello"
    if arguments and arguments != "null":
        assert arguments.split()[-1] in prompt(engine, tokenizer)


@of("gpt-oss")
def test_gpt_oss_has_channels(engine: Engine, url: str, tokenizer: Any) -> None:
    thought = "<|channel|>analysis<|message|>Greet.<|end|><|start|>assistant"
    say(engine, tokenizer, thought + "<|channel|>final<|message|>Hello! I am gpt-oss.")
    told = message(url)
    assert (told["content"], told["reasoning_content"]) == ("Hello! I am gpt-oss.", "Greet.")
    preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
    say(engine, tokenizer, thought + preamble + call, end=False)
    told = message(url, tools=[WEATHER])
    assert (told["content"], told["reasoning_content"]) == ("I look.", "Greet.")
    assert told["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}


@of("gpt-oss")
def test_gpt_oss_reads_its_own_history(engine: Engine, url: str, tokenizer: Any) -> None:
    """Its template takes one call per message, and reasoning as `thinking`, not beside content."""
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": city}},
        }
        for city in ("Oslo", "Paris")
    ]
    history = [
        *USER,
        {"role": "assistant", "content": "I look.", "reasoning_content": "Both.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_Oslo", "content": "cold"},
        {"role": "tool", "tool_call_id": "call_Paris", "content": "warm"},
    ]
    say(engine, tokenizer, "<|channel|>final<|message|>Done.")
    assert message(url, messages=history, tools=[WEATHER])["content"] == "Done."
    rendered = prompt(engine, tokenizer)
    order = ["(Both.)", '"Oslo"', "cold", '"Paris"', "warm"]
    assert [rendered.index(part) for part in order] == sorted(rendered.index(part) for part in order)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('"parameters": {"city": "Rome", "days": null}', '{"city": "Rome", "days": null}'),
        ('"arguments": null', "{}"),
        ('"arguments": "just Berlin"', "just Berlin"),
        ('"arguments": "{\\"city\\": \\"Rome\\"}"', '{"city": "Rome"}'),
    ],
)
def test_arguments_of_every_kind_are_kept(
    engine: Engine, url: str, tokenizer: Any, call: str, arguments: str
) -> None:
    say(engine, tokenizer, f'<tool_call>\n{{"name": "weather", {call}}}\n</tool_call>')
    [told] = message(url, tools=[WEATHER])["tool_calls"]
    assert told["function"]["arguments"] == arguments


def test_a_format_names_the_keywords_that_it_does_not_enforce(url: str) -> None:
    schema = {"type": "array", "uniqueItems": True}
    formats = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = post(url, CHAT, {"messages": USER, "response_format": formats})
    assert (answer.status_code, answer.headers["x-warning"]) == (
        200,
        "response_format: not enforced: uniqueItems",
    )
    formats["json_schema"]["strict"] = True  # type: ignore[index]
    assert post(url, CHAT, {"messages": USER, "response_format": formats}).status_code == 400


def test_any_model_id_if_the_server_allows_it(engine: Engine, tokenizer: Any, url: str) -> None:
    assert post(url, CHAT, {"messages": USER, "model": "gpt-4o"}).status_code == 404
    model = ServedModel("tiny", tokenizer, 4000, len(tokenizer) + 2, any_name=True)
    with serving(engine, model) as allowing:
        for path, body in (
            (CHAT, {"messages": USER}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/messages", {"messages": USER, "max_tokens": 9}),
        ):
            answer = post(allowing, path, body | {"model": "gpt-4o"})
            assert (answer.status_code, answer.json()["model"]) == (200, "tiny")
