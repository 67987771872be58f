"""The grammar of a forced call, for each kind of form: JSON, tags, Gemma's notation, Python calls."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.inference.dialect.lark import Lark
from jaccl_kernel.inference.dialect.schema import DEPTH, inside, resolved, types_of

Tool = Mapping[str, Any]
MOST_CALLS = 16  # in one answer
SCALARS = ["number", "boolean", "null"]
PATTERNS = {"{id}": "[a-zA-Z0-9]{9}", "{n}": "[0-9]{1,3}"}  # Mistral's ids, Kimi's numbers


@dataclass(frozen=True)
class Form:
    """How calls are written, for a grammar.

    Args:
        before: the text before a call's arguments; `{name}` is the tool's name, the others are in PATTERNS.
        after: the text after them.
        open: the text before the first call.
        close: the text after the last call.
        between: the text between calls; None if a call cannot follow another.
        bare: whether a call begins without a marker, as JSON of another format may: its text becomes the same
            lexemes, because llguidance reads the longest one.
        arguments: returns the expression of a tool's arguments.
    """

    before: str
    after: str
    arguments: Callable[[Lark, dict[str, Any]], str]
    open: str = ""
    close: str = ""
    between: str | None = ""
    bare: bool = False

    def expression(self, lark: Lark, tools: Sequence[Tool], *, several: bool) -> str:
        """Return the expression of one call of these tools, or of several."""
        call = lark.one_of([self._call(lark, tool["function"]) for tool in tools])
        parts = [lark.literal(self.open)] if self.open else []
        parts.append(call)
        if several and self.between is not None:
            again = f"{lark.literal(self.between)} {call}" if self.between else call
            parts.append(f"({again}){{0,{MOST_CALLS - 1}}}")
        if self.close:
            parts.append(lark.literal(self.close))
        return lark.rule(" ".join(parts))

    def _call(self, lark: Lark, function: Mapping[str, Any]) -> str:
        parts = []
        for part in re.split(r"(\{(?:id|n)\})", self.before.replace("{name}", function["name"])):
            if part in PATTERNS:
                parts.append(lark.regex(PATTERNS[part]))
            else:
                pieces = re.findall(r'"[^"]*"|[^"]', part) if self.bare else [part]
                parts += [lark.literal(piece) for piece in pieces if piece]
        parameters = {"type": "object", **(function.get("parameters") or {})}
        parts.append(self.arguments(lark, parameters))
        if self.after:
            parts.append(lark.literal(self.after))
        return lark.rule(" ".join(parts))


def json_arguments(lark: Lark, parameters: dict[str, Any]) -> str:
    """Return the expression of arguments as a JSON object."""
    return lark.json(parameters)


def tagged_arguments(opening: str, close: str) -> Callable[[Lark, dict[str, Any]], str]:
    """Return a function for arguments in tags.

    Args:
        opening: the text before a value; `{key}` is the argument's name, `{string}` whether it is a text.
        close: the text after it.
    """

    def arguments(lark: Lark, parameters: dict[str, Any]) -> str:
        found = []
        for key, schema, needed in _properties(parameters):
            types = types_of(schema, parameters)
            text = "true" if "string" in types else "false"
            tag = lark.literal(opening.replace("{key}", key).replace("{string}", text))
            one = lark.rule(f"{tag} {_tagged_value(lark, schema, parameters, close)}")
            found.append(one if needed else f"{one}?")
        return " ".join(found) or '""'

    return arguments


def _tagged_value(lark: Lark, schema: Any, root: dict[str, Any], close: str) -> str:
    known = resolved(schema, root)
    choices = _choices(known)
    if choices is not None:
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in choices]
        return f"{lark.one_of([lark.rule(lark.literal(text)) for text in texts])} {lark.literal(close)}"
    if "string" in types_of(schema, root):
        return lark.until(close)
    return f"{lark.json(inside(known, root))} {lark.literal(close)}"


def python_arguments(lark: Lark, parameters: dict[str, Any]) -> str:
    """Return the expression of arguments as Python's keywords, with JSON values."""
    pairs = []
    for key, schema, needed in _properties(parameters):
        value = lark.json(inside(resolved(schema, parameters), parameters))
        pairs.append((lark.rule(f"{lark.literal(key + '=')} {value}"), needed))
    return _listed(lark, pairs, ", ")


def gemma_arguments(quote: str) -> Callable[[Lark, dict[str, Any]], str]:
    """Return a function for arguments in Gemma's notation, with texts between `quote`."""
    return lambda lark, parameters: _Gemma(lark, quote, parameters).object(parameters)


class _Gemma:
    """The expressions of values in Gemma's notation."""

    def __init__(self, lark: Lark, quote: str, root: dict[str, Any]) -> None:
        self._lark = lark
        self._quote = quote
        self._root = root
        self._references: dict[str, str] = {}

    def value(self, schema: Any, depth: int = DEPTH) -> str:
        """Return the expression of a value."""
        lark = self._lark
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if isinstance(reference, str):  # a rule of its own: references may be recursive
            if reference not in self._references:
                self._references[reference] = name = lark.reserve()
                lark.define(name, self.value(resolved(schema, self._root), depth))
            return self._references[reference]
        if not isinstance(schema, dict) or depth == 0:
            return self._any()
        choices = _choices(schema)
        if choices is not None:
            return lark.one_of([lark.rule(self._constant(one)) for one in choices])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return lark.one_of([self.value(one, depth - 1) for one in schema[key]])
        kinds = schema.get("type")
        if not kinds:
            return self.object(schema, depth) if "properties" in schema else self._any()
        return lark.one_of(
            [self._typed(kind, schema, depth) for kind in (kinds if isinstance(kinds, list) else [kinds])]
        )

    def _typed(self, kind: str, schema: dict[str, Any], depth: int) -> str:
        lark = self._lark
        if kind == "string":
            return self._text()
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array":
            item = self.value(schema.get("items", {}), depth - 1)
            return lark.rule(f'"[" ({item} ("," {item})*)? "]"')
        kept: dict[str, Any] = {key: schema[key] for key in ("minimum", "maximum") if key in schema}
        return lark.rule(lark.json(kept | {"type": kind}))

    def object(self, schema: dict[str, Any], depth: int = DEPTH) -> str:
        """Return the expression of an object."""
        lark = self._lark
        pairs = [
            (lark.rule(f"{lark.literal(key + ':')} {self.value(one, depth - 1)}"), needed)
            for key, one, needed in _properties(schema)
        ]
        return lark.rule(f'"{{" {_listed(lark, pairs, ",")} "}}"')

    def _text(self) -> str:
        return self._lark.rule(f"{self._lark.literal(self._quote)} {self._lark.until(self._quote)}")

    def _constant(self, value: Any) -> str:
        text = self._quote + value + self._quote if isinstance(value, str) else json.dumps(value)
        return self._lark.literal(text)

    def _any(self) -> str:
        return self._lark.one_of([self._text(), self._lark.rule(self._lark.json({"type": SCALARS}))])


def _listed(lark: Lark, pairs: Sequence[tuple[str, bool]], separator: str) -> str:
    """Return the expression of a list whose optional members may be absent."""
    between = lark.literal(separator)
    expression = '""'
    # the rest of the list, from the end: with something before it, and without
    after, first = '""', '""'
    for one, needed in reversed(pairs):
        if needed:
            after, first = lark.rule(f"{between} {one} {after}"), lark.rule(f"{one} {after}")
        else:
            after, first = (
                lark.rule(f"{between} {one} {after} | {after}"),
                lark.rule(f"{one} {after} | {first}"),
            )
        expression = first
    return expression


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Return the properties of an object: name, schema, and whether it is required."""
    properties, required = schema.get("properties"), schema.get("required")
    needed = required if isinstance(required, list) else []
    known = properties if isinstance(properties, dict) else {}
    return [(key, one, key in needed) for key, one in known.items()]


def _choices(schema: Any) -> list[Any] | None:
    """Return the only values of a schema, or None."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    choices = schema.get("enum")
    return choices if isinstance(choices, list) and choices else None
