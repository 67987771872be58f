"""OpenAI's response shapes, whole and in chunks, for both routes. Plain dictionaries; no HTTP, no engine."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from jaccl_kernel.server.answer import Choice, Delta
from jaccl_kernel.server.generation import Served, Step
from jaccl_kernel.server.text import Piece, TokenText, token_text


class Shapes:
    """One request's responses.

    Args:
        served: the model.
        chat: whether this is the chat route.
        report: whether log-probabilities were asked for.
    """

    def __init__(self, served: Served, *, chat: bool, report: bool) -> None:
        self.chat = chat
        self._report = report
        self._text: TokenText = token_text(served.tokenizer)
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": str(served.facts.get("fingerprint", "")),
        }
        self._calls: dict[int, int] = {}  # choice -> tool calls told so far
        self._offsets: dict[int, int] = {}  # choice -> characters told so far

    def chunk(self, choice: Choice, delta: Delta, *, first: bool) -> dict[str, Any]:
        """One chunk of a stream."""
        if self.chat:
            told: dict[str, Any] = {"delta": self._delta(choice, delta.piece, first=first)}
        else:
            told = {"text": delta.piece.content}
        told |= {
            "index": choice.index,
            "logprobs": self._logprobs(choice, delta),
            "finish_reason": delta.finish,
        }
        return self._head | {"object": self._object(stream=True), "choices": [told]}

    def last_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The chunk after all others, with the usage and no choice."""
        return self._head | {"object": self._object(stream=True), "choices": [], **_accounts(choices)}

    def whole(
        self, choices: Sequence[Choice], deltas: Sequence[Delta], echoes: Sequence[str]
    ) -> dict[str, Any]:
        """The response of a request that did not stream; each choice's deltas joined into one."""
        told = []
        for choice, delta, echo in zip(choices, deltas, echoes, strict=True):
            one: dict[str, Any] = {"index": choice.index, "finish_reason": delta.finish}
            if self.chat:
                one["message"] = _message(delta.piece)
            else:
                one["text"] = echo + delta.piece.content
            one["logprobs"] = self._logprobs(choice, delta)
            told.append(one)
        return self._head | {"object": self._object(stream=False), "choices": told, **_accounts(choices)}

    def _object(self, *, stream: bool) -> str:
        if not self.chat:
            return "text_completion"
        return "chat.completion.chunk" if stream else "chat.completion"

    def _delta(self, choice: Choice, piece: Piece, *, first: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
        if piece.content:
            delta["content"] = piece.content
        if piece.reasoning:
            delta |= {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
        if piece.calls:
            start = self._calls.get(choice.index, 0)
            self._calls[choice.index] = start + len(piece.calls)
            delta["tool_calls"] = [{"index": at, **_call(call)} for at, call in enumerate(piece.calls, start)]
        return delta

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any] | None:
        if not self._report:
            return None
        if self.chat:
            return {"content": [self._token(step) for step in delta.steps], "refusal": None}
        offset = self._offsets.get(choice.index, 0)
        offsets = []
        for step in delta.steps:
            offsets.append(offset)
            offset += len(self._text(step.token)[0])
        self._offsets[choice.index] = offset
        return {
            "tokens": [self._text(step.token)[0] for step in delta.steps],
            "token_logprobs": [step.logprob for step in delta.steps],
            "top_logprobs": [
                {self._text(token)[0]: value for token, value in step.top} for step in delta.steps
            ],
            "text_offset": offsets,
        }

    def _token(self, step: Step) -> dict[str, Any]:
        def told(token: int, logprob: float | None) -> dict[str, Any]:
            text, raw = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": raw}

        return told(step.token, step.logprob) | {"top_logprobs": [told(*one) for one in step.top]}


def _message(piece: Piece) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.content or None, "refusal": None}
    if not piece.calls:
        message["content"] = piece.content
    else:
        message["tool_calls"] = [_call(call) for call in piece.calls]
    if piece.reasoning:
        message |= {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
    return message


def _call(call: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _accounts(choices: Sequence[Choice]) -> dict[str, Any]:
    """`usage` over all choices (a prompt counts once, whatever its choices), and the first's timings."""
    prompts = {id(choice.stream.generation.prompt): choice for choice in choices}
    prompt = sum(len(one.stream.generation.prompt) for one in prompts.values())
    cached = sum(one.stream.cached_tokens for one in prompts.values())
    answer = sum(one.tokens for one in choices)
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "reasoning_tokens": sum(one.assembler.reasoning_tokens for one in choices)
            },
        },
        "timings": choices[0].timings(),
    }
