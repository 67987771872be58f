"""OpenAI's Responses protocol over HTTP, with its official client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jaccl_kernel.api.stored import MOST, ResponseStore
from tests.api.agents import CALL, CALLED, PARAMETERS, THOUGHT
from tests.api.scripted import Engine, prompt, say

FUNCTION = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}


@pytest.fixture
def responses(agent: str) -> Iterator[Any]:
    import openai  # slow

    with openai.OpenAI(base_url=f"{agent}/v1", api_key="none", max_retries=0) as client:
        yield client.responses


def test_a_text_is_answered_with_a_response(engine: Engine, responses: Any, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, "Hello there")
    answer = responses.create(model="tiny", input="hi", instructions="Be brief.", max_output_tokens=50)
    assert (answer.output_text, answer.status, answer.object) == ("Hello there", "completed", "response")
    assert prompt(engine, agent_tokenizer) == "<s>system: Be brief.</s><s>user: hi</s><s>assistant: "
    assert engine.asked[-1].max_tokens == 50
    assert answer.usage.input_tokens == len(engine.asked[-1].prompt)
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12


def test_a_stream_has_the_events_of_its_items_in_order(
    engine: Engine, responses: Any, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, THOUGHT)
    events = list(responses.create(model="tiny", input="hi", tools=[FUNCTION], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind] == [
        "response.created", "response.in_progress",
        "response.output_item.added", "response.content_part.added", "response.reasoning_text.delta",
        "response.reasoning_text.done", "response.content_part.done", "response.output_item.done",
        "response.output_item.added", "response.content_part.added", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    final = events[-1].response
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in final.output]
    for item in final.output[2:]:
        assert (item.name, json.loads(item.arguments)) == ("weather", {"city": "Zürich"})
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == final.output_text == final.output[1].content[0].text
    assert told.strip() == "Let me look."


def test_stream_and_whole_give_the_same_items(engine: Engine, responses: Any, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, THOUGHT)
    asked: dict[str, Any] = {"model": "tiny", "input": "hi", "tools": [FUNCTION]}
    whole = responses.create(**asked)
    streamed = list(responses.create(**asked, stream=True))[-1].response

    def shape(response: Any) -> list[Any]:
        return [
            (item.type, getattr(item, "arguments", None) or [part.text for part in item.content])
            for item in response.output
        ]

    assert shape(whole) == shape(streamed)
    assert whole.usage == streamed.usage


def test_the_next_turn_continues_a_stored_response(
    engine: Engine, responses: Any, agent: str, agent_tokenizer: Any
) -> None:
    import openai  # slow

    say(engine, agent_tokenizer, THOUGHT)
    first = responses.create(model="tiny", input="weather?", tools=[FUNCTION], instructions="Only now.")
    say(engine, agent_tokenizer, "Sunny.")
    calls = [item for item in first.output if item.type == "function_call"]
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"} for call in calls
    ]
    second = responses.create(model="tiny", input=results, previous_response_id=first.id, tools=[FUNCTION])
    text = prompt(engine, agent_tokenizer)
    assert text.startswith("<s>tool weather</s><s>user: weather?</s><s>assistant: <think>Need it.</think>")
    assert text.count('<tool_call>weather {"city": "Zürich"}</tool_call>') == 2
    assert text.endswith("<s>tool: sun</s><s>tool: sun</s><s>assistant: ")
    assert "Only now." not in text  # instructions are not carried over
    assert responses.retrieve(second.id).output_text == "Sunny."
    items = responses.input_items.list(second.id).data
    assert [item.type for item in items][:2] == ["message", "reasoning"]
    responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="no stored response"):
        responses.create(model="tiny", input="x", previous_response_id=first.id)
    assert httpx.post(f"{agent}/v1/responses/{second.id}/cancel").status_code == 400


def test_what_is_not_to_be_stored_is_not_and_reasoning_returns_by_the_client(
    engine: Engine, responses: Any, agent_tokenizer: Any
) -> None:
    import openai  # slow

    say(engine, agent_tokenizer, f"<think>deep</think><tool_call>{CALL}</tool_call>")
    asked: dict[str, Any] = {"model": "tiny", "tools": [FUNCTION], "store": False}
    first = responses.create(**asked, input="hi", include=["reasoning.encrypted_content"])
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(first.id)
    reasoning, call = first.output
    # as Codex sends it back: without the text
    past = {"type": "reasoning", "id": reasoning.id, "summary": [], "content": None}
    past["encrypted_content"] = reasoning.encrypted_content
    output = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [{"type": "input_text", "text": "sun"}],
    }
    foreign = past | {"encrypted_content": "gAAAA-not-ours"}
    responses.create(**asked, input=[foreign, past, call.model_dump(exclude_none=True), output])
    text = prompt(engine, agent_tokenizer)
    assert text.count("<think>deep</think>") == 1
    assert "not-ours" not in text
    assert text.endswith("<s>tool: sun</s><s>assistant: ")


def test_items_and_tools_of_codex_are_taken(engine: Engine, responses: Any, agent_tokenizer: Any) -> None:
    say(
        engine,
        agent_tokenizer,
        '<tool_call>{"name": "apply_patch", "arguments": {"input": "*** Begin"}}</tool_call>',
    )
    custom = {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "text"},
    }
    items: Any = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": "go"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** old"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {"type": "local_shell_call", "call_id": "c2", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "c2", "output": "a"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ]  # fmt: skip
    events = list(
        responses.create(
            model="tiny", input=items, tools=[custom, {"type": "web_search"}], stream=True,
            extra_body={"client_metadata": {"x": 1}, "prompt_cache_key": "k", "service_tier": "auto"},
        )
    )  # fmt: skip
    [call] = events[-1].response.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "apply_patch", "*** Begin")
    text = prompt(engine, agent_tokenizer)
    assert text.startswith("<s>tool apply_patch</s><s>system: one\n\ntwo</s><s>user: go</s>")
    assert '<tool_call>apply_patch {"input": "*** old"}</tool_call>' in text
    assert "web_search" not in text


def test_a_format_a_forced_tool_and_a_limit_reach_the_engine(
    engine: Engine, responses: Any, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, '{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert responses.create(model="tiny", input="x", text=form).output_text == '{"a": 1}'
    assert engine.asked[-1].grammar
    say(engine, agent_tokenizer, CALLED)
    choice: Any = {"type": "function", "name": "weather"}
    [call] = responses.create(model="tiny", input="x", tools=[FUNCTION], tool_choice=choice).output
    assert (call.type, call.name) == ("function_call", "weather")
    say(engine, agent_tokenizer, "a long answer", end=False)
    cut = responses.create(model="tiny", input="x", max_output_tokens=6)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == "a long"


def test_truncation_drops_the_oldest_turns_or_says_that_it_is_too_long(
    engine: Engine, responses: Any, agent_tokenizer: Any
) -> None:
    import openai  # slow

    say(engine, agent_tokenizer, "ok")
    turns: Any = [{"role": "developer", "content": "rules"}]
    for number in range(6):
        turns += [{"role": "user", "content": f"turn {number} " + "x" * 900}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4000 tokens") as caught:
        responses.create(model="tiny", input=turns)
    assert caught.value.code == "context_length_exceeded"
    assert responses.create(model="tiny", input=turns, truncation="auto").output_text == "ok"
    text = prompt(engine, agent_tokenizer)
    assert text.startswith("<s>system: rules</s>")
    assert "turn 1" not in text
    assert "turn 5" in text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [{"type": "teapot"}]}, "input.0"),
        ({"input": [{"role": "king", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"type": "item_reference", "id": "msg_none"}]}, "input.0"),
        ({"input": 5}, "input"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "no such"}}}}, "text.format"),
        ({"tools": [{"name": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"truncation": "some"}, "truncation"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_a_response_cannot_be_is_refused_by_name(agent: str, body: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{agent}/v1/responses", json={"input": "hi"} | body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_response_that_fails_midway_ends_with_a_failed_event(
    engine: Engine, agent: str, agent_tokenizer: Any
) -> None:
    engine.break_after = 3
    with httpx.stream("POST", f"{agent}/v1/responses", json={"input": "x", "stream": True}) as answer:
        lines = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1]["type"] == "response.failed"
    assert lines[-1]["response"]["error"]["code"] == "engine_failed"
    assert [line["sequence_number"] for line in lines] == list(range(len(lines)))


def test_the_store_drops_the_oldest() -> None:
    store = ResponseStore()
    for number in range(MOST + 5):
        store.put(str(number), {}, [{"id": f"item{number}"}], [])
        store.get("0")
    assert store.get("0")
    assert store.get("5") is None
    assert store.item(f"item{MOST}") == {"id": f"item{MOST}"}
    assert store.item("item2") is None
    assert store.delete("0")
    assert not store.delete("0")
