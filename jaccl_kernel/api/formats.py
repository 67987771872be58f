"""Grammars for an answer: a JSON schema, or a call of one of several tools."""

import json
from typing import Any

from llguidance import LLMatcher

from jaccl_kernel.api.errors import ApiError

MAX_NODES = 5000  # keys and values of a schema; llguidance's time grows with their square
MAX_GRAMMAR = 128 << 10  # characters of a schema, a regular expression or a grammar
MAX_CHOICES = 1024
COMPACT = {"whitespace_flexible": False}  # otherwise a small model fills its answer with whitespace


def json_grammar(schema: dict[str, Any], param: str, *, strict: bool = True) -> str:
    """Return the grammar of JSON that follows a schema.

    Args:
        schema: a JSON schema.
        param: the request's field with it.
        strict: whether a keyword that llguidance cannot enforce is an error; otherwise it is ignored.

    Raises:
        ApiError: 400, it is not a schema, or llguidance does not support it.
    """
    _check_size(schema, param)
    try:
        grammar = str(LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT | {"lenient": not strict}))
        problem = LLMatcher.validate_grammar(grammar)
    except ValueError as error:
        problem = str(error)
    if problem and not problem.startswith("WARNING"):
        raise ApiError(400, f"{param}: this schema is not supported: {problem}", param=param)
    return grammar


def tool_grammar(tools: list[dict[str, Any]]) -> str:
    """Return the grammar of a JSON call of one of these tools.

    Raises:
        ApiError: 400, a tool's parameters are not a schema, or llguidance cannot enforce a `strict` tool's.
    """
    calls, definitions = [], {}
    for number, tool in enumerate(tools):
        function, key = tool["function"], f"parameters{number}"
        parameters = {"type": "object", **(function.get("parameters") or {})}
        definitions[key] = _moved(parameters, f"#/$defs/{key}")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {"$ref": f"#/$defs/{key}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    strict = any(tool["function"].get("strict") for tool in tools)
    return json_grammar(schema | {"$defs": definitions}, "tools", strict=strict)


GUIDES = ("json", "regex", "choice", "grammar")


def guided_grammar(kind: str, value: Any, param: str) -> str:
    """Return the grammar of one of vLLM's kinds of structured output.

    Args:
        kind: one of GUIDES.
        value: a JSON schema (or its text), a regular expression, a list of texts, or a Lark grammar.
        param: the request's field with it.

    Raises:
        ApiError: 400, the value is invalid.
    """
    where = f"{param}.{kind}"
    try:
        if kind == "json":
            schema = json.loads(value) if isinstance(value, str) else value
            return json_grammar(schema, where, strict=False)
        _check_size(value, where, MAX_CHOICES if kind == "choice" else MAX_NODES)
        if kind == "choice":
            value = "start: " + " | ".join(json.dumps(str(one), ensure_ascii=False) for one in value)
        make = LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark
        grammar = str(make(value))
        problem = LLMatcher.validate_grammar(grammar)
    except (ValueError, TypeError) as error:
        problem = str(error)
    if problem and not problem.startswith("WARNING"):
        raise ApiError(400, f"{where}: not supported: {problem}", param=where)
    return grammar


def _check_size(given: Any, param: str, most: int = MAX_NODES) -> None:
    """Reject what would take llguidance long to compile.

    Raises:
        ApiError: 400.
    """
    nodes, characters, rest = 0, 0, [given]
    while rest:
        one = rest.pop()
        nodes += 1
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, dict):
            rest += [*one, *one.values()]
        elif isinstance(one, list):
            rest += one
        if nodes + len(rest) > most or characters > MAX_GRAMMAR:
            raise ApiError(
                400,
                f"{param}: too large: at most {most} keys and values, and {MAX_GRAMMAR} characters",
                param=param,
            )


def _moved(schema: Any, root: str) -> Any:
    """Return a schema for embedding at `root` of another schema, with its references adjusted."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved
