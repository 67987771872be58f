"""The line formats between host and ranks (events up, messages down), and the codec of both."""

import json
import logging
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccl_kernel.core import codec
from jaccl_kernel.core.events import (
    Done,
    Event,
    Exited,
    Hello,
    Ready,
    Restarting,
    ServerStopped,
    Serving,
    SmokeResult,
    Stage,
    Unknown,
    WireEvent,
    decode_line,
    encode_event,
)
from jaccl_kernel.core.messages import (
    LINE_LIMIT,
    Ack,
    Go,
    Message,
    MessageReader,
    Payload,
    ServeFacts,
    TemporaryFiles,
    WireMessage,
    encode_message,
)
from jaccl_kernel.core.results import Reference
from jaccl_kernel.launch.records import RECORDS

texts = st.text(max_size=200)
EVENTS = typing.get_args(WireEvent)
MESSAGES = typing.get_args(WireMessage)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    bool: st.booleans(),
    int: st.integers(-(1 << 60), 1 << 60),
    float: st.floats(allow_nan=False, allow_infinity=False),
    types.NoneType: st.none(),
    Any: st.none() | st.booleans() | texts | st.lists(st.integers(), max_size=3),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, as the fields of the unions' members declare it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(texts, values(arguments[1]), max_size=3)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        of_fields = {field.name: values(hints[field.name]) for field in fields(hint)}
        return st.builds(typing.cast("type", hint), **of_fields)
    return SCALARS[hint]


def read(lines: list[str]) -> list[Message]:
    reader = MessageReader()
    return [message for line in lines if (message := reader.feed(line))]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> typing.Iterator[pytest.LogCaptureFixture]:
    codec._log_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield caplog


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rank=st.integers(0, 7))
def test_an_event_of_any_class_is_decoded_as_it_was_sent(
    kind: type[Any], data: st.DataObject, rank: int
) -> None:
    event = Event(rank, data.draw(values(kind)), at=12.5)
    line = encode_event(event)
    assert line.isascii()
    assert "\n" not in line
    assert decode_line(line) == ("", event)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_message_of_any_class_arrives_through_a_terminal(kind: type[Any], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    lines = encode_message(message)
    assert all(line.isascii() and len(line) < LINE_LIMIT + 20 for line in lines)
    assert read([line + "\r\n" for line in lines]) == [message]


@pytest.mark.parametrize("kind", RECORDS.members, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_record_of_any_class_is_read_as_it_was_written(kind: type[Any], data: st.DataObject) -> None:
    record = data.draw(values(kind))
    assert RECORDS.loads(RECORDS.dumps(record)) == record


@pytest.mark.parametrize("kind", [*EVENTS, *MESSAGES, *RECORDS.members], ids=lambda kind: kind.__name__)
def test_every_member_has_a_kind_and_no_field_that_hides_it(kind: type[Any]) -> None:
    assert kind.KIND
    assert not {"kind", "at"} & {field.name for field in fields(kind)}
    assert kind.__doc__


# lines that the version before wrote, and the events that they must stay
BEFORE = {
    '{"kind":"hello","at":1.0,"pid":77,"log":null}': Hello(77),
    '{"kind":"stage","at":1.0,"name":"load","text":"tiny","fraction":null}': Stage("load", "tiny"),
    '{"kind":"stage","at":1.0,"name":"load","text":"1 GB","fraction":1}': Stage("load", "1 GB", 1.0),
    '{"kind":"ready","at":1.0,"rank_of":2,"host":"m","machine":"arm64","chip":"M3","system":"macOS 26",'
    '"build":"x","python":"3.12","packages":{"mlx":"0.32.3","mlx-lm":null}}': Ready(
        2, "m", "arm64", "M3", "macOS 26", "x", "3.12", {"mlx": "0.32.3", "mlx-lm": None}
    ),
    '{"kind":"result","at":1.0,"latency_s":null,"size":1}': SmokeResult(None, 1),
    '{"kind":"serving","at":1.0,"url":"http://h:1","model":"m","context":9,"load_s":0.5}': Serving(
        "http://h:1", "m", 9, 0.5
    ),
    '{"kind":"restart","at":1.0,"in_s":1,"number":2}': Restarting(1.0, 2),
    '{"kind":"stopped","at":1.0}': ServerStopped(),
    '{"kind":"done","at":1.0,"returncode":0}': Done(0),
    '{"kind":"exit","at":1.0,"returncode":-9}': Exited(-9),
}


@pytest.mark.parametrize(("line", "body"), BEFORE.items(), ids=lambda one: type(one).__name__)
def test_a_line_of_the_version_before_is_still_decoded(line: str, body: Any) -> None:
    assert decode_line(f"@@jaccl 1 {line}") == ("", Event(1, body, 1.0))


def test_a_message_of_the_version_before_is_still_decoded() -> None:
    serve = '{"api_key":"k","names":["a"],"facts":{"rehearsal":true}}'
    go = f'{{"kind":"go","join_deadline":60.0,"payload":{serve}}}'
    assert read([f">1/2 {go[:40]}", f">2/2 {go[40:]}"]) == [
        Go(60.0, Payload(api_key="k", names=("a",), facts=ServeFacts(rehearsal=True)))
    ]
    bench = '{"kind":"go","join_deadline":60,"payload":{"reference":{"tokens":[1,2],"top":[[3],[4]]}}}'
    assert read([f">1/1 {bench}"]) == [Go(60.0, Payload(Reference((1, 2), ((3,), (4,)))))]
    empty = '{"kind":"go","join_deadline":60,"payload":{}}'
    assert read([f">1/1 {empty}"]) == [Go(60.0)]
    assert read(['>1/1 {"kind":"litter","paths":["/tmp/x"]}']) == [TemporaryFiles(("/tmp/x",))]


def test_output_before_an_event_is_separated() -> None:
    event = Event(0, Done(), at=1.0)
    assert decode_line("loading... " + encode_event(event)) == ("loading... ", event)


def test_other_lines_and_damaged_events_are_output() -> None:
    line = encode_event(Event(0, Done(), at=1.0))
    for damaged in ["hello", "@@jaccl", line[:-3], line.replace('"kind"', '"king"'), "@@jaccl x {}"]:
        assert decode_line(damaged) == (damaged, None)


@pytest.mark.parametrize(
    "content",
    [
        '{"kind":"teleport","at":1.0,"to":"mac2"}',
        '{"kind":"joined","at":1.0}',
        '{"kind":"exit","at":1.0,"returncode":"x"}',
    ],
    ids=["kind", "missing field", "type"],
)
def test_an_event_of_another_version_is_kept_as_it_is_and_logged_once(
    content: str, logged: pytest.LogCaptureFixture
) -> None:
    line = f"@@jaccl 0 {content}"
    for _ in range(3):
        output, event = decode_line(line)
        assert output == ""
        assert event
        assert isinstance(event.body, Unknown)
        assert encode_event(event) == line
    assert len(logged.records) == 1


def test_an_unknown_field_is_ignored_and_logged_once(logged: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert decode_line('@@jaccl 0 {"kind":"done","at":1.0,"returncode":3,"mood":"good"}') == (
            "",
            Event(0, Done(3), 1.0),
        )
    assert [record.getMessage() for record in logged.records] == ["ignored unknown fields of 'done': mood"]


def test_an_unknown_or_damaged_message_is_ignored(logged: pytest.LogCaptureFixture) -> None:
    for line in [
        '{"kind":"dance"}',
        '{"kind":"dance"}',
        '{"kind":"go"}',
        "[]",
        "7",
        "{",
        '{"join_deadline":1}',
    ]:
        assert read([f">1/1 {line}"]) == []
    assert len(logged.records) == 2, "one for the kind, one for the missing field"


def test_a_message_with_a_lost_line_is_dropped_and_the_next_one_arrives() -> None:
    lines = encode_message(TemporaryFiles(("x" * 3000,)))
    assert len(lines) > 3
    assert read([lines[0], *lines[2:], "noise", *encode_message(Ack())]) == [Ack()]
    assert json.loads(encode_message(Ack())[0].split(" ", 1)[1]) == {"kind": "ack"}


def test_members_of_one_kind_are_distinguished_by_their_required_fields() -> None:
    @dataclass(frozen=True)
    class Short(Message):
        KIND = "same"
        a: int

    @dataclass(frozen=True)
    class Long(Message):
        KIND = "same"
        b: int
        a: int = 0

    union: codec.TaggedUnion[Message] = codec.TaggedUnion((Long, Short))
    assert union.decode("same", {"a": 1}) == Short(1)
    assert union.decode("same", {"a": 1, "b": 2}) == Long(2, 1)
