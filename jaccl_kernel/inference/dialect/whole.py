"""Reads tool calls that can only be read as a whole: Gemma's notation, Python calls, and mlx-lm's parsers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_lm.tool_parsers import pythonic

from jaccl_kernel.inference.dialect.reader import Piece, Reader, as_arguments, new_id

Call = tuple[str, str, str | None]  # name, arguments (JSON), id
Parse = Callable[[str], list[Call]]


class WholeReader(Reader):
    """Calls that a function parses, once the section is complete.

    Args:
        parse: returns the calls of a section; raises any exception if it has none.
        end: see Reader.
        quote: the delimiter of texts, in which an end marker does not count.
        ids: see Reader.
        bare: whether there was no start marker, so that long text is returned.
    """

    def __init__(self, parse: Parse, end: str, quote: str = "", ids: Callable[[], str] = new_id) -> None:
        super().__init__(end, ids)
        self._parse = parse
        self._quote = quote

    def _step(self, pieces: list[Piece]) -> bool:
        at = self._at_end()
        while at >= 0 and self._quote and self._buffer.count(self._quote, 0, at) % 2:
            at = self._buffer.find(self._end, at + 1)
        if at >= 0:
            self._read = self._buffer[:at]
            self._close(pieces, rest=self._buffer[at + len(self._end) :])
        return False

    def _whole(self, text: str) -> list[Call]:
        try:
            return self._parse(text)
        except Exception:  # parsers raise many types on invalid output
            return []


def library_calls(parser: Callable[..., Any], tools: Sequence[Mapping[str, Any]]) -> Parse:
    """Return a function that parses calls with one of mlx-lm's parsers."""

    def parse(text: str) -> list[Call]:
        given = parser(text, list(tools))
        calls = []
        for one in given if isinstance(given, list) else [given]:
            arguments = one.get("arguments", one.get("parameters"))
            given_id = one.get("id")
            calls.append(
                (str(one["name"]), as_arguments(arguments), given_id if isinstance(given_id, str) else None)
            )
        return calls

    return parse


def python_calls(tools: Sequence[Mapping[str, Any]]) -> Parse:
    """Return a function that parses a list of Python calls of these tools."""
    names = {tool["function"]["name"] for tool in tools}
    parse = library_calls(pythonic.parse_tool_call, tools)

    def offered(text: str) -> list[Call]:
        calls = parse(text)
        return calls if all(call[0] in names for call in calls) else []

    return offered


def gemma_calls(quote: str) -> Parse:
    """Return a function that parses Gemma's notation: `call:name{key:value}`, texts between `quote`."""

    def parse(text: str) -> list[Call]:
        calls: list[Call] = []
        at = text.index("call:")
        while at >= 0:
            begin = text.index("{", at)
            value, end = _Notation(text, quote).value(begin)
            calls.append((text[at + len("call:") : begin].strip(), as_arguments(value), None))
            at = text.find("call:", end)
        return calls

    return parse


class _Notation:
    """A parser of Gemma's notation; each method returns a value and the position after it."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote

    def value(self, at: int) -> tuple[Any, int]:
        at = self._blank(at)
        if self._text.startswith(self._quote, at):
            begin = at + len(self._quote)
            end = self._text.index(self._quote, begin)
            return self._text[begin:end], end + len(self._quote)
        if self._text[at] == "{":
            return self._object(at + 1)
        if self._text[at] == "[":
            return self._array(at + 1)
        if self._text[at] == '"':  # JSON, which the models also write
            value, end = json.JSONDecoder(strict=False).raw_decode(self._text, at)
            return value, end
        end = at
        while self._text[end] not in ",]}":
            end += 1
        word = self._text[at:end].strip()
        try:
            return json.loads(word), end
        except ValueError:
            return word, end

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while self._text[at := self._blank(at)] != "}":
            if self._text.startswith(self._quote, at) or self._text[at] == '"':
                key, at = self.value(at)
                colon = self._text.index(":", at)
            else:
                colon = self._text.index(":", at)
                key = self._text[at:colon].strip()
            found[str(key)], at = self.value(colon + 1)
            at = self._separator(at, "}")
        return found, at + 1

    def _array(self, at: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while self._text[at := self._blank(at)] != "]":
            value, at = self.value(at)
            found.append(value)
            at = self._separator(at, "]")
        return found, at + 1

    def _separator(self, at: int, end: str) -> int:
        at = self._blank(at)
        if self._text[at] == ",":
            return at + 1
        if self._text[at] != end:
            raise ValueError(f"expected , or {end} at {at}")
        return at

    def _blank(self, at: int) -> int:
        while self._text[at] in " \n\t":
            at += 1
        return at
