"""Parses the JSON body of a request, with the checks that do not depend on the protocol."""

import json
from typing import Any

from jaccl_kernel.api.errors import ApiError

MAX_DEPTH = 64  # of nested JSON
MAX_VALUES = 1 << 16  # values in a body, besides a prompt of token ids: parsing holds the GIL
MAX_INTEGER_DIGITS = 400


def parse_json(body: bytes, *, tokens: int = 0) -> dict[str, Any]:
    """Return the request's JSON object.

    Args:
        body: the request's body.
        tokens: the longest prompt of token ids, which may add as many values.

    Raises:
        ApiError: 400, with the reason.
    """
    if _many(body, most := MAX_VALUES + tokens):
        raise ApiError(400, f"the body has more than {most} values", code="body_too_complex")
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object")
    _check_text(data)
    return data


def _many(body: bytes, most: int) -> bool:
    """Return whether the body has more than `most` values, without parsing it: a few fast passes in C."""
    if len(body) <= most:
        return False
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 4 * most:  # each value has at most a key and itself in quotes
        return True
    outside = b"".join(plain.split(b'"')[::2])
    return sum(map(outside.count, (b",", b"[", b"{"))) > most


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not allowed")


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"a number with {len(text)} digits is too long")
    return int(text)


def _check_text(value: Any, depth: int = 0) -> None:
    """Reject unpaired surrogates, which no tokenizer accepts, and deep nesting."""
    if depth > MAX_DEPTH:
        raise ApiError(400, "the body is nested too deeply")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ApiError(400, "the body contains an unpaired surrogate") from None
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_text(key, depth + 1)
            _check_text(one, depth + 1)
    elif isinstance(value, list) and not all(type(one) is int for one in value):
        for one in value:
            _check_text(one, depth + 1)
