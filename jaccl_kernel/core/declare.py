"""Makes command lines, checks and descriptions from one declaration: the fields of an `Options` model.

An option is an annotated field: its type, bounds and help are pydantic's, and `Arg` adds what a command line
and a form show. `describe` lists the options, `to_argv` and `from_argv` write and read a command line.
core/options.py has the models.
"""

import argparse
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from jaccl_kernel.core.errors import InputError

M = TypeVar("M", bound="Options")
Kind = Literal["switch", "integer", "number", "text"]
_NOUNS = {"integer": "a whole number", "number": "a number", "text": "a text"}


@dataclass(frozen=True)
class Arg:
    """How a field appears on a command line and in a form.

    Args:
        positional: whether `jaccl` takes the value without the option's name.
        flag: the option, if it is not the field's name.
        metavar: the placeholder of its value.
        group: the heading in the help; "" for the general one.
        label: the label in a form, if it is not the field's name.
        default: what no value means, if the default is None.
        placeholder: an example in an empty box of a form.
        rows: the height of its box in a form, in lines.
    """

    positional: bool = False
    flag: str = ""
    metavar: str = ""
    group: str = ""
    label: str = ""
    default: str = ""
    placeholder: str = ""
    rows: int = 1


class Options(BaseModel):
    """The options of one operation: immutable, and checked when they are made.

    Raises:
        InputError: a value is invalid, or an option is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    if not TYPE_CHECKING:  # pydantic's own signature is the typed one

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _input_error(type(self), error) from None

    def replace(self, **changes: Any) -> Self:
        """These options with other values, checked again."""
        return type(self)(**dict(self) | changes)


@dataclass(frozen=True)
class Option:
    """One option, as its field declares it.

    Args:
        name: the field's name.
        kind: of one value.
        listed: "" for one value; "repeated" (`--env A=1 --env B=2`) or "commas" (`--ranks 1,2`) for several.
        optional: whether None is a value.
        choices: the valid texts, or ().
        low, high: the bounds, or None.
        above: whether a value has to be more than `low`.
        default: the value if none is given.
        help: one line, a noun or a sentence without a full stop.
        arg: see Arg.
    """

    name: str
    kind: Kind
    listed: str
    optional: bool
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    above: bool
    default: Any
    help: str
    arg: Arg

    @property
    def flag(self) -> str:
        """The option on a command line."""
        return self.arg.flag or f"--{self.name.replace('_', '-')}"

    @property
    def label(self) -> str:
        """The label in a form."""
        return self.arg.label or self.name.replace("_", " ").capitalize()

    @property
    def metavar(self) -> str:
        """The placeholder of its value."""
        names = {"integer": "N", "number": "X", "text": "|".join(self.choices) or "TEXT"}
        return self.arg.metavar or names.get(self.kind, "")

    @property
    def default_text(self) -> str:
        """The default in words, or ""."""
        if self.arg.default or self.default in (None, False, (), {}):
            return self.arg.default
        return _plain(self.default)

    def valid(self) -> str:
        """The valid values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        noun = "whole numbers with commas" if self.listed == "commas" else _NOUNS.get(self.kind, "no value")
        if self.low is None:
            return noun
        if self.high is not None:
            return f"{noun} from {_plain(self.low)} to {_plain(self.high)}"
        return f"{noun}, {'more than' if self.above else 'at least'} {_plain(self.low)}"


@cache
def describe(model: type[Options]) -> tuple[Option, ...]:
    """The options of a model, in the order of its fields."""
    return tuple(_option(name, field) for name, field in model.model_fields.items())


def to_argv(options: Options, program: type[Options] | None = None) -> tuple[str, ...]:
    """The command line of the options that differ from their defaults.

    Args:
        options: the values.
        program: the model that the program parses; None for the options' own.
    """
    words: list[str] = []
    for option in describe(program or type(options)):
        value = getattr(options, option.name)
        if value is None or value == option.default:
            continue
        if option.kind == "switch":
            words.append(option.flag)
        elif option.listed == "commas":
            words.append(f"{option.flag}={','.join(map(str, value))}")
        elif isinstance(value, Mapping):
            words += [f"{option.flag}={key}={one}" for key, one in value.items()]
        elif option.listed:
            words += [f"{option.flag}={one}" for one in value]
        else:
            words.append(f"{option.flag}={value}")
    return tuple(words)


def from_argv(model: type[M], argv: Sequence[str], *, prog: str, need: Sequence[str] = ()) -> M:
    """Parse a program's command line; `--help` and a wrong word end it, as argparse does.

    Args:
        model: the options.
        argv: the words after the program's name.
        prog: the program's name, for its help.
        need: names of options that have to be given.

    Raises:
        InputError: a value is invalid.
    """
    parser = argparse.ArgumentParser(prog=prog, description=model.__doc__, allow_abbrev=False)
    for option in describe(model):
        shown = f"{option.help} (default: {option.default_text})" if option.default_text else option.help
        more: dict[str, Any] = {"action": "store_true"}
        if option.kind != "switch":
            action = "append" if option.listed == "repeated" else "store"
            more = {"action": action, "metavar": option.metavar, "required": option.name in need}
        parser.add_argument(
            option.flag, dest=option.name, default=argparse.SUPPRESS, help=shown.replace("%", "%%"), **more
        )
    return model(**vars(parser.parse_args(list(argv))))


def _option(name: str, field: FieldInfo) -> Option:
    hint, optional = _without_none(field.annotation)
    arg = next((one for one in field.metadata if isinstance(one, Arg)), Arg())
    bounds = list(field.metadata)
    origin, inner = get_origin(hint), get_args(hint)
    listed = ""
    if origin in (tuple, dict):
        hint, *rest = get_args(inner[0]) or (inner[0],)
        bounds += [part for one in rest for part in getattr(one, "metadata", [one])]
        listed = "commas" if hint is int else "repeated"
    choices = tuple(map(str, inner)) if origin is Literal else ()
    kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number"}
    low = [(getattr(one, key), key) for one in bounds for key in ("ge", "gt") if hasattr(one, key)]
    high = [one.le for one in bounds if hasattr(one, "le")]
    return Option(
        name=name,
        kind=kinds.get(hint, "text"),
        listed=listed,
        optional=optional,
        choices=choices,
        low=low[0][0] if low else None,
        high=high[0] if high else None,
        above=bool(low) and low[0][1] == "gt",
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        help=field.description or "",
        arg=arg,
    )


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [one for one in get_args(hint) if one is not type(None)]
    return kinds[0], len(kinds) < len(get_args(hint))


def _input_error(model: type[Options], error: ValidationError) -> InputError:
    """Our form of pydantic's first complaint."""
    found = error.errors()[0]
    name = str(found["loc"][0]) if found["loc"] else ""
    option = next((one for one in describe(model) if one.name == name), None)
    if option is None:
        known = ", ".join(one.name for one in describe(model))
        return InputError(f"there is no option {name!r}", fix=f"The options are: {known}.")
    if found["type"] == "missing":
        return InputError(f"{option.flag} is required", fix=f"Give {option.valid()}.")
    context = found.get("ctx", {})
    rule = {
        "greater_than_equal": f"must be at least {_plain(context.get('ge'))}",
        "greater_than": f"must be more than {_plain(context.get('gt'))}",
        "less_than_equal": f"must be at most {_plain(context.get('le'))}",
        "value_error": str(context.get("error")),
    }.get(found["type"], f"must be {option.valid()}")
    value = found["input"]
    shown = repr(value) if isinstance(value, str) and not _is_number(value) else value
    return InputError(f"{option.flag} {rule} (got {shown})", fix=f"Use {option.valid()}.")


def _plain(value: Any) -> str:
    """A number without an exponent or a trailing `.0`; any other value as text."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").replace(".", "", 1).isdigit()
