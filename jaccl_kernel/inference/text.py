"""Converts tokens to text up to the first stop string, split into answer, reasoning and tool calls.

Its input is token ids, its output chunks; knows no protocol and no engine. How a family of models writes its
calls is in dialect/.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.generate import TextStateMachine

from jaccl_kernel.inference.dialect.detect import dialect_of, thinking
from jaccl_kernel.inference.dialect.reader import Piece, Reader
from jaccl_kernel.inference.request import (
    CallArguments,
    CallBegin,
    CallEnd,
    Reasoning,
    Text,
    TextOptions,
)

ANSWER, REASONING, TOOL = "normal", "reasoning", "tool"  # mlx-lm's names of the states
HEADER = "header"  # of a message of gpt-oss: its channel, and the tool that it calls
HEADER_END = "<|message|>"


Part = Text | Reasoning | CallBegin | CallArguments | CallEnd


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
        dialect = dialect_of(tokenizer)
        self._parallel = options.parallel_calls
        self._stops = sorted(options.stops, key=len, reverse=True)
        self._detokenizer = tokenizer.detokenizer
        self._tools = list(options.tools)
        self._read = dialect.read if options.tools and options.split else None
        self._bare = dialect.bare if self._read else ""
        self._machine = TextStateMachine(
            _transitions(tokenizer, options.stops, tools=bool(self._read), split=options.split)
        )
        self._state = self._machine.make_state(options.begins)
        self._reader: Reader | None = None  # of the calls that are open
        self._header = ""
        self._channel = ANSWER  # of the current message of gpt-oss
        self._blank = ""  # whitespace held back: before a tool call it is not content
        self._blank_allowed = True  # whether the text is at the beginning of a part
        self.stopped = False
        self.stop: str | None = None
        self.called = False
        self.reasoning_tokens = 0

    def add(self, token: int) -> list[Part]:
        """Add a token that is not an end-of-text token. Returns the new parts."""
        if REASONING in (self._state[0], self._channel):
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
        self._close_reader(parts, cut=cut)
        if self._header and not cut:
            parts.append(Text(self._header))
        if self._blank and not self.called:
            parts.append(Text(self._blank))
        self._blank = ""
        return parts

    def _split(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text and self._state[0] is not None and not self.stopped:
            given = self._state[3] + text
            self._state, segments = TextStateMachine.split(self._state, text)
            text = ""
            for state, part in segments:
                if state is None:
                    self.stopped = True
                    read = given[: len(given) - len(self._state[3])]
                    self.stop = next((stop for stop in self._stops if read.endswith(stop)), None)
                    self._close_reader(parts, cut=self.stop is not None)
                else:
                    text = self._append(parts, state, part)
                if self.stopped:
                    break
            if self._state[0] == TOOL and self._reader is None:  # the calls have ended
                text += self._state[3]
                self._state = self._machine.make_state(ANSWER)
        return parts

    def _append(self, parts: list[Part], state: str | None, text: str) -> str:
        """Append the text of a state. Returns the text after the end of tool calls."""
        if state in (REASONING, HEADER):
            self._close_reader(parts)
        if state == HEADER:
            self._header += text
            self._channel = ANSWER
            return ""
        if self._header:
            self._open_channel(parts)
        if state == TOOL or self._reader:
            return self._read_call(parts, text)
        if REASONING in (state, self._channel):
            if text:
                parts.append(Reasoning(text))
            self._blank, self._blank_allowed = "", True
        elif text:
            text = self._blank + text
            begins = self._blank_allowed and text.lstrip()[:1]
            if self._bare and begins and begins in self._bare:
                return self._read_call(parts, text.lstrip())
            held = bool(self._read) and self._blank_allowed and text.isspace()
            self._blank = text if held else ""
            if not held:
                parts.append(Text(text))
                self._blank_allowed = False
        return ""

    def _open_channel(self, parts: list[Part]) -> None:
        """Begin a message of gpt-oss: its header says what it is."""
        header, self._header = self._header, ""
        if self._read and "to=functions." in header:
            self._read_call(parts, header + HEADER_END)
        elif "analysis" in header:
            self._channel = REASONING

    def _read_call(self, parts: list[Part], text: str) -> str:
        """Read the text of tool calls. Returns the text after their end."""
        assert self._read
        self._blank = ""
        self._reader = reader = self._reader or self._read(self._tools)
        self._take(parts, reader.feed(text))
        if not reader.ended:
            return ""
        self._reader = None
        return reader.rest

    def _close_reader(self, parts: list[Part], *, cut: bool = False) -> None:
        reader, self._reader = self._reader, None
        if reader:
            self._take(parts, reader.finish(cut=cut))

    def _take(self, parts: list[Part], pieces: Sequence[Piece]) -> None:
        """Append the pieces of a reader, up to the only allowed call."""
        for piece in pieces:
            if self.called and not self._parallel:
                break
            parts.append(piece)
            self._blank_allowed = isinstance(piece, CallEnd)
            if isinstance(piece, CallEnd) and piece.valid:
                self.called = True
                self.stopped = self.stopped or not self._parallel


def _transitions(
    tokenizer: Any, stops: Sequence[str], *, tools: bool, split: bool
) -> dict[str, list[tuple[str, str | None]]]:
    """Return mlx-lm's states and transitions; a stop string leads from each state to the end (None)."""
    dialect, markers = dialect_of(tokenizer), thinking(tokenizer)
    edges: dict[str, list[tuple[str, str | None]]] = {ANSWER: []}
    if split and dialect.channels:
        edges[HEADER] = [(HEADER_END, ANSWER)]
        edges[ANSWER] = [("<|end|>", HEADER), ("<|start|>", HEADER), ("<|call|>", None), ("<|return|>", None)]
    elif split and markers:
        edges[ANSWER].append((markers[0], REASONING))
        edges[REASONING] = [(markers[1], ANSWER)]
    if tools and not dialect.channels:
        edges[TOOL] = []
        formatted = {to for targets in tokenizer.response_transitions.values() for _, to in targets}
        for start in dialect.starts:
            if TOOL not in formatted:
                edges[ANSWER].append((start, TOOL))
            if REASONING in edges:  # as mlx-lm does: small models forget to close it
                edges[REASONING].append((start, TOOL))
    if split:
        edges[ANSWER] += [(marker, ANSWER) for marker in tokenizer.structural_markers or ()]
        edges[ANSWER] += [(marker, ANSWER) for marker in dialect.silent]
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
