"""What the commands of `jaccl` share: parameters made from options models, common parameters, the cluster.

`command` turns a function that takes an options model (core/options.py) into one that cyclopts can call: each
field of the model becomes a parameter. The texts of the command line reach the model, which checks them.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.core.declare import Option, Options, describe
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import GROUPS

if TYPE_CHECKING:
    from jaccl_kernel.steps.cluster import Cluster

HostfileArgument = Annotated[Path, Parameter(help="Hostfile")]
OptionalHostfile = Annotated[Path | None, Parameter(help="Hostfile")]
Hosts = Annotated[
    str | None,
    Parameter(name="--hosts", help="ssh names instead of a hostfile, rank 0 first", metavar="A,B,…"),
]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document on stdout")]
Yes = Annotated[bool, Parameter(name="--yes", help="Do not ask for confirmation")]


def command(function: Callable[..., int]) -> Callable[..., int]:
    """Replace each parameter that is an options model by one parameter per field.

    The function's other parameters stay: the first ones become positional, those after `*` are options.
    """
    signature = inspect.signature(function, eval_str=True)
    models: dict[str, type[Options]] = {}
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        if isinstance(one.annotation, type) and issubclass(one.annotation, Options):
            models[one.name] = one.annotation
            parameters += map(_parameter, describe(one.annotation))
        else:
            keyword = one.kind is inspect.Parameter.KEYWORD_ONLY
            parameters.append(one if keyword else one.replace(kind=inspect.Parameter.POSITIONAL_ONLY))
    made = inspect.Signature(sorted(parameters, key=lambda one: one.kind))

    def call(*args: Any, **more: Any) -> int:
        values = dict(made.bind(*args, **more).arguments)
        for name, model in models.items():
            texts = {option.name: values.pop(option.name, None) for option in describe(model)}
            values[name] = model(**{key: text for key, text in texts.items() if text not in (None, False)})
        return function(**values)

    call.__name__ = function.__name__
    call.__doc__ = function.__doc__
    call.__signature__ = made  # type: ignore[attr-defined]  # inspect reads it
    call.__annotations__ = {}
    return call


def _parameter(option: Option) -> inspect.Parameter:
    """One field of a model as a parameter of a command."""
    switch = option.kind == "switch"
    required = option.arg.positional
    more: dict[str, Any] = {"group": group(option.arg.group)} if option.arg.group else {}
    if not required:
        more["name"] = option.flag
    if not switch:
        more["metavar"] = option.metavar
    shown = Parameter(help=option.help, show_default=option.default_text or False, **more)
    kind: Any = bool if switch else list[str] | None if option.listed == "repeated" else str | None
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_ONLY if required else inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else False if switch else None,
        annotation=Annotated[str if required else kind, shown],
    )


@functools.cache
def group(name: str) -> Group:
    """A heading in the help."""
    return Group(name, sort_key=1 + GROUPS.index(name))


def exclusive(**values: Any) -> None:
    """Raise InputError if more than one of these options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in values.items() if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other", fix="Give one of them.")


def open_cluster(hostfile: Path | None, hosts: str | None) -> "tuple[Cluster, terminal.Reporter]":
    """The cluster of a hostfile or of ssh names, and a reporter on stderr; names a rehearsal first.

    Raises:
        InputError: both or neither are given.
    """
    from jaccl_kernel.steps.cluster import Cluster

    if (hostfile is None) == (hosts is None):
        raise InputError(
            "exactly one of HOSTFILE and --hosts is required",
            fix="Give a hostfile, or --hosts mac1.local,mac2.local.",
        )
    cluster = Cluster.read(hostfile) if hostfile else Cluster.named(split_names(hosts or ""))
    return cluster, terminal.reporter_for(cluster.hostfile)


def split_names(text: str) -> list[str]:
    """`"a,b"` as a list of names."""
    return [name.strip() for name in text.split(",")]
