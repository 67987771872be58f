"""The codec for JSON between processes: frozen dataclasses and tagged unions of them, by their type hints.

Fields and kinds of another version are ignored; each is logged once.
"""

import contextlib
import functools
import json
import logging
import types
import typing
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar


class Tagged(Protocol):
    """A dataclass of a tagged union."""

    KIND: ClassVar[str]  # its tag in JSON


T = TypeVar("T")
M = TypeVar("M", bound=Tagged)
log = logging.getLogger("jaccl_kernel")


def decode(kind: type[T], value: object) -> T:
    """Convert a decoded JSON value to the dataclass `kind`; unknown fields are dropped.

    Raises:
        TypeError, ValueError: a value does not match its type hint, or a required field is missing.
    """
    converted: T = _converter(typing.cast("Any", kind))(value)
    return converted


def dumps(value: object) -> str:
    """A JSON value, which may contain dataclasses, as one line of ASCII JSON."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=vars)


class TaggedUnion(Generic[M]):
    """A union whose members JSON distinguishes by `kind`.

    Members may share a kind: the first one whose required fields are all present is decoded.

    Args:
        members: the dataclasses.
    """

    def __init__(self, members: tuple[type[M], ...]) -> None:
        self.members = members
        self._by_kind: defaultdict[str, list[type[M]]] = defaultdict(list)
        for member in members:
            self._by_kind[member.KIND].append(member)

    def encode(self, member: M) -> dict[str, Any]:
        """The member's kind and fields, for `dumps`."""
        return {"kind": member.KIND, **vars(member)}

    def dumps(self, member: M) -> str:
        """The member as one line of ASCII JSON."""
        return dumps(self.encode(member))

    def loads(self, text: str | bytes) -> M | None:
        """The member in a line of JSON; None if the line is damaged or of another version."""
        try:
            body = json.loads(text)
            return self.decode(str(body.pop("kind")), body)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def decode(self, kind: str, body: dict[str, Any]) -> M | None:
        """The member for these fields; None (logged once) if this version does not know the kind or form."""
        for member in self._by_kind.get(kind, []):
            if _required(member) <= body.keys():
                with contextlib.suppress(TypeError, ValueError):
                    decoded = decode(member, body)
                    if unknown := body.keys() - _converters(member).keys():
                        _log_once(f"ignored unknown fields of {kind!r}: {', '.join(sorted(unknown))}")
                    return decoded
        _log_once(f"ignored {kind!r}: this version of jaccl_kernel does not know it, or not in this form")
        return None


@functools.cache
def _log_once(text: str) -> None:
    log.warning(text)


@functools.cache
def _required(kind: type) -> frozenset[str]:
    return frozenset(
        field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
    )


@functools.cache
def _converter(hint: Any) -> Callable[[Any], Any]:
    """A function that converts a decoded JSON value to this type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (types.UnionType, typing.Union):
        inner = _converter(next(one for one in arguments if one is not types.NoneType))
        optional = types.NoneType in arguments
        return lambda value: None if value is None and optional else inner(value)
    if origin is typing.Literal:
        return functools.partial(_literal, arguments)
    if origin is tuple:
        return functools.partial(_tuple, tuple(map(_converter, arguments[:-1])), arguments[-1])
    if origin is dict:
        return functools.partial(_dict, _converter(arguments[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return functools.partial(_dataclass, hint)
    return functools.partial(_scalar, origin or hint)


def _dataclass(hint: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not {hint.__name__}")
    converters = _converters(hint)
    return hint(**{name: converters[name](item) for name, item in value.items() if name in converters})


@functools.cache
def _converters(kind: type) -> dict[str, Callable[[Any], Any]]:
    hints = typing.get_type_hints(kind)
    return {field.name: _converter(hints[field.name]) for field in fields(kind)}


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} must be one of {', '.join(map(str, choices))}")
    return value


def _tuple(firsts: tuple[Callable[[Any], Any], ...], last: Any, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    if last is Ellipsis:
        return tuple(map(firsts[0], value))
    items = zip((*firsts, _converter(last)), value, strict=True)
    return tuple(convert(item) for convert, item in items)


def _dict(convert: Callable[[Any], Any], value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return {str(key): convert(item) for key, item in value.items()}


def _scalar(hint: type, value: Any) -> Any:
    if type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, hint):  # in Python, True is an int
        raise TypeError(f"{value!r} is not {hint.__name__}")
    return value
