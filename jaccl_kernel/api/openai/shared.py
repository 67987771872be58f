"""Shared by OpenAI's chat and completion protocols: the fields of a request, and the frame of a response.

OpenAI's fields that a local model cannot support are rejected by name. mlx_lm.server's extensions are
supported.
"""

import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from jaccl_kernel.api.adapter import Adapter, Answer, Event
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import Number, RequestBody, Whole, check_model
from jaccl_kernel.api.templates import Prompt
from jaccl_kernel.inference.request import (
    CallEnd,
    Chunk,
    Finish,
    Prefill,
    Request,
    Sampling,
    TextOptions,
    Token,
    Usage,
)
from jaccl_kernel.inference.text import TokenText, token_text

MAX_STOPS = 16
MAX_STOP = 1024  # characters
GREEDY = 1e-6  # a lower temperature overflows the logits: it selects the most likely token

# OpenAI's fields that this server does not support, with the values that request nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
}


def _few(stops: Any) -> Any:
    """Check the number and lengths first: every choice searches its text for all of them."""
    stops = [stops] if isinstance(stops, str) else stops
    if isinstance(stops, list) and len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
    if isinstance(stops, list) and any(isinstance(one, str) and len(one) > MAX_STOP for one in stops):
        raise ValueError(f"a stop string has at most {MAX_STOP} characters")
    return stops


class StreamOptions(RequestBody):
    """`stream_options`."""

    include_usage: bool = False


class OpenAIRequest(RequestBody):
    """The fields of both routes."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[Whole, Field(ge=-1)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] = 1.0
    repetition_context_size: Annotated[Whole, Field(ge=1, le=1 << 20)] = 20
    xtc_probability: Annotated[Number, Field(ge=0, le=1)] = 0.0
    xtc_threshold: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    logit_bias: dict[str, Annotated[Number, Field(ge=-1000, le=1000)]] = Field(default_factory=dict)
    seed: Whole | None = None
    stop: Annotated[list[str], BeforeValidator(_few)] = Field(default_factory=list)
    n: Annotated[Whole, Field(ge=1)] = 1
    user: Any = None

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings without empty ones."""
        return tuple(one for one in self.stop if one)

    def sampling(self, vocabulary: int, *, seed_offset: int = 0) -> Sampling:
        """Return a sequence's sampling parameters; each further choice of a seeded request has the next seed.

        Raises:
            ApiError: `logit_bias` has an invalid token id.
        """
        return Sampling(
            temperature=self.temperature if self.temperature >= GREEDY else 0.0,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context_size,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            logit_bias=_biases(self.logit_bias, vocabulary),
            seed=None if self.seed is None else (self.seed + seed_offset) % (1 << 64),
        )


def _biases(given: dict[str, float], vocabulary: int) -> dict[int, float]:
    biases = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocabulary):
            raise ApiError(
                400,
                f"logit_bias: {key[:20]!r} is not a token id of this model (0 to {vocabulary - 1})",
                param="logit_bias",
            )
        biases[int(key)] = bias
    return biases


class OpenAIAdapter(Adapter):
    """Shared by both adapters.

    Args:
        body: the validated request.
        model: the served model.
        logprobs: how many log-probabilities to report with each token, or None for none.
    """

    last_bytes = b"data: [DONE]\n\n"
    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self, body: OpenAIRequest, model: ServedModel, *, choices: int, logprobs: int | None
    ) -> None:
        check_model(body.model, model)
        self.streams = body.stream
        self.choices = choices
        self.model = model
        self._body = body
        self._logprobs = logprobs
        self._prompts: list[Prompt] = []
        self._finished: dict[int, Usage] = {}
        self._text: TokenText = token_text(model.tokenizer)
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": str(model.facts.get("fingerprint", "")),
        }

    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """Return the prompts."""

    @abstractmethod
    def limit(self) -> int | None:
        """Return the maximum number of tokens, or None."""

    @abstractmethod
    def text_options(self, prompt: Prompt) -> TextOptions:
        """Return how to convert its tokens to text."""

    @abstractmethod
    def chunk_body(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """Return a choice's part of a chunk."""

    @abstractmethod
    def choice_body(self, index: int, answer: Answer) -> dict[str, Any]:
        """Return a choice's part of the response."""

    @abstractmethod
    def logprobs_body(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return the log-probabilities of tokens."""

    def requests(self) -> list[Request]:
        """See Adapter."""
        self._prompts = self.prompts()
        context, vocabulary = self.model.context, self.model.vocabulary
        limit = self.limit() or context
        return [
            Request(
                prompt.tokens,
                min(limit, context - len(prompt.tokens)),
                self._body.sampling(vocabulary, seed_offset=at),
                self._logprobs,
                prompt.grammar,
                prompt.boundary,
                self.text_options(prompt),
            )
            for prompt in self._prompts
            for at in range(self._body.n)
        ]

    def events(self, index: int, chunk: Chunk) -> Iterator[Event]:
        """See Adapter."""
        if isinstance(chunk, Prefill) or (isinstance(chunk, CallEnd) and self._logprobs is None):
            return
        finish = None
        if isinstance(chunk, Finish):
            finish = chunk.reason
            self._finished[index] = chunk.usage
        choice = self.chunk_body(index, chunk) | {
            "index": index,
            "logprobs": self._logprobs_of(index, chunk.tokens),
            "finish_reason": finish,
        }
        yield self._head | {"object": self.chunk_object, "choices": [choice]}

    def last_events(self) -> Iterator[Event]:
        """Yield the usage if requested."""
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield self._head | {"object": self.chunk_object, "choices": [], **self._usage()}

    def response(self, answers: list[Answer]) -> dict[str, Any]:
        """See Adapter."""
        choices = []
        for index, answer in enumerate(answers):
            assert answer.finish
            self._finished[index] = answer.finish.usage
            choice = {"index": index, "finish_reason": answer.finish.reason}
            choice |= self.choice_body(index, answer)
            choices.append(choice | {"logprobs": self._logprobs_of(index, answer.tokens)})
        return self._head | {"object": self.object, "choices": choices, **self._usage()}

    def _logprobs_of(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return None if self._logprobs is None else self.logprobs_body(index, tokens)

    def _usage(self) -> dict[str, Any]:
        """Return `usage` over all choices (each prompt counts once), and the timings of the first choice."""
        every = [usage for _, usage in sorted(self._finished.items())]
        prompts = every[:: self._body.n]
        prompt = sum(usage.prompt_tokens for usage in prompts)
        answer = sum(usage.generated_tokens for usage in every)
        cached = sum(usage.cached_tokens for usage in every[self._body.n - 1 :: self._body.n])
        return {
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": answer,
                "total_tokens": prompt + answer,
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {
                    "reasoning_tokens": sum(usage.reasoning_tokens for usage in every)
                },
            },
            "timings": _timings(every[0]),
        }


def _timings(usage: Usage) -> dict[str, Any]:
    """Return the timings of a choice: prefill and decode, in tokens, milliseconds and tokens per second."""
    fresh = usage.prompt_tokens - usage.cached_tokens
    prefill_s, decode_s, after = (
        max(usage.prefill_s, 1e-9),
        max(usage.decode_s, 0.0),
        usage.generated_tokens - 1,
    )
    return {
        "queued_ms": round(usage.queued_s * 1e3, 3),
        "cache_n": usage.cached_tokens,
        "prompt_n": fresh,
        "prompt_ms": round(prefill_s * 1e3, 3),
        "prompt_per_second": round(fresh / prefill_s, 3),
        "predicted_n": usage.generated_tokens,
        "predicted_ms": round(decode_s * 1e3, 3),
        "predicted_per_second": round(after / decode_s, 3) if after > 0 and decode_s else None,
    }
