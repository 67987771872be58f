"""`POST /v1/completions`: OpenAI's text completion protocol."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from jaccl_kernel.api.adapter import Answer
from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError
from jaccl_kernel.api.fields import Whole, validate, whole
from jaccl_kernel.api.openai.shared import UNSUPPORTED, OpenAIAdapter, OpenAIRequest
from jaccl_kernel.api.templates import Prompt, checked, reject_oversized
from jaccl_kernel.inference.request import Chunk, Text, TextOptions, Token

DEFAULT_TOKENS = 16  # OpenAI's default


def _prompt(given: Any) -> Any:
    """Check a prompt, up to the first invalid value.

    Pydantic would try each of the four forms on every value, with an error for each, while no other thread
    runs: a million values ended the server.
    """
    if isinstance(given, list) and given:
        if all(isinstance(one, str) for one in given):
            return given
        if isinstance(given[0], list):
            return [_token_ids(one) for one in given]
        return _token_ids(given)
    if not isinstance(given, str | list):
        raise ValueError(PROMPTS)  # noqa: TRY004  pydantic converts a ValueError
    return given


def _token_ids(given: Any) -> list[int]:
    if not isinstance(given, list):
        raise ValueError(PROMPTS)  # noqa: TRY004  as above
    try:
        return [whole(one) for one in given]
    except ValueError:
        raise ValueError(PROMPTS) from None


PROMPTS = "must be a string, a list of strings, a list of token ids, or a list of such lists"
Prompts = str | list[str] | list[int] | list[list[int]]


class CompletionRequest(OpenAIRequest):
    """The body."""

    prompt: Annotated[Prompts, PlainValidator(_prompt, json_schema_input_type=Prompts)]
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: Whole | None = None

    @model_validator(mode="before")
    @classmethod
    def _logprobs_of_both_kinds(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Accept the chat route's booleans, which some clients send."""
        if isinstance(data.get("logprobs"), bool):
            data = data | {"logprobs": 0 if data["logprobs"] else None}
        return data

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts: texts, or lists of token ids."""
        given: Any = self.prompt
        several = isinstance(given, list) and not all(isinstance(one, int) for one in given)
        return list(given) if several else [given]


class Completions(OpenAIAdapter):
    """The adapter."""

    path = "/v1/completions"
    schema = CompletionRequest
    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, body: dict[str, Any], model: ServedModel) -> None:
        self._completion = completion = validate(CompletionRequest, body, UNSUPPORTED)
        if (completion.best_of or 1) > completion.n:
            raise _unsupported("best_of above n is not supported", "best_of")
        if completion.echo and (completion.stream or completion.logprobs is not None):
            raise _unsupported("echo cannot be combined with stream or logprobs", "echo")
        super().__init__(
            completion, model, choices=len(completion.prompts()) * completion.n, logprobs=completion.logprobs
        )
        self._offsets: dict[int, int] = {}  # choice -> characters sent so far

    def limit(self) -> int | None:
        """See OpenAIAdapter."""
        return self._completion.max_tokens or DEFAULT_TOKENS

    def prompts(self) -> list[Prompt]:
        """See OpenAIAdapter."""
        several, model = self._completion.prompts(), self.model
        texts = (one for one in several if isinstance(one, str))
        reject_oversized(texts, model, "prompt", together=False)
        if not several:
            raise ApiError(400, "prompt: must not be empty", param="prompt")
        encode = model.tokenizer.encode
        tokens = [list(encode(one)) if isinstance(one, str) else list(one) for one in several]
        return [Prompt(checked(one, model, "prompt")) for one in tokens]

    def text_options(self, prompt: Prompt) -> TextOptions:
        """See OpenAIAdapter."""
        return TextOptions(self._completion.stops(), begins=prompt.begins, split=False)

    def chunk_body(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """See OpenAIAdapter."""
        return {"text": chunk.text if isinstance(chunk, Text) else ""}

    def choice_body(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIAdapter."""
        echo = ""
        if self._completion.echo:
            echo = self.model.tokenizer.decode(self._prompts[index // self._completion.n].tokens)
        return {"text": echo + answer.text}

    def logprobs_body(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """See OpenAIAdapter."""
        offset = self._offsets.get(index, 0)
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(self._text(token.id)[0])
        self._offsets[index] = offset
        return {
            "tokens": [self._text(token.id)[0] for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(top)[0]: value for top, value in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _unsupported(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="unsupported_parameter", param=param)
