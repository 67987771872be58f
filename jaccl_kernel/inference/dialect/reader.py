"""Reads tool calls from text as it is generated: the interface, and calls whose arguments are JSON.

A reader receives the text after a family's start marker. It decides itself where the calls end, so that an
end marker inside an argument is a part of the argument.
"""

import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any

from jaccl_kernel.inference.request import CallArguments, CallBegin, CallEnd, Text

LONGEST_HEAD = 400  # characters
Piece = CallBegin | CallArguments | CallEnd | Text


def new_id() -> str:
    """Return the id of a call whose model writes none."""
    return f"call_{uuid.uuid4().hex[:24]}"


class Reader(ABC):
    """Reads one section of calls.

    Args:
        end: the marker after the last call; "" if only the end of the text ends it.
        ids: returns the id of a call without one.

    Attributes:
        ended: whether the section has ended.
        rest: the text after its end.
    """

    def __init__(self, end: str, ids: Callable[[], str]) -> None:
        self._end = end
        self._ids = ids
        self._read = ""  # everything so far, for output that is not a call
        self._buffer = ""
        self._searched = 0  # how much of the buffer has no beginning of a call
        self._calls = 0
        self._open = False
        self.ended = False
        self.rest = ""

    def feed(self, text: str) -> list[Piece]:
        """Read more text."""
        self._read += text
        self._buffer += text
        pieces: list[Piece] = []
        while not self.ended and self._step(pieces):
            pass
        return pieces

    def finish(self, *, cut: bool) -> list[Piece]:
        """Read the end of the text. `cut`: a limit ended it."""
        pieces: list[Piece] = []
        if not self.ended:
            self._close(pieces, cut=cut)
        return pieces

    @abstractmethod
    def _step(self, pieces: list[Piece]) -> bool:
        """Read from the buffer. Returns whether there may be more to read."""

    def _close(self, pieces: list[Piece], *, cut: bool = False, rest: str = "") -> None:
        """End the section: an open call is broken, and a section without calls is text."""
        if self._open:
            self._open = False
            pieces.append(CallEnd(valid=False, text="" if cut else self._read))
        elif not self._calls:
            calls = [] if cut else self._whole(self._read.removesuffix(self._end))
            for name, arguments, given in calls:
                self._begin(pieces, name, given)
                self._add(pieces, arguments)
                self._done(pieces, valid=True)
            if not calls and not cut and self._read:
                pieces.append(Text(self._read))
        self.ended, self.rest = True, rest

    def _whole(self, text: str) -> list[tuple[str, str, str | None]]:
        """Return the calls (name, arguments, id) of a complete section in which no call was found."""
        return json_calls(text)

    def _begin(self, pieces: list[Piece], name: str, given: str | None = None) -> None:
        pieces.append(CallBegin(given or self._ids(), name))
        self._open = True
        self._calls += 1

    @staticmethod
    def _add(pieces: list[Piece], text: str) -> None:
        if text:
            pieces.append(CallArguments(text))

    def _done(self, pieces: list[Piece], *, valid: bool) -> None:
        self._open = False
        pieces.append(CallEnd(valid, "" if valid else self._read))

    def _call(self, head: re.Pattern[str]) -> re.Match[str] | None:
        """Return where the buffer has the beginning of a call; long text is not searched again and again."""
        found = head.search(self._buffer, self._searched)
        self._searched = 0 if found else max(0, len(self._buffer) - LONGEST_HEAD)
        return found

    def _at_end(self) -> int:
        """Return where the buffer has the end marker, or -1."""
        return self._buffer.find(self._end) if self._end else -1


class JsonReader(Reader):
    """Calls that are a head (with a name, perhaps an id) and a JSON value.

    Args:
        head: matches a head; its groups are `name` and perhaps `id`.
        end: see Reader.
        ids: see Reader.
        names: the only valid names; None for any.
        bare: whether there was no start marker, so that text which is no call is returned at once.
    """

    def __init__(
        self,
        head: re.Pattern[str],
        end: str,
        ids: Callable[[], str] = new_id,
        names: Collection[str] | None = None,
        *,
        bare: bool = False,
    ) -> None:
        super().__init__(end, ids)
        self._head = head
        self._names = names
        self._bare = bare
        self._value: JsonObject | None = None

    def _step(self, pieces: list[Piece]) -> bool:
        if self._value:
            text, self._buffer = self._value.feed(self._buffer)
            self._add(pieces, text)
            if not self._value.complete:
                return False
            self._done(pieces, valid=self._value.valid)
            self._value = None
            return bool(self._buffer)
        head = self._call(self._head)
        end = self._at_end()
        if end >= 0 and (head is None or end < head.start()):
            self._close(pieces, rest=self._buffer[end + len(self._end) :])
            return False
        if head is None:
            if self._bare and not self._calls and len(self._buffer) > LONGEST_HEAD:
                self._close(pieces)
            return False
        value = self._buffer[head.end() :]
        if not value or (self._names is not None and head["name"] not in self._names):
            return False
        if value[0] != "{":  # not an object: read it as a whole, at the end
            return False
        self._begin(pieces, head["name"], head.groupdict().get("id"))
        self._value, self._buffer = JsonObject(), value
        return True

    def _whole(self, text: str) -> list[tuple[str, str, str | None]]:
        head = self._head.search(text)
        calls = json_calls(text)
        arguments = _arguments(text[head.end() :]) if head and not calls else None
        if head and arguments is not None:
            calls = [(head["name"], arguments, head.groupdict().get("id"))]
        if self._names is not None:
            calls = [one for one in calls if one[0] in self._names]
        return calls


class JsonObject:
    """Finds the end of a JSON object, and escapes control characters inside its strings.

    Attributes:
        complete: whether the object has ended.
        valid: whether it is valid JSON; known once it is complete.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._string = self._escaped = False
        self._text = ""
        self.complete = self.valid = False

    def feed(self, text: str) -> tuple[str, str]:
        """Read more text. Returns the object's part of it, and the rest."""
        found = []
        used = len(text)
        for at, char in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._string = False
                elif char < " ":
                    char = json.dumps(char)[1:-1]
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            found.append(char)
            if self._depth == 0:
                used, self.complete = at + 1, True
                break
        part = "".join(found)
        self._text += part
        if self.complete:
            self.valid = parsed(self._text) is not None
        return part, text[used:]


def parsed(text: str) -> Any:
    """Return parsed JSON; None if it is invalid (NaN is)."""
    try:
        return json.loads(text, parse_constant=_reject)
    except (ValueError, RecursionError):
        return None


def _reject(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def json_calls(text: str) -> list[tuple[str, str, str | None]]:
    """Return the calls of JSON: an object, or a list of objects, with a name and arguments; else none."""
    given = parsed(text.strip().rstrip(";"))
    calls = []
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, dict):
            return []
        inner = one.get("function")
        if isinstance(inner, dict):
            one = {"id": one.get("id"), **inner}
        name = one.get("name", one.get("tool_name", inner))
        if not isinstance(name, str) or not name:
            return []
        arguments = one.get("arguments", one.get("parameters"))
        given_id = one.get("id")
        calls.append((name, as_arguments(arguments), given_id if isinstance(given_id, str) else None))
    return calls


def _arguments(text: str) -> str | None:
    """Return the arguments at the beginning of a text, or None."""
    try:
        return as_arguments(json.JSONDecoder(strict=False).raw_decode(text.lstrip())[0])
    except (ValueError, RecursionError):
        return None


def as_arguments(value: Any) -> str:
    """Return a call's arguments as JSON: a text as it is, for it may be JSON; none as an empty object."""
    if isinstance(value, str):
        return value
    return json.dumps({} if value is None else value, ensure_ascii=False)
