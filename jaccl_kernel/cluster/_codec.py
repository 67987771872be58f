"""JSON back into frozen dataclasses, by their own type hints; the way out is `dataclasses.asdict`."""

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def decode(kind: type[T], value: object) -> T:
    """`value`, as JSON gave it, as that dataclass; fields that it does not know are dropped.

    Raises:
        TypeError, ValueError: a value is not what its hint asks for, or a required one is missing.
    """
    return typing.cast("T", _shaped(kind, value))


def _shaped(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        return _shaped(next(argument for argument in arguments if argument is not types.NoneType), value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _shaped(arguments[1], item) for key, item in value.items()}
    if is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        known = {f.name: _shaped(hints[f.name], value[f.name]) for f in fields(hint) if f.name in value}
        return typing.cast("type", hint)(**known)
    return _scalar(origin or hint, value)


def _tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_shaped(arguments[0], item) for item in value)
    return tuple(_shaped(argument, item) for argument, item in zip(arguments, value, strict=True))


def _scalar(hint: type, value: Any) -> Any:
    if isinstance(value, bool) and hint is not bool:  # to Python, True is an int
        raise TypeError(f"{value!r} is not {hint.__name__}")
    if hint is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, hint):
        raise TypeError(f"{value!r} is not {hint.__name__}")
    return value
