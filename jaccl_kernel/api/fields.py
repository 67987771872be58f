"""What the fields of all protocols share: number types, the base of a body, its errors, and text parts.

Each error names its field. Unknown fields are ignored; a null is the same as an absent field.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from jaccl_kernel.api.config import ServedModel
from jaccl_kernel.api.errors import ApiError

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def _number(value: Any) -> Any:
    """Return a JSON number; rejects a boolean, which is an int in Python."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")  # noqa: TRY004  pydantic converts a ValueError
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        finite = False
    if not finite:
        raise ValueError("must be a finite number")
    return value


def whole(value: Any) -> Any:
    """Return a JSON integer, also one written as 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be an integer")  # noqa: TRY004  as above
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(whole)]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
MAX_ITEMS = 4096  # of a list or an object in a field; pydantic checks all of them before other threads run
MAX_MESSAGES = 10_000
LENGTHS = {"messages": MAX_MESSAGES, "input": MAX_MESSAGES, "prompt": None}  # prompt: has its own check


class RequestBody(BaseModel):
    """A JSON object of a request. Unknown fields are ignored; a null, or a limit of -1, is no field."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key in cls.model_fields:
            value, most = data.get(key), LENGTHS.get(key, MAX_ITEMS)
            if most and isinstance(value, list | dict) and len(value) > most:
                raise ApiError(400, f"{key}: at most {most} items are allowed (got {len(value)})", param=key)
        return {
            key: value
            for key, value in data.items()
            if value is not None and not (key in LIMITS and value == -1)
        }


M = TypeVar("M", bound=RequestBody)


def validate(kind: type[M], data: dict[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> M:
    """Return the body as `kind`.

    Args:
        kind: the model of the body.
        data: the request's JSON object.
        unsupported: fields that are rejected, with the values that request nothing.

    Raises:
        ApiError: 400, with the first invalid or unsupported field.
    """
    for name, harmless in unsupported.items():
        if (value := data.get(name)) is not None and value not in harmless:
            raise ApiError(
                400, f"{name}: not supported by this server", code="unsupported_parameter", param=name
            )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None


def text_of(content: Any, where: str, separator: str = "") -> str:
    """Return the text of a message's content: a string, or a list of text parts.

    Args:
        content: of any protocol; None has an empty text.
        where: its field, for error messages.
        separator: between parts.

    Raises:
        ApiError: 400, a part is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, f"{where}: must be a string or a list of parts", param=where)
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(text, str):
            raise ApiError(
                400,
                f"{where}.{at}: unsupported part type {str(kind)[:60]!r}: this model supports only text",
                code="unsupported_content",
                param=where,
            )
        texts.append(text)
    return separator.join(texts)


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    # without the names of a union's members
    where = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    param = ".".join(part for part in where if part not in ("str", "int", "float")) or None
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {message[:1].lower()}{message[1:]}", param=param)


def check_model(name: str | None, model: ServedModel) -> None:
    """Reject a request for another model.

    Raises:
        ApiError: 404.
    """
    if name not in (None, "", "default", model.name) and not model.any_name:
        raise ApiError(
            404,
            f"unknown model {str(name)[:100]!r}: this server serves {model.name!r} (--any-model accepts any)",
            code="model_not_found",
            param="model",
        )
