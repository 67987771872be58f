"""The answer to a prompt, read from its stream of chunks; and the error of a cell on resident ranks.

A server and resident ranks stream the same chunks (OpenAI's), so one reader serves both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaccl_kernel.core.errors import JacclError, JobError

OnWords = Callable[[str, str], None]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        text: the answer's text.
        reasoning: the model's reasoning before the answer, if the model marks it.
        finish: "stop" (complete), "length" (max_tokens), "tool_calls", or "stopped" (by the user).
        prompt_tokens, cached_tokens, tokens: of the prompt, of the prompt in the cache, and of the answer.
        ttft_s: seconds to the first token, or None.
        tokens_per_s: decode rate after the first token, or None.
        tool_calls: the model's tool calls, in OpenAI's format.
        logprobs: of each token, if requested, in OpenAI's format.
        others: the texts of the other choices, if `n` is more than 1.
    """

    text: str
    reasoning: str = ""
    finish: str = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    others: tuple[str, ...] = ()

    def figures(self) -> str:
        """Tokens, rate and TTFT in one line."""
        parts = [f"{self.tokens} tokens"]
        if self.tokens_per_s:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.ttft_s is not None:
            parts.append(f"TTFT {self.ttft_s:.2f} s")
        if self.cached_tokens:
            parts.append(f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens from the cache")
        return ", ".join([*parts, *([self.finish] if self.finish != "stop" else [])])

    def __str__(self) -> str:
        """The answer's text."""
        return self.text

    def __repr__(self) -> str:
        """Its figures: the text has been printed already."""
        return f"<Answer: {self.figures()}>"


@dataclass
class _Choice:
    """One choice so far."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class AnswerReader:
    """Joins the chunks of an answer.

    Args:
        on_words: called with (content, reasoning) of the first choice as they arrive.
    """

    def __init__(self, on_words: OnWords) -> None:
        self._on_words = on_words
        self._began = time.perf_counter()
        self._first: float | None = None
        self._choices: dict[int, _Choice] = {0: _Choice()}
        self._count = 0  # of chunks: about one per token
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk.

        Raises:
            JobError: the chunk is an error.
        """
        if "error" in chunk:
            raise JobError(str(chunk["error"]["message"]))
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings
        for body in chunk["choices"]:
            self._take_choice(body)

    def _take_choice(self, body: dict[str, Any]) -> None:
        index = int(body.get("index", 0))
        choice = self._choices.setdefault(index, _Choice())
        delta = body.get("delta") or {"content": body.get("text")}  # of chat, or of completion
        content, reasoning = delta.get("content") or "", delta.get("reasoning_content") or ""
        choice.text += content
        choice.reasoning += reasoning
        choice.calls += delta.get("tool_calls") or []
        choice.logprobs += _logprobs(body.get("logprobs"))
        choice.finish = body.get("finish_reason") or choice.finish
        if content or reasoning:
            self._first = self._first or time.perf_counter()
            self._count += 1
            if index == 0:
                self._on_words(content, reasoning)

    def answer(self) -> Answer:
        """The answer so far."""
        usage, details = self._usage, self._usage.get("prompt_tokens_details") or {}
        first, *others = [choice for _, choice in sorted(self._choices.items())]
        return Answer(
            first.text,
            first.reasoning,
            first.finish or "stopped",
            usage.get("prompt_tokens", 0),
            details.get("cached_tokens", 0),
            usage.get("completion_tokens", self._count),
            self._first - self._began if self._first else None,
            self._timings.get("predicted_per_second"),
            tuple(first.calls),
            tuple(first.logprobs),
            tuple(choice.text for choice in others),
        )


def _logprobs(body: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A chunk's log-probabilities per token; a completion chunk has them as columns."""
    if not body:
        return []
    if "content" in body:
        return list(body["content"])
    columns = zip(body["tokens"], body["token_logprobs"], body["top_logprobs"], strict=True)
    return [{"token": token, "logprob": value, "top_logprobs": top} for token, value, top in columns]


class CellError(JacclError):
    """A cell raised on a rank; IPython shows that rank's traceback."""

    def __init__(self, rank: int, name: str, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind}: {text}", where=f"rank {rank} ({name})")
        self.rank = rank
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:  # IPython calls this method
        return [*self.traceback.splitlines(), f"first on {self.where}"]
