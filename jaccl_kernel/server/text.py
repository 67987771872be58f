"""Generated tokens become text: whole characters, cut at the first stop string, told apart by what they are.

That is the answer, the model's reasoning, and its tool calls. Fed with token ids, it returns pieces; knows no
HTTP and no engine.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.generate import TextStateMachine

ANSWER, REASONING, TOOL = "normal", "reasoning", "tool"  # mlx-lm's names of the states


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made."""

    name: str
    arguments: str  # JSON
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass
class Piece:
    """What one token (or the end) adds."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    stopped: bool = False  # a stop string is complete: nothing follows

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class Assembler:
    """One sequence's text as it comes.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        stops: strings that end the text, wherever in it; they are not part of it.
        tools: the tools that the client offered; without any, tool markers are plain text.
        begins: the state in which the text begins: a template may have opened the reasoning or a call.
        sort: whether reasoning and tool calls are told apart from the answer at all.
        parallel: whether more than one tool may be called; if not, the first call ends the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stops: Sequence[str] = (),
        tools: Sequence[dict[str, Any]] = (),
        begins: str = ANSWER,
        sort: bool = True,
        parallel: bool = True,
    ) -> None:
        self._parallel = parallel
        self._detokenizer = tokenizer.detokenizer
        self._parser = tokenizer.tool_parser if tools and sort else None
        self._tools = list(tools)
        transitions = _transitions(tokenizer, stops, tools=bool(self._parser), sort=sort)
        self._state = TextStateMachine(transitions).make_state(begins)
        self._tool_text = ""
        self._in_tool = False
        self.called = False  # whether a tool call was made
        self.reasoning_tokens = 0

    def add(self, token: int) -> Piece:
        """Take a token that is not the end of text."""
        if self._state[0] == REASONING:
            self.reasoning_tokens += 1
        try:
            self._detokenizer.add_token(token)
        except (IndexError, KeyError, TypeError):  # an id without a text: the logits can be wider than the
            return Piece()  # tokenizer
        return self._take(self._detokenizer.last_segment)

    def end(self, *, cut: bool = False) -> Piece:
        """No token follows: what was held back. `cut`: the text broke off at a limit."""
        self._detokenizer.finalize()
        piece = self._take(self._detokenizer.last_segment)
        if not piece.stopped:
            self._state, rest, state = TextStateMachine.flush(self._state)
            self._sort(piece, state, rest)
        if self._in_tool:
            self._close_tool(piece, broken=cut)
        return piece

    def _take(self, text: str) -> Piece:
        piece = Piece()
        if self._state[0] is None or not text:
            return piece
        self._state, segments = TextStateMachine.split(self._state, text)
        for state, part in segments:
            if state is None:
                piece.stopped = True
            else:
                self._sort(piece, state, part)
            if self.called and not self._parallel:
                piece.stopped = True
                break
        return piece

    def _sort(self, piece: Piece, state: str | None, text: str) -> None:
        if self._in_tool and state != TOOL:
            self._close_tool(piece)
        if state == TOOL:
            self._in_tool = True
            self._tool_text += text
        elif state == REASONING:
            piece.reasoning += text
        else:
            piece.content += text

    def _close_tool(self, piece: Piece, *, broken: bool = False) -> None:
        """The text between the markers is whole: it is a call, or if no parser makes sense of it, text."""
        text, self._tool_text, self._in_tool = self._tool_text, "", False
        try:
            parsed = self._parser(text, self._tools) if self._parser else []
            calls = [_call(one) for one in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception:  # mlx-lm's parsers raise whatever their model's odd output makes them raise
            calls = []
        calls = calls if self._parallel else calls[:1]
        if not calls and not broken:
            piece.content += text
        piece.calls += calls
        self.called |= bool(calls)


def _call(parsed: dict[str, Any]) -> ToolCall:
    arguments = parsed.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(parsed["name"]), text)


def _transitions(
    tokenizer: Any, stops: Sequence[str], *, tools: bool, sort: bool
) -> dict[str, list[tuple[str, str | None]]]:
    """mlx-lm's states and what leads from one to another; a stop string leads to the end (None) from each."""
    edges: dict[str, list[tuple[str, str | None]]] = {ANSWER: []}
    if sort and tokenizer.has_thinking:
        edges[ANSWER].append((tokenizer.think_start, REASONING))
        edges[REASONING] = [(tokenizer.think_end, ANSWER)]
    if tools:
        formatted = {to for targets in tokenizer.response_transitions.values() for _, to in targets}
        if TOOL not in formatted:
            edges[ANSWER].append((tokenizer.tool_call_start, TOOL))
        if REASONING in edges:  # as mlx-lm does: small models forget to close it
            edges[REASONING].append((tokenizer.tool_call_start, TOOL))
        edges[TOOL] = [(tokenizer.tool_call_end, ANSWER)] if tokenizer.tool_call_end else []
    if sort:
        edges[ANSWER] += [(marker, ANSWER) for marker in tokenizer.structural_markers or ()]
        for state, targets in tokenizer.response_transitions.items():
            edges.setdefault(state, []).extend(targets)
    for targets in edges.values():
        targets += [(stop, None) for stop in stops]
    return edges


TokenText = Callable[[int], tuple[str, list[int]]]


def token_text(tokenizer: Any) -> TokenText:
    """A function from a token id to its own text and bytes, for log-probabilities."""

    def told(token: int) -> tuple[str, list[int]]:
        text = str(tokenizer.decode([token]))
        return text, list(text.encode("utf-8"))

    return told
