"""Tool calls in each family's own form: free and forced, streamed, in three protocols, and broken ones."""

import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import llguidance
import llguidance.hf
import pytest

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.inference.dialect.detect import dialect_of
from jaccl_kernel.inference.request import CallArguments, CallBegin, Text, TextOptions
from jaccl_kernel.inference.text import Assembler, Part
from tests.api.agents import make_tokenizer
from tests.api.families import FAMILIES, ONE, OTHER, PARAMETERS, TOOL, Family
from tests.api.scripted import EOS, Engine, events, prompt, say, serving

EVERY = pytest.mark.parametrize("name", FAMILIES)
HI: Any = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}


@pytest.fixture(scope="module")
def tokenizer_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def tokenizer(name: str) -> Any:
        if name not in made:
            family = FAMILIES[name]
            markers = family.markers
            if family.thinks[0] == "<think>":
                markers = tuple(dict.fromkeys(("<think>", "</think>", *markers)))
            folder = tmp_path_factory.mktemp("family")
            made[name] = make_tokenizer(tiny_model, folder, family.template(), markers)
        return made[name]

    return tokenizer


@pytest.fixture
def tokenizer(name: str, tokenizer_of: Callable[[str], Any]) -> Any:
    return tokenizer_of(name)


@pytest.fixture
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture
def url(engine: Engine, tokenizer: Any) -> Iterator[str]:
    with serving(engine, ServedModel("tiny", tokenizer, 8000, len(tokenizer) + 2)) as address:
        yield address


def chat(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/chat/completions", json=HI | body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


def called(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """The name and arguments of each call."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


BOTH = [("weather", ONE), ("weather", OTHER)]


@EVERY
def test_the_template_says_which_family_it_is(name: str, tokenizer: Any) -> None:
    assert dialect_of(tokenizer).name.startswith(name)


@EVERY
def test_calls_are_read(engine: Engine, url: str, tokenizer: Any, family: Family) -> None:
    say(engine, tokenizer, family.calls)
    choice = chat(url)
    assert called(choice["message"]) == BOTH
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    if family.ids:
        assert tuple(ids) == family.ids
    if "Mistral" in dialect_of(tokenizer).name:
        assert all(len(one) == 9 and one.isalnum() for one in ids)


@EVERY
def test_reasoning_before_a_call_is_apart_and_blanks_are_no_content(
    engine: Engine, url: str, tokenizer: Any, family: Family
) -> None:
    begin, end = family.thinks
    say(engine, tokenizer, f"{begin}Need it.{end}" + ("" if "channel" in begin else "\n\n") + family.calls)
    message = chat(url)["message"]
    assert (message["reasoning_content"], message["content"]) == ("Need it.", None)
    assert called(message) == BOTH


@EVERY
def test_three_protocols_streamed_and_not_give_the_same_calls(
    engine: Engine, url: str, tokenizer: Any, family: Family
) -> None:
    say(engine, tokenizer, family.calls)
    streamed: dict[int, list[str]] = {}
    for event in events(httpx.post(f"{url}/v1/chat/completions", json=HI | {"stream": True}).text)[:-1]:
        for call in event["choices"][0]["delta"].get("tool_calls", []):
            known = streamed.setdefault(call["index"], ["", ""])
            known[0] += call["function"].get("name", "")
            known[1] += call["function"].get("arguments", "")
    assert [(one, json.loads(two)) for one, two in streamed.values()] == BOTH

    tool = {"type": "function", **TOOL["function"]}
    asked = {"input": "hi", "tools": [tool], "store": False}
    items = httpx.post(f"{url}/v1/responses", json=asked).json()["output"]
    told = events(httpx.post(f"{url}/v1/responses", json=asked | {"stream": True}).text)[-1]["response"]
    for output in (items, told["output"]):
        assert [(one["name"], json.loads(one["arguments"])) for one in output] == BOTH

    tool = {"name": "weather", "input_schema": PARAMETERS}
    asked = {"messages": HI["messages"], "tools": [tool], "max_tokens": 4000}
    blocks = httpx.post(f"{url}/v1/messages", json=asked).json()["content"]
    assert [(one["name"], one["input"]) for one in blocks] == BOTH
    parts: dict[int, str] = {}
    for event in events(httpx.post(f"{url}/v1/messages", json=asked | {"stream": True}).text):
        if event.get("delta", {}).get("type") == "input_json_delta":
            parts[event["index"]] = parts.get(event["index"], "") + event["delta"]["partial_json"]
    assert [json.loads(one) for one in parts.values()] == [ONE, OTHER]


@EVERY
def test_the_second_turn_renders_the_calls_as_the_model_wrote_them(
    engine: Engine, url: str, tokenizer: Any, family: Family
) -> None:
    say(engine, tokenizer, family.calls)
    message = chat(url)["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {number}"}
        for number, call in enumerate(message["tool_calls"])
    ]
    say(engine, tokenizer, "Done." if "channel" not in family.thinks[0] else FINAL + "Done.")
    assert chat(url, messages=[*HI["messages"], message, *results])["message"]["content"] == "Done."
    rendered = prompt(engine, tokenizer)
    assert "Zürich" in rendered or "Z\\u00fcrich" in rendered
    assert rendered.count("weather") >= 3
    assert "result 0" in rendered
    assert "result 1" in rendered
    for given in family.ids:
        assert given in rendered


FINAL = "<|channel|>final<|message|>"
STREAM_WHOLE = ("Gemma", "FunctionGemma", "LFM2", "Llama 4", "Mistral with JSON")


@EVERY
def test_arguments_stream_as_they_are_generated(
    engine: Engine, name: str, tokenizer: Any, family: Family
) -> None:
    if name.startswith(STREAM_WHOLE):
        pytest.skip("its calls are read as a whole")
    parts = assembled(tokenizer, family.calls)
    begun = next(at for at, part in enumerate(parts) if isinstance(part, CallBegin))
    first = [
        part.text for part in parts[begun : parts.index(ended(parts))] if isinstance(part, CallArguments)
    ]
    assert len(first) > 6
    assert json.loads("".join(first)) == ONE


def ended(parts: list[Part]) -> Part:
    return next(part for part in parts if type(part).__name__ == "CallEnd")


def assembled(tokenizer: Any, text: str, **options: Any) -> list[Part]:
    """The parts of a text, token by token."""
    begins = "header" if dialect_of(tokenizer).channels else "normal"
    assembler = Assembler(tokenizer, TextOptions(tools=[TOOL], begins=begins, **options))
    parts: list[Part] = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        parts += assembler.add(token)
        if assembler.stopped:
            return parts
    return parts + assembler.end()


@EVERY
def test_broken_output_is_text_and_never_an_error(
    engine: Engine, url: str, tokenizer: Any, family: Family
) -> None:
    """A text cut anywhere, by its end or by a limit, has whole calls and perhaps a text."""
    for size in range(1, len(family.calls), 11):
        say(engine, tokenizer, family.calls[:size])
        choice = chat(url)
        told = called(choice["message"])
        assert told == BOTH[: len(told)]
        assert choice["finish_reason"] == ("tool_calls" if told else "stop")
    for broken in ("{", "}", '{"name": 5}', "weather", "\n", '{"name": "weather", "arguments": '):
        say(engine, tokenizer, family.calls.replace("weather", broken))
        assert chat(url)["finish_reason"] in ("stop", "tool_calls")
        streamed = httpx.post(f"{url}/v1/chat/completions", json=HI | {"stream": True})
        assert events(streamed.text)[-1] == "[DONE]"


@EVERY
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_follows_its_grammar_in_the_familys_form(
    engine: Engine, url: str, tokenizer: Any, family: Family, choice: Any
) -> None:
    say(engine, tokenizer, family.calls)
    assert called(chat(url, tool_choice=choice)["message"]) == BOTH
    [request] = engine.asked
    assert request.grammar
    assert request.text
    for seed in range(3):
        written = walked(tokenizer, request.grammar, random.Random(seed))
        begins = request.text.begins
        assembler = Assembler(tokenizer, TextOptions(tools=[TOOL], begins=begins))
        parts = [part for token in written for part in assembler.add(token)] + assembler.end()
        text = tokenizer.decode(written)
        assert assembler.called, text
        assert not [part.text for part in parts if isinstance(part, Text) and part.text.strip()], text
        calls = "".join(
            "\n" if isinstance(part, CallBegin) else part.text
            for part in parts
            if isinstance(part, CallBegin | CallArguments)
        ).split("\n")[1:]
        for arguments in calls:
            jsonschema.validate(json.loads(arguments), PARAMETERS)
        if isinstance(choice, dict):
            assert len(calls) == 1


def walked(tokenizer: Any, grammar: str, random: random.Random, most: int = 3000) -> list[int]:
    """Tokens at random that the grammar allows, to its end."""
    vocabulary = llguidance.hf.from_tokenizer(
        tokenizer._tokenizer, n_vocab=len(tokenizer) + 2, eos_token=[EOS]
    )
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    written: list[int] = []
    [printable, marks] = [
        {tokenizer.encode(one, add_special_tokens=False)[0] for one in text}
        for text in (string.printable[:95] + "\n", '"\n<`}]0123456789')
    ]
    closes = [
        tokenizer.encode(one, add_special_tokens=False)
        for one in ("\n</parameter>\n", "</parameter>\n", "</｜DSML｜parameter>\n")
    ]
    while len(written) < most:
        close = random.choice(closes)
        if random.random() < 0.1 and matcher.validate_tokens(close) == len(close):
            matcher.consume_tokens(close)
            written += close
        allowed = [at for at, bit in enumerate(matcher.compute_logit_bias()) if bit]
        assert allowed, matcher.get_error()
        if EOS in allowed and (len(allowed) == 1 or random.random() < 0.5):
            return written
        markers = [token for token in allowed if token > 258]
        plain = [token for token in allowed if token in printable]
        # a marker or a quote ends a text soon
        ends = markers or [token for token in plain if token in marks]
        options = ends if ends and random.random() < 0.4 else plain or [one for one in allowed if one != EOS]
        token = random.choice(options)
        matcher.consume_token(token)
        written.append(token)
    raise AssertionError(f"no end: {tokenizer.decode(written)[:500]}")


@EVERY
def test_a_call_or_a_format(engine: Engine, url: str, tokenizer: Any, family: Family) -> None:
    """`response_format` and tools: the grammar allows a call, or the format, both after the reasoning."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    say(engine, tokenizer, family.calls)
    assert called(chat(url, response_format=format_)["message"]) == BOTH
    [request] = engine.asked
    begin, end = family.thinks
    json_text = (FINAL if "channel" in begin else "") + '{"n":5}'
    good = [json_text, f"{begin}Hm.{end}{json_text}"]
    for text in good:
        assert accepts(tokenizer, request.grammar, text), text
    for text in ("Hello", json_text.replace("5", '"x"')):
        assert not accepts(tokenizer, request.grammar, text), text
    say(engine, tokenizer, good[1])
    message = chat(url, response_format=format_)["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", '{"n":5}')


def accepts(tokenizer: Any, grammar: str | None, text: str) -> bool:
    vocabulary = llguidance.hf.from_tokenizer(
        tokenizer._tokenizer, n_vocab=len(tokenizer) + 2, eos_token=[EOS]
    )
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@EVERY
def test_an_answer_without_a_call_is_text(engine: Engine, url: str, tokenizer: Any, family: Family) -> None:
    begins = FINAL if "channel" in family.thinks[0] else ""
    for text in ("It is sunny.", '{"answer": 4}', "[1, 2]", "call:weather{", "to=functions.weather"):
        say(engine, tokenizer, begins + text)
        choice = chat(url)
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
