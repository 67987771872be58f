"""The parts of JSON Schema that a call's arguments need: their types, and schemas inside other schemas."""

from collections.abc import Mapping, Sequence
from typing import Any

DEPTH = 20  # of references and unions
NAMES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


def parameters_of(tools: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the schema of a tool's parameters; an empty one for an unknown tool."""
    for tool in tools:
        if tool["function"]["name"] == name:
            return dict(tool["function"].get("parameters") or {})
    return {}


def types_of(schema: Any, root: Mapping[str, Any], depth: int = DEPTH) -> set[str]:
    """Return the names of the types that a schema allows; none if it does not say.

    Args:
        schema: the schema.
        root: the schema that its references point into.
        depth: how many more references and unions to follow.
    """
    schema = resolved(schema, root)
    if not isinstance(schema, dict) or depth == 0:
        return set()
    if (given := schema.get("type")) is not None:
        return {one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)}
    if "const" in schema:
        return {NAMES.get(type(schema["const"]), "")}
    if isinstance(schema.get("enum"), list):
        return {NAMES.get(type(one), "") for one in schema["enum"]}
    types: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        members = schema.get(key)
        for one in members if isinstance(members, list) else ():
            types |= types_of(one, root, depth - 1)
    return types


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """Return the schema that a reference points to; an unknown one for an invalid reference."""
    for _ in range(DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            return schema
        schema = root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part) if isinstance(schema, dict) else None
    return {}


def inside(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of `root` as a schema of its own, whose references still resolve."""
    at = "#/$defs/root"
    if not isinstance(schema, dict):
        return {}
    return dict(_moved(schema, at)) | {"$defs": {"root": _moved(root, at)}}


def _moved(schema: Any, at: str) -> Any:
    """Return a schema for another place, with its references adjusted."""
    if isinstance(schema, list):
        return [_moved(one, at) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, at) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = at + reference[1:]
    return moved
