"""Converts tokens to text up to the first stop string, split into answer, reasoning and tool calls.

Its input is token ids, its output chunks; knows no protocol and no engine.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.generate import TextStateMachine

from jaccl_kernel.inference.request import Reasoning, Text, TextOptions, ToolCall, ToolCalls

ANSWER, REASONING, TOOL = "normal", "reasoning", "tool"  # mlx-lm's names of the states


Part = Text | Reasoning | ToolCalls


class Assembler:
    """The text of one sequence.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        options: how to convert tokens to text.

    Attributes:
        stopped: a stop string, or the only allowed tool call, is complete: the text has ended.
        stop: the stop string that ended the text, or None.
        called: whether a tool call was made.
        reasoning_tokens: how many tokens were reasoning.
    """

    def __init__(self, tokenizer: Any, options: TextOptions | None = None) -> None:
        options = options or TextOptions()
        self._parallel = options.parallel_calls
        self._stops = sorted(options.stops, key=len, reverse=True)
        self._detokenizer = tokenizer.detokenizer
        self._parser = tokenizer.tool_parser if options.tools and options.split else None
        self._tools = list(options.tools)
        transitions = _transitions(tokenizer, options.stops, tools=bool(self._parser), split=options.split)
        self._state = TextStateMachine(transitions).make_state(options.begins)
        self._tool_text = ""
        self._in_tool = False
        self._blank = ""  # whitespace held back: before a tool call it is not content
        self._blank_allowed = True  # whether the text is at the beginning of a part
        self.stopped = False
        self.stop: str | None = None
        self.called = False
        self.reasoning_tokens = 0

    def add(self, token: int) -> list[Part]:
        """Add a token that is not an end-of-text token. Returns the new parts."""
        if self._state[0] == REASONING:
            self.reasoning_tokens += 1
        try:
            self._detokenizer.add_token(token)
        except (IndexError, KeyError, TypeError):  # an id without text: the logits can exceed the vocabulary
            return []
        return self._split(self._detokenizer.last_segment)

    def end(self, *, cut: bool = False) -> list[Part]:
        """Return the remaining parts. `cut`: the text ended early, at a limit."""
        self._detokenizer.finalize()
        parts = self._split(self._detokenizer.last_segment)
        if not self.stopped:
            self._state, rest, state = TextStateMachine.flush(self._state)
            self._append(parts, state, rest)
        if self._in_tool:
            self._close_tool(parts, broken=cut)
        if self._blank and not self.called:
            parts.append(Text(self._blank))
        self._blank = ""
        return parts

    def _split(self, text: str) -> list[Part]:
        parts: list[Part] = []
        if self._state[0] is None or not text:
            return parts
        given = self._state[3] + text
        self._state, segments = TextStateMachine.split(self._state, text)
        for state, part in segments:
            if state is None:
                self.stopped = True
                read = given[: len(given) - len(self._state[3])]
                self.stop = next((stop for stop in self._stops if read.endswith(stop)), None)
            else:
                self._append(parts, state, part)
            if self.called and not self._parallel:
                self.stopped = True
                break
        return parts

    def _append(self, parts: list[Part], state: str | None, text: str) -> None:
        if self._in_tool and state != TOOL:
            self._close_tool(parts)
        if state == TOOL:
            self._in_tool = True
            self._tool_text += text
            self._blank = ""
        elif state == REASONING:
            if text:
                parts.append(Reasoning(text))
            self._blank, self._blank_allowed = "", True
        elif text:
            text = self._blank + text
            held = bool(self._parser) and self._blank_allowed and text.isspace()
            self._blank = text if held else ""
            if not held:
                parts.append(Text(text))
                self._blank_allowed = False

    def _close_tool(self, parts: list[Part], *, broken: bool = False) -> None:
        """Convert the text between the markers to a call, or to plain text if no parser can read it."""
        text, self._tool_text, self._in_tool = self._tool_text, "", False
        try:
            parsed = self._parser(text, self._tools) if self._parser else []
            calls = [_call(one) for one in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception:  # mlx-lm's parsers raise many types on invalid output
            calls = []
        calls = calls if self._parallel else calls[:1]
        self._blank_allowed = True
        if calls:
            parts.append(ToolCalls(tuple(calls)))
            self.called = True
        elif text and not broken:
            parts.append(Text(text))


def _call(parsed: dict[str, Any]) -> ToolCall:
    """Return a parsed call. Llama writes `parameters` for `arguments`; Kimi and Mistral write own ids."""
    arguments = parsed.get("arguments", parsed.get("parameters"))
    if isinstance(arguments, str):
        text = arguments
    else:
        text = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    name, given = str(parsed["name"]), parsed.get("id")
    return ToolCall(name, text, given) if isinstance(given, str) and given else ToolCall(name, text)


def _transitions(
    tokenizer: Any, stops: Sequence[str], *, tools: bool, split: bool
) -> dict[str, list[tuple[str, str | None]]]:
    """Return mlx-lm's states and transitions; a stop string leads from each state to the end (None)."""
    edges: dict[str, list[tuple[str, str | None]]] = {ANSWER: []}
    if split and tokenizer.has_thinking:
        edges[ANSWER].append((tokenizer.think_start, REASONING))
        edges[REASONING] = [(tokenizer.think_end, ANSWER)]
    if tools:
        formatted = {to for targets in tokenizer.response_transitions.values() for _, to in targets}
        if TOOL not in formatted:
            edges[ANSWER].append((tokenizer.tool_call_start, TOOL))
        if REASONING in edges:  # as mlx-lm does: small models forget to close it
            edges[REASONING].append((tokenizer.tool_call_start, TOOL))
        edges[TOOL] = [(tokenizer.tool_call_end, ANSWER)] if tokenizer.tool_call_end else []
    if split:
        edges[ANSWER] += [(marker, ANSWER) for marker in tokenizer.structural_markers or ()]
        for state, targets in tokenizer.response_transitions.items():
            edges.setdefault(state, []).extend(targets)
    for targets in edges.values():
        targets += [(stop, None) for stop in stops]
    return edges


TokenText = Callable[[int], tuple[str, list[int]]]


def token_text(tokenizer: Any) -> TokenText:
    """Return a function from a token id to its text and bytes, for log-probabilities."""

    def decode(token: int) -> tuple[str, list[int]]:
        text = str(tokenizer.decode([token]))
        return text, list(text.encode("utf-8"))

    return decode
