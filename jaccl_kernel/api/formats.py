"""Grammars for an answer: a JSON schema, or a call of one of several tools."""

import json
import re
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher

from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.inference.dialect.detect import dialect_of, thinking
from jaccl_kernel.inference.dialect.lark import COMPACT, Lark

MAX_NODES = 5000  # keys and values of a schema; llguidance's time grows with their square
MAX_GRAMMAR = 128 << 10  # characters of a schema, a regular expression or a grammar
MAX_CHOICES = 1024


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


def unenforced(schema: dict[str, Any], param: str) -> str:
    """Return the keywords of a valid schema that llguidance cannot enforce; "" for none.

    Raises:
        ApiError: 400, it is too large.
    """
    _check_size(schema, param)
    try:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    except ValueError:  # the grammar of the answer reports it
        return ""
    if not problem or problem.startswith("WARNING"):
        return ""
    named = re.search(r"Unimplemented keys: \[(.*?)\]", problem)
    return named[1].replace('"', "") if named else " ".join(problem.split())[:200]


def answer_grammar(
    tokenizer: Any,
    form: str | None,
    tools: Sequence[dict[str, Any]],
    begins: str,
    *,
    several: bool,
    must_call: bool,
) -> str:
    """Return the grammar of an answer: reasoning if any, then calls of tools or a format.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        form: the grammar of the format, or None.
        tools: the tools that may be called.
        begins: where the answer begins: "normal", "reasoning", "header", or "answer" without reasoning.
        several: whether several calls are allowed.
        must_call: whether the answer must be a call.

    Raises:
        ApiError: 400, a tool's parameters are not a schema, or llguidance cannot enforce a `strict` tool's.
    """
    _check_size([tool["function"].get("parameters") for tool in tools], "tools")
    dialect, markers = dialect_of(tokenizer), thinking(tokenizer)
    strict = any(tool["function"].get("strict") for tool in tools)
    lark = Lark(tokenizer, strict=strict)
    answers = []
    if tools and dialect.form:
        answers.append(dialect.form.expression(lark, tools, several=several))
    if form and not must_call:
        answers.append("@format")
        if dialect.channels and begins == "header":
            answers[-1] = lark.rule(f"{lark.literal('<|channel|>final<|message|>')} @format")
    start = lark.one_of(answers)
    if markers and begins == "reasoning":
        start = f"{lark.until(markers[1])} {start}"
    elif markers and (begins == "normal" or begins == "header"):
        after = lark.literal("<|start|>assistant") if dialect.channels else ""
        reasoning = f"{lark.literal(markers[0])} {lark.until(markers[1])} {after}"
        start = f"({reasoning})? {start}"
    grammars = [{"lark_grammar": lark.grammar(start)}]
    if form and not must_call:
        grammars.append({**_one_grammar(form), "name": "format"})
    grammar = json.dumps({"grammars": grammars})
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        raise ApiError(400, f"tools: this schema is not supported: {problem}", param="tools")
    return grammar


def _one_grammar(form: str) -> dict[str, Any]:
    """Return a grammar as a part of another."""
    if form.startswith("{"):
        parts: list[dict[str, Any]] = json.loads(form)["grammars"]
        return parts[0]
    return {"lark_grammar": form}


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
