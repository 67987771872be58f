"""The engine's interface: a request, and chunks of text, reasoning and tool calls.

It separates the engine from the APIs: no HTTP, no terms of a protocol, no mlx. An adapter in api/ converts a
body to requests, and the chunks of their streams to responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ErrorKind = Literal["invalid", "too_long", "queue_full", "not_ready", "failed", "memory_full"]


class RequestError(Exception):
    """The engine cannot serve a request.

    Args:
        kind: "invalid" (unsupported grammar), "too_long" (it cannot fit into memory), "queue_full",
            "not_ready" (still loading, or stopped), "failed" (a rank failed), "memory_full" (ended early).
        message: one or two sentences for the author of the request.
        field: the invalid part of the request ("prompt", "max_tokens", "grammar"), or None.
        retry_after: seconds after which it may work, or None.
    """

    def __init__(
        self, kind: ErrorKind, message: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field
        self.retry_after = retry_after


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. The defaults sample the whole distribution at temperature 1.

    Args:
        temperature: 0 selects the most likely token.
        top_p: keep the most likely tokens that together have this probability; 1 keeps all.
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely token's probability; 0 keeps all.
        presence_penalty: subtracted from the logit of every token generated so far.
        frequency_penalty: subtracted once for each time the token was generated.
        repetition_penalty: divides (multiplies, if negative) the logit of recent tokens; 1 is none.
        repetition_context_size: the number of last tokens, including the prompt, for that penalty.
        xtc_probability: the probability that a step excludes the top choices ("exclude top choices").
        xtc_threshold: those above this probability, except the least likely of them.
        logit_bias: added to the logits of these token ids.
        seed: makes the sampling repeatable; None for a random one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class TextOptions:
    """How to convert generated tokens to text.

    Args:
        stops: strings that end the text and are not part of it.
        tools: definitions of the available tools; without any, tool markers are plain text.
        begins: where the text begins: "normal" or "reasoning" (the prompt may have opened it).
        split: whether to separate reasoning and tool calls from the answer.
        parallel_calls: whether several tool calls are allowed; if not, the first call ends the text.
    """

    stops: Sequence[str] = ()
    tools: Sequence[dict[str, Any]] = ()
    begins: str = "normal"
    split: bool = True
    parallel_calls: bool = True


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Args:
        prompt: token ids, at least one, all inside the vocabulary.
        max_tokens: at least 1; the prompt and these together must fit the context.
        sampling: the sampling parameters.
        top_logprobs: how many of the most likely tokens to report with each token; None reports no
            log-probabilities at all, 0 only the sampled token's.
        grammar: an llguidance grammar that the tokens must follow, or None.
        boundary: how many of the prompt's tokens are a prefix of the conversation's next turn (the messages
            without the generation prompt); 0 if unknown.
        text: how to convert the tokens to text; None for a stream of bare tokens, one chunk each.
        ignore_eos: whether to continue after an end-of-text token, until max_tokens.
        use_cache: whether to read and write the prompt cache.
        progress: whether the stream reports the prefill.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    grammar: str | None = None
    boundary: int = 0
    text: TextOptions | None = None
    ignore_eos: bool = False
    use_cache: bool = True
    progress: bool = False


@dataclass(frozen=True)
class Token:
    """One generated token.

    Args:
        sequence: the number of its sequence in the batch.
        id: its token id; an end-of-text token comes last, with `finish` "stop".
        finish: None, "stop" (the model ended) or "length" (max_tokens are reached).
        logprob: its log-probability under the model (natural logarithm, before temperature, penalties and
            bias), if requested.
        top: (id, log-probability) of the most likely tokens, most likely first.
        at: `time.perf_counter()` when the engine received it.
    """

    sequence: int
    id: int
    finish: str | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    at: float = 0.0


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call of the model."""

    name: str
    arguments: str  # JSON
    id: str


@dataclass(frozen=True)
class Usage:
    """The tokens of a request, and its seconds in the queue, in prefill and in decode."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int  # including an end-of-text token
    reasoning_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float  # after the first token


@dataclass(frozen=True)
class Text:
    """A part of the answer and its tokens; without TextOptions, one token and no text."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Reasoning:
    """A part of the model's reasoning."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class CallBegin:
    """A tool call begins; its arguments follow."""

    id: str
    name: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class CallArguments:
    """A part of the current call's arguments (JSON)."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class CallEnd:
    """The current call has ended.

    Args:
        valid: whether its arguments are complete and valid.
        text: what the model wrote instead of a valid call; "" if a limit cut it.
        tokens: the tokens since the last chunk.
    """

    valid: bool = True
    text: str = ""
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Prefill:
    """Processed prompt tokens, of those that were not in the prompt cache."""

    done: int
    total: int


@dataclass(frozen=True)
class Finish:
    """The last chunk of a stream.

    Args:
        reason: "stop", "length", "tool_calls", or "stopped" (interrupted by the user).
        usage: the request's usage.
        tokens: the tokens without text after the last chunk.
        stop: the stop string that ended the text, or None.
    """

    reason: str
    usage: Usage
    tokens: tuple[Token, ...] = ()
    stop: str | None = None


Chunk = Text | Reasoning | CallBegin | CallArguments | CallEnd | Prefill | Finish
