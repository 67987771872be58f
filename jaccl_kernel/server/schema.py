"""What a request may say: OpenAI's fields and mlx_lm.server's extras, each checked before anything starts.

Every complaint becomes a ServerError that names its field. Fields that OpenAI does not have are ignored;
those that it has and a local model cannot honour are refused by name. Knows limits of form, not the model's.
"""

import json
import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from jaccl_kernel.server.generation import Sampling, ServerError

MAX_STOPS = 16
MAX_DEPTH = 64  # of nested JSON
MAX_INTEGER_DIGITS = 400
GREEDY = 1e-6  # a temperature below this divides logits into infinities: it means the likeliest token

# Fields of OpenAI's API that change the answer in a way that this server cannot, and what they may be all the
# same: values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
    "verbosity": ("medium",),
}


def _number(value: Any) -> Any:
    """A JSON number, not a boolean (which Python takes for one)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")  # noqa: TRY004  pydantic turns a ValueError into its own
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        finite = False
    if not finite:
        raise ValueError("must be a finite number")
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")  # noqa: TRY004  as above
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
Strict = ConfigDict(extra="ignore", strict=True)


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = Strict
    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, data: Any) -> Any:
        return _without_nulls(data) if isinstance(data, dict) else data


class Request(BaseModel):
    """What both routes take."""

    model_config = Strict

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
    stop: list[str] = Field(default_factory=list)
    n: Annotated[Whole, Field(ge=1)] = 1
    user: Any = None

    @model_validator(mode="before")
    @classmethod
    def _as_openai_means_it(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A null is a field that is not there; a single stop is a list of one."""
        data = _without_nulls(data)
        stop = data.get("stop")
        if isinstance(stop, str):
            data["stop"] = [stop]
        return data

    def choices(self) -> int:
        """How many sequences it asks for."""
        return self.n

    def stops(self) -> tuple[str, ...]:
        """The stop strings, without empty ones, which would stop anything."""
        return tuple(one for one in self.stop if one)

    def sampling(self, vocabulary: int, *, seed_offset: int = 0) -> Sampling:
        """The settings of one sequence; each further choice of a seeded request has the next seed.

        Raises:
            ServerError: a logit bias for what is no token.
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


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def limit(self) -> int | None:
        """How many tokens the client wants at most, or None."""
        return self.max_completion_tokens or self.max_tokens

    def report(self) -> int | None:
        """How many log-probabilities to report a token, or None for none at all."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ServerError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: Whole | None = None

    @model_validator(mode="before")
    @classmethod
    def _logprobs_of_both_kinds(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Some clients send the chat route's booleans here."""
        if isinstance(data.get("logprobs"), bool):
            data = data | {"logprobs": 0 if data["logprobs"] else None}
        return data

    def prompts(self) -> list[str | list[int]]:
        """Each of its prompts: a text, or token ids."""
        given: Any = self.prompt
        several = isinstance(given, list) and not all(isinstance(one, int) for one in given)
        return list(given) if several else [given]

    def choices(self) -> int:
        """How many sequences it asks for."""
        return len(self.prompts()) * self.n

    def limit(self) -> int:
        """How many tokens the client wants at most: 16 if it does not say, as OpenAI's."""
        return self.max_tokens or 16


R = TypeVar("R", bound=Request)


def parse_json(body: bytes) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        ServerError: 400, saying what is wrong with it.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ServerError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ServerError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ServerError(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ServerError(400, "the body must be a JSON object")
    _check_text(data)
    return data


def validate(kind: type[R], data: dict[str, Any]) -> R:
    """The request as `kind`.

    Raises:
        ServerError: 400, naming the first field that is wrong, or refused.
    """
    for name, harmless in REFUSED.items():
        if (value := data.get(name)) is not None and value not in harmless:
            raise ServerError(
                400, f"this server cannot honour {name!r}", code="unsupported_parameter", param=name
            )
    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        raise _complaint(error) from None
    if len(request.stop) > MAX_STOPS:
        raise ServerError(400, f"at most {MAX_STOPS} stop strings are taken", param="stop")
    if isinstance(request, CompletionRequest) and (request.best_of or 1) > request.n:
        raise ServerError(
            400, "best_of above n is not supported", code="unsupported_parameter", param="best_of"
        )
    return request


def _complaint(error: ValidationError) -> ServerError:
    first = error.errors(include_url=False, include_context=False)[0]
    # the names of a union's members are pydantic's business
    where = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    param = ".".join(part for part in where if part not in ("str", "int", "float")) or None
    message = first["msg"].removeprefix("Value error, ")
    return ServerError(400, f"{param or 'the body'}: {message[:1].lower()}{message[1:]}", param=param)


def _biases(given: dict[str, float], vocabulary: int) -> dict[int, float]:
    biases = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocabulary):
            raise ServerError(
                400,
                f"logit_bias: {key[:20]!r} is no token id of this model (0 to {vocabulary - 1})",
                param="logit_bias",
            )
        biases[int(key)] = bias
    return biases


def _without_nulls(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not allowed")


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _check_text(value: Any, depth: int = 0) -> None:
    """Refuse what no tokenizer takes: text with half a surrogate pair, and bottomless nesting."""
    if depth > MAX_DEPTH:
        raise ServerError(400, "the body is nested too deeply")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ServerError(400, "the body holds half of a surrogate pair, which is no text") from None
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_text(key, depth + 1)
            _check_text(one, depth + 1)
    elif isinstance(value, list) and not all(type(one) is int for one in value):
        for one in value:
            _check_text(one, depth + 1)
