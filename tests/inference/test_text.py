"""Tokens become text: however it is cut into tokens, the text is the same, and ends before the first stop."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccl_kernel.inference.request import Text, TextOptions
from jaccl_kernel.inference.text import Assembler, Part


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


def assemble(tokenizer: Any, text: str, *stops: str) -> tuple[list[str], bool]:
    """What each token of a text (and its end) adds, and whether a stop string ended it."""
    assembler = Assembler(tokenizer, TextOptions(stops=stops))
    pieces = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        pieces.append(joined(assembler.add(token)))
        if assembler.stopped:
            return pieces, True
    pieces.append(joined(assembler.end()))
    return pieces, False


def joined(parts: list[Part]) -> str:
    assert all(isinstance(part, Text) for part in parts)
    return "".join(part.text for part in parts if isinstance(part, Text))


LETTERS = st.text("ab\nü🙂", max_size=30)


@settings(max_examples=150)
@given(text=LETTERS, stops=st.lists(st.text("ab\nü🙂", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_where_the_first_stop_is_complete(tokenizer: Any, text: str, stops: list[str]) -> None:
    pieces, stopped = assemble(tokenizer, text, *stops)
    told = "".join(pieces)
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (told, stopped) == (text, False)
        return
    end, negative, _ = min(ends)  # the stop that is complete first; of two, the longer
    assert stopped
    assert told == text[: end + negative]


@settings(max_examples=50)
@given(text=LETTERS)
def test_no_piece_holds_half_a_character(tokenizer: Any, text: str) -> None:
    pieces, _ = assemble(tokenizer, text)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_possible_stop_string_is_delayed_and_sent_at_the_end(tokenizer: Any) -> None:
    pieces, stopped = assemble(tokenizer, "so the en", "end")
    assert not stopped
    assert "".join(pieces[:-1]) == "so the "
    assert pieces[-1] == "en"


def test_broken_utf8_is_replaced_not_raised(tokenizer: Any) -> None:
    assembler = Assembler(tokenizer)
    half = tokenizer.encode("🙂", add_special_tokens=False)[:2]
    told = "".join(joined(assembler.add(token)) for token in half) + joined(assembler.end())
    assert set(told) == {"\ufffd"}
