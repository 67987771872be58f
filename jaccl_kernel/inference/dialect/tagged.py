"""Reads tool calls whose arguments have tags (Qwen3-Coder, GLM, MiniMax, Seed-OSS, DeepSeek V3.2).

The text of a string has no quotes, and streams as it is generated. The tool's schema, or the tag itself, says
which arguments are strings.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.inference.dialect.reader import Piece, Reader, new_id, parsed
from jaccl_kernel.inference.dialect.schema import parameters_of, types_of

STRING = {"string"}


@dataclass(frozen=True)
class Tags:
    """The tags of a family.

    Args:
        call: matches the beginning of a call; its group is `name`.
        call_end: the end of a call; the section's end also ends it.
        key: matches the beginning of an argument; its groups are `key` and perhaps `string` ("true" for a
            text, "false" for JSON) or `type`.
        key_end: the end of an argument.
        end: the end of the section.
        newline: whether a value has lines of its own.
    """

    call: re.Pattern[str]
    call_end: str
    key: re.Pattern[str]
    key_end: str
    end: str
    newline: bool = False


class TaggedReader(Reader):
    """Calls with tagged arguments.

    Args:
        tags: the family's tags.
        tools: the available tools.
        ids: see Reader.
    """

    def __init__(
        self, tags: Tags, tools: Sequence[Mapping[str, Any]], ids: Callable[[], str] = new_id
    ) -> None:
        super().__init__(tags.end, ids)
        self._tags = tags
        self._tools = tools
        self._parameters: dict[str, Any] = {}
        self._types: set[str] | None = None  # of the open argument
        self._fresh = False  # whether nothing of the open argument was read
        self._keys = 0

    def _step(self, pieces: list[Piece]) -> bool:
        if self._types is not None:
            return self._value(pieces)
        return self._inside(pieces) if self._open else self._outside(pieces)

    def _outside(self, pieces: list[Piece]) -> bool:
        """Find the next call, or the end of the section."""
        call, end = self._call(self._tags.call), self._at_end()
        if end >= 0 and (call is None or end < call.start()):
            self._close(pieces, rest=self._buffer[end + len(self._end) :])
            return False
        if call is None:
            return False
        self._begin(pieces, call["name"])
        self._parameters = parameters_of(self._tools, call["name"])
        self._keys = 0
        self._buffer = self._buffer[call.end() :]
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        """Find the next argument, or the end of the call."""
        key = self._tags.key.search(self._buffer)
        end = self._buffer.find(self._tags.call_end)
        if end >= 0 and (key is None or end < key.start()):
            self._add(pieces, "}" if self._keys else "{}")
            self._done(pieces, valid=True)
            same = self._tags.call_end == self._end
            self._buffer = self._buffer[end + (0 if same else len(self._tags.call_end)) :]
            return True
        if key is None:
            return False
        self._add(pieces, (", " if self._keys else "{") + json.dumps(key["key"], ensure_ascii=False) + ": ")
        self._keys += 1
        self._types = self._types_of(key)
        self._fresh = True
        if self._types == STRING:
            self._add(pieces, '"')
        self._buffer = self._buffer[key.end() :]
        return True

    def _types_of(self, key: re.Match[str]) -> set[str]:
        groups = key.groupdict()
        if groups.get("string"):
            return STRING if groups["string"] == "true" else {"object"}
        if groups.get("type"):
            return {groups["type"]}
        properties = self._parameters.get("properties")
        known = properties.get(key["key"], {}) if isinstance(properties, dict) else {}
        return types_of(known, self._parameters)

    def _value(self, pieces: list[Piece]) -> bool:
        """Read the open argument's value."""
        if self._fresh and self._tags.newline:
            if not self._buffer:
                return False
            self._buffer = self._buffer.removeprefix("\n")
        self._fresh = False
        close = self._tags.key_end
        end = self._buffer.find(close)
        types = self._types
        assert types is not None
        if end < 0:
            if types == STRING:
                held = _held(self._buffer, ("\n" if self._tags.newline else "") + close, close)
                ready = self._buffer[: len(self._buffer) - held]
                self._add(pieces, json.dumps(ready, ensure_ascii=False)[1:-1])
                self._buffer = self._buffer[len(ready) :]
            return False
        value, self._buffer = self._buffer[:end], self._buffer[end + len(close) :]
        if self._tags.newline:
            value = value.removesuffix("\n")
        if types == STRING:
            self._add(pieces, json.dumps(value, ensure_ascii=False)[1:-1] + '"')
        else:
            self._add(pieces, json.dumps(converted(value, types), ensure_ascii=False))
        self._types = None
        return True


def _held(text: str, *markers: str) -> int:
    """Return how many of the last characters may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for size in range(min(len(marker), len(text)), longest, -1):
            if text.endswith(marker[:size]):
                longest = size
                break
    return longest


def converted(text: str, types: set[str]) -> Any:
    """Return the value of an argument that was written without quotes.

    Args:
        text: the value.
        types: the types that its schema allows; none if it does not say.
    """
    stripped = text.strip()
    value = parsed(stripped)
    if value is None and stripped != "null":
        try:
            value = ast.literal_eval(stripped)  # True, None, {'a': 1}
            json.dumps(value, allow_nan=False)
        except Exception:  # literal_eval raises many types
            return text
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        return int(value)
    if "string" in types and not isinstance(value, str) and not _is_of(value, types):
        return text
    return value


def _is_of(value: Any, types: set[str]) -> bool:
    kinds: dict[str, tuple[type, ...]] = {
        "null": (type(None),),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
        "integer": (int,),
        "number": (int, float),
    }
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, kinds[one]) for one in types if one in kinds)
