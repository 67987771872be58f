"""Tokens become text: however it is cut into tokens, the text is the same, and ends before the first stop."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccl_kernel.server.text import Assembler, Piece


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny_model)


def assemble(tokenizer: Any, text: str, **settings: Any) -> tuple[list[Piece], bool]:
    """The pieces of a text that comes token by token, and whether a stop ended it."""
    assembler = Assembler(tokenizer, **settings)
    pieces = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        pieces.append(assembler.add(token))
        if pieces[-1].stopped:
            return pieces, True
    pieces.append(assembler.end())
    return pieces, False


LETTERS = st.text("ab\nü🙂", max_size=30)


@settings(max_examples=150, deadline=None)
@given(text=LETTERS, stops=st.lists(st.text("ab\nü🙂", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_where_the_first_stop_is_complete(tokenizer: Any, text: str, stops: list[str]) -> None:
    pieces, stopped = assemble(tokenizer, text, stops=stops)
    told = "".join(piece.content for piece in pieces)
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (told, stopped) == (text, False)
        return
    end, negative, _ = min(ends)  # the stop that is complete first; of two, the longer
    assert stopped
    assert told == text[: end + negative]


@settings(max_examples=50, deadline=None)
@given(text=LETTERS)
def test_no_piece_holds_half_a_character(tokenizer: Any, text: str) -> None:
    pieces, _ = assemble(tokenizer, text)
    assert "".join(piece.content for piece in pieces) == text
    assert all("\ufffd" not in piece.content for piece in pieces)


def test_what_might_become_a_stop_is_held_back_and_told_at_the_end(tokenizer: Any) -> None:
    pieces, stopped = assemble(tokenizer, "so the en", stops=["end"])
    assert not stopped
    assert "".join(piece.content for piece in pieces[:-1]) == "so the "
    assert pieces[-1].content == "en"


def test_broken_utf8_is_replaced_not_raised(tokenizer: Any) -> None:
    assembler = Assembler(tokenizer)
    half = tokenizer.encode("🙂", add_special_tokens=False)[:2]
    told = "".join(assembler.add(token).content for token in half) + assembler.end().content
    assert set(told) == {"\ufffd"}
