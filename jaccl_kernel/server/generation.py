"""What the API asks of the engine, and what comes back: integers and numbers only. No HTTP, no text, no mlx.

The API (app.py, chat.py) turns a request into `Generation`s and the `Step`s of their `Stream`s into text; the
engine (engine.py) runs them in its batch. `submit`, `cancel` and reading a stream belong to the event loop's
thread; the engine's own thread feeds the streams through `Stream.feed`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class ServerError(Exception):
    """A request cannot be served; told to the client as an error of OpenAI's shape.

    Args:
        status: the HTTP status.
        message: one or two sentences for the person who wrote the request.
        kind: OpenAI's `type`, such as "invalid_request_error".
        code: OpenAI's `code`, or None.
        param: the field of the request that it concerns, or None.
        retry_after: seconds after which it may work (429 and 503), or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """`{"error": {…}}`, as OpenAI's API tells errors."""
        return {"error": {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are OpenAI's: temperature 1, the whole distribution.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        top_k: keep so many of the likeliest; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one's probability; 0 keeps all.
        presence_penalty: taken off the logit of every token generated so far.
        frequency_penalty: taken off once per time that it was generated.
        repetition_penalty: divides (multiplies, where negative) the logit of recent tokens; 1 is none.
        repetition_context_size: how many of the last tokens, prompt included, that one looks at.
        xtc_probability: how likely a step leaves out the likeliest choices ("exclude top choices").
        xtc_threshold: those above this probability, save the least likely of them.
        logit_bias: added to the logits of these token ids.
        seed: makes the choice repeatable; None for a fresh one.
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
class Generation:
    """One sequence to generate.

    Args:
        prompt: token ids, at least one, all inside the vocabulary.
        max_tokens: at least 1; prompt and these together fit the context.
        sampling: how each token is chosen.
        top_logprobs: how many of the likeliest tokens to report at each step; None reports no
            log-probabilities at all, 0 only the chosen token's.
        grammar: an llguidance grammar that the tokens must follow, or None.
        boundary: how many of the prompt's tokens the conversation's next turn will begin with for sure (the
            messages without the generation prompt); 0 if unknown.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    grammar: str | None = None
    boundary: int = 0


@dataclass(frozen=True)
class Step:
    """One generated token.

    Args:
        token: its id; an end-of-text token comes as the last step, with `finish` "stop".
        finish: None, "stop" (the model ended) or "length" (max_tokens are reached).
        logprob: the chosen token's log-probability under the model (natural logarithm, before temperature,
            penalties and bias), where asked for.
        top: (id, log-probability) of the likeliest tokens, most likely first.
    """

    token: int
    finish: str | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Stream:
    """The steps of one Generation as they come: `async for step in stream`.

    Ends after the step with `finish`; raises the ServerError that the engine was failed with. Made on the
    event loop that reads it.

    Attributes:
        cached_tokens: how many of the prompt's tokens came from the prompt cache; known at the first step.
        submitted, admitted, first: `time.perf_counter()` when it was handed in, entered the batch, and gave
            its first token; None until then.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.cached_tokens = 0
        self.submitted = time.perf_counter()
        self.admitted: float | None = None
        self.first: float | None = None
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | ServerError] = asyncio.Queue()

    def feed(self, item: Step | ServerError) -> None:
        """Hand on the next step, or the error that ends it. Only on the event loop's thread."""
        if self.first is None and isinstance(item, Step):
            self.first = time.perf_counter()
        self._queue.put_nowait(item)

    def __aiter__(self) -> AsyncIterator[Step]:
        """The steps that are still to come."""
        return self._steps()

    async def _steps(self) -> AsyncIterator[Step]:
        while True:
            item = await self._queue.get()
            if isinstance(item, ServerError):
                raise item
            yield item
            if item.finish:
                return


class Engine(Protocol):
    """What the API needs of the engine. All methods are called on the event loop's thread."""

    def submit(self, generation: Generation) -> Stream:
        """Queue a generation.

        Raises:
            ServerError: 400 it can never fit the memory; 429 the queue is full; 503 not ready, or failed.
        """
        ...

    def cancel(self, stream: Stream) -> None:
        """Its reader is gone: leave the batch at the next step. Harmless after its end."""
        ...

    def status(self) -> dict[str, Any]:
        """What is going on, for /health, /status and /metrics, as JSON-ready numbers and strings.

        Keys: `state` ("starting", "ready", "failed"), `stage` (text: what it is doing, or what died),
        `running`, `queued`, `steps` (since the start), `tokens` (generated), `prompt_tokens`,
        `tokens_per_s` (of the last seconds), `cache` {`entries`, `bytes`, `limit_bytes`, `hit_tokens`,
        `lookup_tokens`}, `memory` {`limit_bytes`, `active_bytes`}, `ranks`: a list of {`rank`, `name`,
        `alive`, `step_ms`, `memory_bytes`, `peak_memory_bytes`}.
        """
        ...


@dataclass(frozen=True)
class Served:
    """What is served: the model as the API knows it, and the limits.

    Args:
        name: the model's id in the API (an alias: clients cannot load or evict anything by naming it).
        tokenizer: mlx-lm's TokenizerWrapper.
        context: tokens that prompt and answer may have together.
        vocabulary: how many token ids there are (the width of the logits).
        created: seconds since the epoch, for /v1/models.
        facts: what the page at `/` tells: model, ranks, sharding, backend, rehearsal.
        boundaries: whether `Generation.boundary` is of use: prompt caches serve as a whole only.
        max_body_bytes: a larger request is refused with 413.
        max_choices: the largest `n`.
        api_key: what clients must send, or None.
        cors_origins: web origins that may call, none by default.
    """

    name: str
    tokenizer: Any
    context: int
    vocabulary: int
    created: int = field(default_factory=lambda: int(time.time()))
    facts: Mapping[str, Any] = field(default_factory=dict)
    boundaries: bool = False
    max_body_bytes: int = 16 << 20
    max_choices: int = 16
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
