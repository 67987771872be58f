"""OpenAI's API over HTTP, with an engine that says what the test wants."""

import inspect
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlx_lm.tokenizer_utils import NaiveStreamingDetokenizer, SPMStreamingDetokenizer, TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from jaccl_kernel.api import answering, app, body, connection, guard, http
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.templates import reserved
from jaccl_kernel.inference.request import RequestError
from jaccl_kernel.inference.text import Assembler
from tests.api.agents import CALL
from tests.api.scripted import EOS, Engine, events, say, serving

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture
def url(engine: Engine, tokenizer: Any) -> Iterator[str]:
    with serving(engine, ServedModel("tiny", tokenizer, context=400, vocabulary=259)) as address:
        yield address


def post(url: str, body: Any, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60, **more)


def get(url: str, **more: Any) -> httpx.Response:
    return httpx.get(url, timeout=60, **more)


def complaint(response: httpx.Response) -> dict[str, Any]:
    """The error of a response that must be one, in OpenAI's shape."""
    assert response.status_code >= 400
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"]
    return error


# answers


def test_the_three_calls_of_the_seed(engine: Engine, url: str, tokenizer: Any) -> None:
    say(engine, tokenizer, "Hello there")
    [model] = get(f"{url}/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "local")
    assert get(f"{url}/v1/models/tiny").json() == model
    chat = post(url, {"model": "tiny", **HI, "max_tokens": 64}).json()
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "Hello there", "refusal": None}
    assert chat["choices"][0]["finish_reason"] == "stop"
    usage = chat["usage"]
    assert usage["prompt_tokens"] == len(engine.asked[0].prompt)
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert chat["timings"]["cache_n"] == 3
    text = post(url, {"model": "tiny", "prompt": "Hello", "max_tokens": 64}, "/v1/completions").json()
    assert (text["object"], text["choices"][0]["text"]) == ("text_completion", "Hello there")


def test_the_official_client_streams_and_counts(engine: Engine, url: str, tokenizer: Any) -> None:
    import openai  # slow

    say(engine, tokenizer, "naïve 🙂 text")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told) == "naïve 🙂 text"
    assert "\ufffd" not in "".join(told)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(tokenizer.encode("naïve 🙂 text")) + 1
    whole = client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=5)
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length"]
    client.close()


def test_defaults_are_openais(engine: Engine, url: str) -> None:
    post(url, HI)
    post(url, {"prompt": "x"}, "/v1/completions")
    chat, text = engine.asked
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.seed) == (1.0, 1.0, None)
    assert chat.max_tokens == 400 - len(chat.prompt)
    assert text.max_tokens == 16


def test_settings_reach_the_engine(engine: Engine, url: str) -> None:
    body = HI | {
        "temperature": 0.5, "top_p": 0.9, "top_k": 10**9, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": -1, "repetition_penalty": 1.1, "repetition_context_size": 50,
        "xtc_probability": 0.2, "xtc_threshold": 0.3, "logit_bias": {"7": -5}, "seed": 10**30,
        "max_completion_tokens": 9, "max_tokens": 100, "n": 2, "nonsense": {"is": "ignored"}, "stop": None,
    }  # fmt: skip
    assert post(url, body).status_code == 200
    first, second = (one.sampling for one in engine.asked)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.5, 0.9, 10**9, 0.1)
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (1, -1, 1.1)
    assert (first.xtc_probability, first.xtc_threshold, first.logit_bias) == (0.2, 0.3, {7: -5})
    assert first.seed == 10**30 % 2**64
    assert second.seed == (10**30 + 1) % 2**64
    assert {one.max_tokens for one in engine.asked} == {9}


def test_what_clients_send_for_the_default_is_the_default(engine: Engine, url: str) -> None:
    told = post(url, HI | {"temperature": 1e-9, "stream": True, "stream_options": {"include_usage": None}})
    assert told.status_code == 200
    assert "usage" not in events(told.text)[-2]
    assert engine.asked[0].sampling.temperature == 0  # the likeliest token, not a division by almost nothing


def test_several_choices_with_and_without_streaming(engine: Engine, url: str, tokenizer: Any) -> None:
    answers = iter(["first", "second", "third"] * 2)
    engine.script = lambda request: [*tokenizer.encode(next(answers), add_special_tokens=False), EOS]
    whole = post(url, HI | {"n": 3}).json()
    assert [one["message"]["content"] for one in whole["choices"]] == ["first", "second", "third"]
    assert whole["usage"]["prompt_tokens"] == len(engine.asked[0].prompt)
    told = ["", "", ""]
    for event in events(post(url, HI | {"n": 3, "stream": True}).text)[:-1]:
        [choice] = event["choices"]
        told[choice["index"]] += choice["delta"].get("content", "")
    assert told == ["first", "second", "third"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_text_and_ends_the_generation(
    engine: Engine, url: str, tokenizer: Any, stream: bool
) -> None:
    say(engine, tokenizer, "one limited thing and a long rest" * 5)
    engine.hold_after = len("one limit")  # it would not end by itself
    body = HI | {"stop": ["nothing", "imit"], "stream": stream, "max_tokens": 200}
    response = post(url, body)
    if stream:
        chunks = [event["choices"][0] for event in events(response.text)[:-1]]
        text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
        assert response.json()["usage"]["completion_tokens"] == len("one limit")
    assert (text, finish) == ("one l", "stop")
    assert len(engine.cancelled) == 1


def test_logprobs_with_and_without_streaming(engine: Engine, url: str, tokenizer: Any) -> None:
    say(engine, tokenizer, "ab🙂")
    body = HI | {"logprobs": True, "top_logprobs": 2}
    [choice] = post(url, body).json()["choices"]
    told = choice["logprobs"]["content"]
    assert len(told) == 6
    assert told[0]["token"] == "a"
    assert (told[0]["logprob"], told[0]["bytes"]) == (-0.5, [97])
    assert len(told[0]["top_logprobs"]) == 2
    streamed = []
    for event in events(post(url, body | {"stream": True}).text)[:-1]:
        streamed += event["choices"][0]["logprobs"]["content"]
    assert streamed == told
    [text] = post(url, {"prompt": "x", "logprobs": 1}, "/v1/completions").json()["choices"]
    assert text["logprobs"]["tokens"][:2] == ["a", "b"]
    assert text["logprobs"]["text_offset"][:3] == [0, 1, 2]
    assert text["logprobs"]["token_logprobs"] == [-0.5] * 6
    assert complaint(post(url, HI | {"top_logprobs": 2}))["param"] == "top_logprobs"


def test_prompts_of_every_kind(engine: Engine, url: str, tokenizer: Any) -> None:
    for prompt, count in (("x", 1), (["x", "y"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)):
        answer = post(url, {"prompt": prompt}, "/v1/completions").json()
        assert len(answer["choices"]) == count
    assert [list(one.prompt) for one in engine.asked[-2:]] == [[1, 2], [3]]
    say(engine, tokenizer, "yes")
    echoed = post(url, {"prompt": "say ", "echo": True}, "/v1/completions").json()
    assert echoed["choices"][0]["text"].endswith("say yes")


# reasoning, tools, formats


def test_reasoning_is_separated(engine: Engine, agent: str, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, "<think>let me see</think>It is 4.")
    answer = post(agent, HI).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("It is 4.", "let me see")
    assert message["reasoning"] == message["reasoning_content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
    say(engine, agent_tokenizer, "opened</think>done")
    body = HI | {"chat_template_kwargs": {"open_think": True}, "stream": True}
    deltas = [event["choices"][0]["delta"] for event in events(post(agent, body).text)[:-1]]
    assert "".join(one.get("reasoning_content", "") for one in deltas) == "opened"
    assert "".join(one.get("content", "") for one in deltas) == "done"


def test_a_users_own_marker_opens_no_reasoning(engine: Engine, agent: str, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, "It is a marker.")
    asked = {"messages": [{"role": "user", "content": "What does <think> mean?"}]}
    message = post(agent, asked).json()["choices"][0]["message"]
    assert (message["content"], message.get("reasoning_content")) == ("It is a marker.", None)
    say(engine, agent_tokenizer, "opened</think>done")
    opened = post(agent, asked | {"chat_template_kwargs": {"open_think": True}}).json()["choices"][0][
        "message"
    ]
    assert (opened["content"], opened["reasoning_content"]) == ("done", "opened")


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_parsed(engine: Engine, agent: str, agent_tokenizer: Any, stream: bool) -> None:
    import openai  # slow

    say(engine, agent_tokenizer, f"Let me look.<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>")
    client = openai.OpenAI(base_url=f"{agent}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "messages": HI["messages"], "tools": [TOOL]}
    if stream:
        calls: dict[int, dict[str, str]] = {}
        content, finish = "", None
        for chunk in client.chat.completions.create(**asked, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
            for call in delta.tool_calls or []:
                known = calls.setdefault(call.index, {"name": "", "arguments": ""})
                known["name"] += call.function.name or ""
                known["arguments"] += call.function.arguments or ""
        told = [calls[index] for index in sorted(calls)]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        content, finish = choice.message.content, choice.finish_reason
        told = [
            {"name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or []
        ]
    client.close()
    assert [json.loads(one["arguments"]) for one in told] == [{"city": "Zürich"}] * 2
    assert [one["name"] for one in told] == ["weather"] * 2
    assert (content, finish) == ("Let me look.", "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_if_parallel_calls_are_off(
    engine: Engine, agent: str, agent_tokenizer: Any, stream: bool
) -> None:
    both = f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    say(engine, agent_tokenizer, both + "x" * 500)
    engine.hold_after = len(agent_tokenizer.encode(both, add_special_tokens=False))  # no end by itself
    body = HI | {"tools": [TOOL], "parallel_tool_calls": False, "stream": stream}
    answer = post(agent, body)
    if stream:
        chunks = [event["choices"][0] for event in events(answer.text)[:-1]]
        calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", []) if call.get("id")]
        finish, text = chunks[-1]["finish_reason"], "".join(c["delta"].get("content") or "" for c in chunks)
    else:
        [choice] = answer.json()["choices"]
        calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
        text = choice["message"]["content"] or ""
    assert (len(calls), finish, text) == (1, "tool_calls", "")
    assert len(engine.cancelled) == 1  # it did not generate to the end


def test_a_call_inside_reasoning_that_was_not_closed_is_a_call(
    engine: Engine, agent: str, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, f"<think>I need the weather<tool_call>{CALL}</tool_call>")
    [choice] = post(agent, HI | {"tools": [TOOL]}).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "I need the weather"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_an_agents_long_conversation_is_accepted(engine: Engine, agent: str, agent_tokenizer: Any) -> None:
    say(engine, agent_tokenizer, "Done.")
    past = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
    }
    messages: list[dict[str, Any]] = [{"role": "developer", "content": "You are an agent. " * 60}]
    for turn in range(8):
        messages += [
            {"role": "user", "content": [{"type": "text", "text": f"turn {turn}"}]},
            {"role": "assistant", "content": None, "tool_calls": [past]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
    answer = post(agent, {"messages": messages, "tools": [TOOL], "tool_choice": "auto"})
    assert answer.json()["choices"][0]["message"]["content"] == "Done."
    text = agent_tokenizer.decode(engine.asked[0].prompt)
    assert text.startswith("<s>tool weather</s><s>system: You are an agent.")


def test_tool_choice_is_supported_or_rejected(
    engine: Engine, agent: str, url: str, agent_tokenizer: Any
) -> None:
    say(engine, agent_tokenizer, f"<tool_call>{CALL}</tool_call>")
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        [told] = post(agent, HI | {"tools": [TOOL], "tool_choice": choice}).json()["choices"]
        assert told["finish_reason"] == "tool_calls"
        assert json.loads(told["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Zürich"}
        assert engine.asked[-1].grammar is not None
    say(engine, agent_tokenizer, f"<tool_call>{CALL}</tool_call>")
    [told] = post(agent, HI | {"tools": [TOOL], "tool_choice": "none"}).json()["choices"]
    assert told["finish_reason"] == "stop"
    assert "weather" not in agent_tokenizer.decode(engine.asked[-1].prompt)
    wrong = {"type": "function", "function": {"name": "nobody"}}
    assert complaint(post(agent, HI | {"tools": [TOOL], "tool_choice": wrong}))["param"] == "tool_choice"
    assert complaint(post(url, HI | {"tools": [TOOL]}))["param"] == "tools"  # its template knows no tools
    assert complaint(post(agent, HI | {"tools": [{"type": "function"}]}))["param"] == "tools.0"
    assert complaint(post(agent, HI | {"tools": ["x"]}))["param"] == "tools.0"


def test_a_format_becomes_a_grammar_or_is_rejected(engine: Engine, url: str, agent: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    for wanted in ({"type": "json_object"}, schema):
        assert post(url, HI | {"response_format": wanted}).status_code == 200
        assert engine.asked[-1].grammar is not None
    assert post(url, HI | {"response_format": {"type": "text"}}).status_code == 200
    assert engine.asked[-1].grammar is None
    for wrong in (
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}},
    ):
        assert complaint(post(url, HI | {"response_format": wrong}))["param"].startswith("response_format")
    both = HI | {"response_format": {"type": "json_object"}, "tools": [TOOL]}
    assert post(agent, both).status_code == 200
    assert post(agent, both | {"tool_choice": "none"}).status_code == 200
    open_think = HI | {
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"open_think": True},
    }
    assert post(agent, open_think).status_code == 200  # the format begins after the reasoning


# complaints


HUGE = 10**310  # beyond every float

BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": "many"}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"stop": [5]}, "stop.0"),
    ({"stop": 5}, "stop"),
    ({"stop": ["x"] * 100}, "stop"),
    ({"logit_bias": {"259": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
    ({"seed": "x"}, "seed"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
     "messages.0.content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
     "messages.0.tool_calls"),
    ({"tools": "none"}, "tools"),
    ({"tool_choice": "maybe"}, "tool_choice"),
    ({"temperature": HUGE}, "temperature"),
    ({"top_p": HUGE}, "top_p"),
    ({"min_p": -HUGE}, "min_p"),
    ({"presence_penalty": HUGE}, "presence_penalty"),
    ({"repetition_penalty": HUGE}, "repetition_penalty"),
    ({"logit_bias": {"1": HUGE}}, "logit_bias.1"),
    ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, "messages"),
    ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"max_length": 1}}, "chat_template_kwargs.max_length"),
    ({"chat_template_kwargs": {"padding": "max_length"}}, "chat_template_kwargs.padding"),
    ({"chat_template_kwargs": {"return_tensors": "np"}}, "chat_template_kwargs.return_tensors"),
    ({"top_logprobs": 50, "logprobs": True}, "top_logprobs"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": [{"name": "x"}]}, "functions"),
    ({"stream": "yes"}, "stream"),
]  # fmt: skip


@pytest.fixture(scope="module")
def quiet(tokenizer: Any) -> Iterator[tuple[Engine, str]]:
    """A server that many tests may send nonsense to."""
    engine = Engine()
    with serving(engine, ServedModel("tiny", tokenizer, context=400, vocabulary=259)) as address:
        yield engine, address


@pytest.mark.parametrize(("body", "param"), BAD, ids=[f"{at}-{param}" for at, (_, param) in enumerate(BAD)])
def test_an_invalid_field_is_a_400_that_names_it(
    quiet: tuple[Engine, str], body: dict[str, Any], param: str
) -> None:
    engine, url = quiet
    asked = len(engine.asked)
    response = post(url, HI | body)
    error = complaint(response)
    assert response.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(engine.asked) == asked


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff\xfe{}", b'{"prompt": NaN}', b'{"prompt": Infinity}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "x", "temperature": NaN}', b"[" * 100_000,
        b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": ""}', b'{"prompt": []}',
        b'{"prompt": [999999]}', b'{"prompt": [-1]}', b'{"prompt": [[]]}', b'{"prompt": [1, "x"]}',
        b'{"prompt": {"a": 1}}', b'{"prompt": "x", "best_of": 5}', b'{"prompt": "x", "suffix": "y"}',
        b'{"prompt": "x", "logprobs": 99}', b'{"prompt": "x", "echo": true, "stream": true}', b"{}",
    ],
)  # fmt: skip
def test_bodies_that_are_nonsense_are_a_400(quiet: tuple[Engine, str], raw: bytes) -> None:
    _, url = quiet
    response = httpx.post(f"{url}/v1/completions", content=raw, timeout=60)
    complaint(response)
    assert response.status_code == 400


def test_unknown_paths_models_and_methods_have_the_same_error_format(quiet: tuple[Engine, str]) -> None:
    _, url = quiet
    for response, status in (
        (get(f"{url}/nowhere"), 404),
        (get(f"{url}/v1/models/some/other"), 404),
        (post(url, HI | {"model": "other"}), 404),
        (get(f"{url}/v1/chat/completions"), 405),
        (httpx.delete(f"{url}/v1/models", timeout=60), 405),
    ):
        complaint(response)
        assert response.status_code == status
    assert complaint(post(url, HI | {"model": "other"}))["code"] == "model_not_found"
    assert post(url, HI | {"model": "default"}).status_code == 200


def test_a_prompt_beyond_the_context_is_rejected_and_one_of_a_megabyte_too(quiet: tuple[Engine, str]) -> None:
    _, url = quiet
    assert complaint(post(url, {"prompt": "x" * 400}, "/v1/completions"))["code"] == "context_length_exceeded"
    assert post(url, {"prompt": "x" * 399, "max_tokens": 99}, "/v1/completions").status_code == 200
    large = post(url, {"prompt": "word " * 200_000}, "/v1/completions")
    assert complaint(large)["code"] == "context_length_exceeded"


def test_no_parameter_of_the_tokenizers_own_is_the_clients(quiet: tuple[Engine, str], tokenizer: Any) -> None:
    _, url = quiet
    told = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    own = {name for name, one in told.items() if one.kind is not one.VAR_KEYWORD} - {"self", "documents"}
    assert own < reserved(tokenizer)
    for name in own:
        error = complaint(post(url, HI | {"chat_template_kwargs": {name: True}}))
        assert error["param"] == f"chat_template_kwargs.{name}"
    extra = {"documents": [{"title": "a", "text": "b"}], "enable_thinking": True, "colour": "blue"}
    assert post(url, HI | {"chat_template_kwargs": extra}).status_code == 200


def test_an_oversized_request_is_rejected_before_tokenizing(engine: Engine, tokenizer: Any) -> None:
    class Counting:
        """A tokenizer that knows how often it was used."""

        used = 0

        def __getattr__(self, name: str) -> Any:
            if name in ("encode", "apply_chat_template"):
                self.used += 1
            return getattr(tokenizer, name)

    counting = Counting()
    with serving(engine, ServedModel("tiny", counting, context=400, vocabulary=259)) as url:
        assert complaint(post(url, {"prompt": ["a"] * 20_000}, "/v1/completions"))["param"] == "n"
        assert complaint(post(url, {"prompt": ["a"] * 9, "n": 2}, "/v1/completions"))["param"] == "n"
        long = complaint(post(url, {"prompt": ["a", "word " * 100_000]}, "/v1/completions"))
        assert (long["code"], long["param"]) == ("context_length_exceeded", "prompt")
        chat = complaint(post(url, {"messages": [{"role": "user", "content": "word " * 100_000}]}))
        assert (chat["code"], chat["param"]) == ("context_length_exceeded", "messages")
        assert counting.used == 0
        assert post(url, {"prompt": "a"}, "/v1/completions").status_code == 200
        assert counting.used


def test_health_answers_while_a_large_body_is_read(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go = threading.Event(), threading.Event()
    parse = body.parse_json

    def slowly(raw: bytes, **more: int) -> dict[str, Any]:
        reading.set()
        assert go.wait(300)
        return parse(raw, **more)

    monkeypatch.setattr(body, "parse_json", slowly)
    answers: list[httpx.Response] = []
    asked = {"prompt": "x", "padding": "x" * app.LARGE}
    thread = threading.Thread(target=lambda: answers.append(post(url, asked, "/v1/completions")))
    thread.start()
    try:
        assert reading.wait(60)
        assert get(f"{url}/health").status_code == 200
    finally:
        go.set()
        thread.join(60)
    assert answers[0].status_code == 200


def test_an_error_of_the_engine_has_its_own_status(engine: Engine, url: str) -> None:
    engine.refuse = RequestError("queue_full", "full", retry_after=7)
    for stream in (False, True):
        response = post(url, HI | {"stream": stream})
        assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
        assert complaint(response)["code"] == "queue_full"


def test_a_failure_during_a_stream_is_an_error_event_and_done(engine: Engine, url: str) -> None:
    engine.script = lambda request: [70] * 50
    engine.break_after = 3
    told = events(post(url, HI | {"stream": True}).text)
    assert told[-1] == "[DONE]"
    assert told[-2]["error"]["message"] == "rank 1 (mac2) failed: it is gone"
    assert complaint(post(url, HI))["message"] == "rank 1 (mac2) failed: it is gone"
    engine.break_after = 0  # before a first token an error is still a status
    assert post(url, HI | {"stream": True}).status_code == 503


def test_a_failure_before_the_first_token_of_a_stream_that_has_begun_is_an_event_and_done(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "KEEPALIVE_S", 0.02)
    engine.hold_after = engine.break_after = 0
    asked = HI | {"stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(": still working")
        engine.go.set()
        told = events("\n".join(lines))
    assert (told[0]["error"]["message"], told[1:]) == ("rank 1 (mac2) failed: it is gone", ["[DONE]"])


def test_an_internal_error_ends_the_stream(engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: object, token: int) -> None:
        raise RuntimeError("a secret of ours")

    engine.script = lambda request: [70] * 50
    engine.hold_after = 1
    asked = HI | {"stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=60) as stream:
        monkeypatch.setattr(Assembler, "add", breaks)  # it has begun: its head is here
        engine.go.set()
        told = events(stream.read().decode())
    assert told[-1] == "[DONE]"
    assert told[-2]["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(told)
    assert complaint(post(url, HI))["type"] == "server_error"


@pytest.mark.parametrize("kind", [NaiveStreamingDetokenizer, SPMStreamingDetokenizer])
def test_an_id_without_a_text_adds_none(engine: Engine, tokenizer: Any, kind: Any) -> None:
    """The logits of many models are wider than their tokenizer."""
    wide = TokenizerWrapper(tokenizer._tokenizer, kind, eos_token_ids=[EOS])
    a, b, c = tokenizer.encode("abc", add_special_tokens=False)
    engine.script = lambda request: [a, b, 290, c, EOS]
    with serving(engine, ServedModel("tiny", wide, context=400, vocabulary=300)) as url:
        body = {"prompt": [290, a], "max_tokens": 9, "logit_bias": {"290": 5}, "logprobs": 1}
        assert post(url, body, "/v1/completions").json()["choices"][0]["text"] == "abc"
        assert post(url, {"prompt": [290, a], "echo": True}, "/v1/completions").status_code == 200
        told = events(post(url, HI | {"stream": True, "logprobs": True}).text)
        assert told[-1] == "[DONE]"
        assert not [event for event in told[:-1] if "error" in event]


# clients


def wait_for(condition: Any, deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"seed": 3, "stream": True}, {"n": 3}])
def test_a_request_leaves_the_batch_when_its_client_disconnects(
    engine: Engine, url: str, body: dict[str, Any]
) -> None:
    engine.script = lambda request: [70] * 100_000
    engine.hold_after = 3  # none ends by itself
    data = json.dumps(HI | body | {"max_tokens": 300}).encode()
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as client:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address[0]}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        client.sendall(head.encode() + data)
        wait_for(lambda: len(engine.asked) == body.get("n", 1))
        if body.get("stream"):
            assert client.recv(100)
    wait_for(lambda: len(engine.cancelled) == len(engine.asked))
    wait_for(lambda: "jaccl_cancelled_total 1.0" in get(f"{url}/metrics").text)


def test_a_client_that_disconnects_during_the_upload_is_not_an_internal_error(
    engine: Engine, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as client:
        client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\n".encode())
        client.sendall(b'Content-Length: 1000\r\n\r\n{"prompt')
    route = 'jaccl_requests_total{route="/v1/completions",status="499"} 1.0'
    wait_for(lambda: route in get(f"{url}/metrics").text)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_uploads_and_connections_are_bounded(
    engine: Engine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "UPLOADS", 3000)
    monkeypatch.setattr(guard, "UPLOAD_S", 0.2)
    monkeypatch.setattr(http, "CONNECTIONS", 4)
    monkeypatch.setattr(connection, "FRESH_S", 600.0)  # an idle connection does not make room
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
    with serving(engine, ServedModel("tiny", tokenizer, context=400, vocabulary=259)) as url:
        host, port = url.removeprefix("http://").split(":")

        @contextmanager
        def clients(count: int, data: bytes) -> Iterator[list[socket.socket]]:
            with ExitStack() as stack:
                each = [socket.create_connection((host, int(port)), timeout=60) for _ in range(count)]
                for client in each:
                    stack.enter_context(client).sendall(data)
                yield each

        def status(client: socket.socket) -> bytes:
            return client.recv(100).split(b"\r\n")[0]

        with clients(1, head + b"x" * 2000) as [one]:
            assert status(one) == b"HTTP/1.1 408 Request Timeout"
        monkeypatch.setattr(guard, "UPLOAD_S", 600.0)  # both are still sending when one is refused
        with clients(2, head + b"x" * 2000) as both:
            [refused], _, _ = select.select(both, [], [], 60)
            assert status(refused) == b"HTTP/1.1 503 Service Unavailable"
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def answers() -> bytes:
            with clients(1, request) as [one]:
                return status(one)

        wait_for(lambda: answers() == b"HTTP/1.1 200 OK")
        with clients(6, request) as six:
            assert b"HTTP/1.1 503 Service Unavailable" in [status(one) for one in six]


def test_a_slow_reader_does_not_block_the_others(engine: Engine, url: str) -> None:
    engine.script = lambda request: [70] * 100_000
    address = url.removeprefix("http://").split(":")
    data = json.dumps({"prompt": "x", "stream": True, "max_tokens": 399}).encode()
    with socket.create_connection((address[0], int(address[1]))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\nContent-Length: {len(data)}\r\n\r\n"
        slow.sendall(head.encode() + data)
        wait_for(lambda: len(engine.asked) == 1)
        for _ in range(3):
            assert post(url, {"prompt": "x"}, "/v1/completions").status_code == 200


def test_many_clients_at_once(engine: Engine, url: str, tokenizer: Any) -> None:
    say(engine, tokenizer, "hello")
    results: list[int] = []

    def one() -> None:
        results.append(post(url, HI | {"stream": True}).text.count("data: "))

    threads = [threading.Thread(target=one) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [results[0]] * 64


# who may ask


def test_without_the_key_only_health_answers(engine: Engine, tokenizer: Any) -> None:
    model = ServedModel("tiny", tokenizer, context=400, vocabulary=259)
    with serving(engine, model, api_key="secret key 1") as url:
        for path in ("/", "/status", "/metrics", "/v1/models", "/v1/models/tiny"):
            assert complaint(get(url + path))["code"] == "invalid_api_key"
        assert post(url, HI).status_code == 401
        assert post(url, HI, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert post(url, HI, headers={"Authorization": "Bearer secret key 1"}).status_code == 200
        assert get(f"{url}/health").json() == {"status": "ok", "stage": "serving"}
        assert engine.asked == engine.asked[:1]


def test_no_web_page_reaches_it_unasked(engine: Engine, url: str, tokenizer: Any) -> None:
    for host in ("evil.example.com", "127.0.0.1.evil.com"):
        assert complaint(get(f"{url}/v1/models", headers={"Host": host}))["code"] == "wrong_host"
    for host in ("localhost:80", "127.0.0.1", "[::1]:8080", "macstudio1.local", "mac1"):
        assert get(f"{url}/v1/models", headers={"Host": host}).status_code == 200
    origin = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in get(f"{url}/v1/models", headers=origin).headers
    model = ServedModel("tiny", tokenizer, context=400, vocabulary=259)
    with serving(engine, model, cors_origins=("https://page.example",)) as allowed:
        told = get(f"{allowed}/v1/models", headers=origin).headers
        assert told["access-control-allow-origin"] == "https://page.example"
        other = get(f"{allowed}/v1/models", headers={"Origin": "https://other.example"}).headers
        assert "access-control-allow-origin" not in other


def test_a_request_from_another_origin_is_rejected(engine: Engine, url: str, tokenizer: Any) -> None:
    def start(address: str, origin: str, **more: str) -> httpx.Response:
        headers = {"Origin": origin, "Content-Type": "text/plain", **more}  # as a form does, without asking
        return httpx.post(
            f"{address}/v1/chat/completions", content=json.dumps(HI), headers=headers, timeout=60
        )

    for origin in ("https://page.example", "null", "http://127.0.0.1:1"):
        refused = start(url, origin)
        assert (refused.status_code, complaint(refused)["code"]) == (403, "wrong_origin")
    assert engine.asked == []
    assert start(url, url).status_code == 200  # our own page
    model = ServedModel("tiny", tokenizer, context=400, vocabulary=259)
    with serving(engine, model, cors_origins=("https://page.example",)) as allowed:
        assert start(allowed, "https://page.example").status_code == 200
        assert start(allowed, "https://other.example").status_code == 403
    with serving(engine, model, api_key="secret key 1") as keyed:  # the key is what protects it
        assert start(keyed, "https://x.example", Authorization="Bearer secret key 1").status_code == 200
        assert start(keyed, "https://x.example").status_code == 401


def test_a_body_that_is_too_large_is_rejected_regardless_of_its_headers(
    engine: Engine, tokenizer: Any
) -> None:
    model = ServedModel("tiny", tokenizer, context=400, vocabulary=259)
    with serving(engine, model, max_body_bytes=1000) as url:
        large = b"x" * 5000
        assert httpx.post(f"{url}/v1/completions", content=large, timeout=60).status_code == 413
        chunked = httpx.post(f"{url}/v1/completions", content=iter([large]), timeout=60)
        assert complaint(chunked)["code"] == "body_too_large"


def test_every_route_reports_the_stage_while_the_model_loads(engine: Engine) -> None:
    with serving(engine, None) as url:
        for host in ("127.0.0.1", "mac1.example.com"):
            assert get(f"{url}/health", headers={"Host": host}).status_code == 503
        for response in (post(url, HI), get(f"{url}/v1/models")):
            assert response.status_code == 503
            assert complaint(response)["code"] == "not_ready"
            assert response.headers["Retry-After"]


def test_the_key_is_required_while_the_model_still_loads(engine: Engine) -> None:
    with serving(engine, None, api_key="secret key 1") as url:
        for path in (
            "/",
            "/status",
            "/metrics",
            "/v1/models",
            "/v1/models/tiny",
            "/openapi.json",
            "/nowhere",
        ):
            assert complaint(httpx.get(url + path))["code"] == "invalid_api_key"
        assert post(url, HI).status_code == 401
        assert post(url, HI, headers={"Authorization": "Bearer wrong"}).status_code == 401
        told = post(url, HI, headers={"Authorization": "Bearer secret key 1"})
        assert (told.status_code, complaint(told)["code"]) == (503, "not_ready")
        assert "load: 3 of 9 GB" in complaint(told)["message"]
        assert httpx.get(f"{url}/health").json()["status"] == "starting"
    with serving(engine, None, cors_origins=("https://page.example",)) as url:
        started = {"Origin": "https://other.example", "Content-Type": "text/plain"}
        assert post(url, HI, headers=started).status_code == 403


# what it tells of itself


def test_page_status_metrics_and_openapi(engine: Engine, url: str) -> None:
    post(url, HI)
    page = get(url).text
    assert "tiny" in page
    assert f"curl -s {url}/v1/chat/completions" in page
    assert "<script" not in page
    assert "src=" not in page
    status = get(f"{url}/status").json()
    assert status["ranks"][0]["name"] == "mac1"
    assert status["served"]["model"] == "tiny"
    assert status["ttft_s"]["p50"] > 0
    metrics = get(f"{url}/metrics").text
    assert 'jaccl_requests_total{route="/v1/chat/completions",status="200"} 1.0' in metrics
    assert 'jaccl_rank_alive{name="mac1",rank="0"} 1.0' in metrics
    assert "jaccl_ttft_seconds_count 1.0" in metrics
    paths = get(f"{url}/openapi.json").json()["paths"]
    assert "requestBody" in paths["/v1/chat/completions"]["post"]
