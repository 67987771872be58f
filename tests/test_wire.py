"""The wire between host and ranks: pytest tests/test_wire.py."""

import json

from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.wire import LINE_LIMIT, Assembler, Event, decode_line, encode_event, encode_message

texts = st.text(max_size=200)


@given(rank=st.integers(0, 7), text=texts)
def test_an_event_comes_back_as_it_was_sent(rank: int, text: str) -> None:
    event = Event(rank, "stage", {"name": text}, at=12.5)
    line = encode_event(event)
    assert line.isascii()
    assert "\n" not in line
    assert decode_line(line) == ("", event)


def test_a_terminal_on_the_way_changes_nothing() -> None:
    event = Event(1, "ready", {}, at=1.0)
    assert decode_line(encode_event(event) + "\r\n") == ("", event)


def test_chatter_before_an_event_is_kept_apart() -> None:
    event = Event(0, "done", {}, at=1.0)
    assert decode_line("loading... " + encode_event(event)) == ("loading... ", event)


def test_other_lines_and_damaged_events_are_chatter() -> None:
    whole = encode_event(Event(0, "done", {"n": 1}, at=1.0))
    for line in ["hello", "@@jaccl", whole[:-3], whole.replace('"kind"', '"king"'), "@@jaccl x {}"]:
        assert decode_line(line) == (line, None)


@given(st.dictionaries(texts, texts, max_size=20))
def test_a_message_of_any_length_arrives_whole_in_short_lines(payload: dict[str, str]) -> None:
    lines = encode_message("go", payload=payload, long="x" * 5000)
    assert all(line.isascii() and len(line) < LINE_LIMIT + 20 for line in lines)
    assembler = Assembler()
    *none, message = [assembler.feed(line + "\r\n") for line in lines]
    assert none == [None] * (len(lines) - 1)
    assert message == {"kind": "go", "payload": payload, "long": "x" * 5000}


def test_a_message_with_a_lost_line_is_dropped_and_the_next_one_arrives() -> None:
    lines = encode_message("go", text="x" * 3000)
    assembler = Assembler()
    assert [assembler.feed(line) for line in [lines[0], *lines[2:]]] == [None] * (len(lines) - 1)
    assert assembler.feed("noise") is None
    assert assembler.feed(encode_message("ack")[0]) == {"kind": "ack"}
    assert json.loads(encode_message("ack")[0].split(" ", 1)[1]) == {"kind": "ack"}
