"""Anthropic's Messages protocol over HTTP, with its official client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.inference.request import RequestError
from tests.api.agents import CALLED, PARAMETERS, THOUGHT
from tests.api.scripted import Engine, prompt, say, serving

TOOL: Any = {"name": "weather", "input_schema": PARAMETERS}


@pytest.fixture
def messages(agent: str) -> Iterator[Any]:
    import anthropic  # slow

    with anthropic.Anthropic(base_url=agent, api_key="none", max_retries=0) as client:
        yield client.messages


def test_a_message_is_answered(engine: Engine, messages: Any, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, "Hello there")
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hi"}],
    }
    more = {"top_k": 5, "temperature": 0.5}
    answer = messages.create(**asked, system=system, extra_body=more)
    assert answer.content[0].text == "Hello there"
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert prompt(engine, agent_tokenizer) == "<s>system: Be brief.</s><s>user: hi</s><s>assistant: "
    sampling = engine.asked[-1].sampling
    assert (sampling.top_k, sampling.temperature, engine.asked[-1].max_tokens) == (5, 0.5, 50)
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.input_tokens + 3 == len(engine.asked[-1].prompt)
    counted = messages.count_tokens(model="tiny", messages=asked["messages"], system="Be brief.")
    assert counted.input_tokens == len(engine.asked[-1].prompt)
    cut = messages.create(**asked | {"max_tokens": 5})
    assert (cut.content[0].text, cut.stop_reason) == ("Hello", "max_tokens")
    stopped = messages.create(**asked, stop_sequences=["never", "the"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
        "Hello ", "stop_sequence", "the",
    )  # fmt: skip


def test_the_stream_helper_assembles_thinking_text_and_tool_use(
    engine: Engine, messages: Any, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, THOUGHT)
    asked: dict[str, Any] = {
        "model": "tiny", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL],
    }  # fmt: skip
    with messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    whole = messages.create(**asked)
    for message in (streamed, whole):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert message.content[0].thinking == "Need it."
        assert message.content[1].text.strip() == "Let me look."
        assert [block.input for block in message.content[2:]] == [{"city": "Zürich"}] * 2
        assert message.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


def test_tool_results_and_thinking_return_to_the_template(
    engine: Engine, messages: Any, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, "Sunny.")
    history: Any = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Need it.", "signature": ""},
            {"type": "redacted_thinking", "data": "abc"},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
            {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "no city", "is_error": True},
            {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}},
        ]},
    ]  # fmt: skip
    messages.create(model="tiny", max_tokens=9, messages=history, tools=[TOOL])
    assert prompt(engine, agent_tokenizer) == (
        "<s>tool weather</s><s>user: weather?</s><s>assistant: <think>Need it.</think>Let me look."
        '<tool_call>weather {"city": "Bern"}</tool_call><tool_call>weather {}</tool_call></s>'
        "<s>tool: sun</s><s>tool: Error: no city</s><s>user: So?</s><s>assistant: "
    )


def test_the_last_message_of_the_assistant_is_continued(
    engine: Engine, messages: Any, agent: str, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, "4.")
    asked: Any = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}]
    assert messages.create(model="tiny", max_tokens=9, messages=asked).content[0].text == "4."
    assert prompt(engine, agent_tokenizer) == "<s>user: 2+2?</s><s>assistant: It is"
    chat = {"messages": asked, "continue_final_message": True, "add_generation_prompt": False}
    assert httpx.post(f"{agent}/v1/chat/completions", json=chat).status_code == 200
    assert prompt(engine, agent_tokenizer) == "<s>user: 2+2?</s><s>assistant: It is"


def test_choices_of_tools_and_thinking_are_honoured(
    engine: Engine, messages: Any, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, CALLED)
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "x"}],
    }
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        [block] = messages.create(**asked, tools=[TOOL], tool_choice=choice).content
        assert (block.type, block.name, engine.asked[-1].grammar is None) == ("tool_use", "weather", False)
    messages.create(**asked, tools=[TOOL], tool_choice={"type": "none"})
    assert "weather" not in prompt(engine, agent_tokenizer)
    messages.create(**asked, thinking={"type": "disabled"}, extra_body={"metadata": {"user_id": "me"}})
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    messages.create(
        **asked, extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    )
    assert engine.asked[-1].grammar


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ],
)
def test_what_a_message_cannot_be_is_refused_in_anthropics_shape(
    agent: str, body: dict[str, Any], where: str
) -> None:
    asked = {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]} | body
    answer = httpx.post(f"{agent}/v1/messages?beta=true", json=asked)
    assert answer.status_code == 400
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert told["error"]["message"].startswith(where)


def test_errors_have_anthropics_types(engine: Engine, agent_tokenizer: Any, agent: str) -> None:
    asked = {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    assert httpx.head(agent).status_code == 200
    wrong = httpx.post(f"{agent}/v1/messages", json=asked | {"model": "claude"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (404, "not_found_error")
    engine.refuse = RequestError("queue_full", "the queue is full", retry_after=3)
    full = httpx.post(f"{agent}/v1/messages", json=asked)
    assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
    engine.refuse, engine.break_after = None, 2
    with httpx.stream("POST", f"{agent}/v1/messages", json=asked | {"stream": True}) as answer:
        lines = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert (lines[-1]["type"], lines[-1]["error"]["type"]) == ("error", "overloaded_error")
    model = ServedModel("tiny", agent_tokenizer, context=4000, vocabulary=263)
    with serving(Engine(), model, api_key="secret") as keyed:
        refused = httpx.post(f"{keyed}/v1/messages", json=asked)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert (
            httpx.post(f"{keyed}/v1/messages", json=asked, headers={"x-api-key": "secret"}).status_code == 200
        )
