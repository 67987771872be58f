"""The module that stands for `mlx.core`: `shapes.py`'s operations, ways to make arrays, and placeholders.

Placeholders let mlx-lm's modules be imported, which mention much of mlx that loading a model does not use.
"""

from collections.abc import Callable
from math import ceil, inf, pi
from types import ModuleType, SimpleNamespace
from typing import Any

from jaccl_kernel.models.shape_ops import norm
from jaccl_kernel.models.shapes import DTYPES, OPERATIONS, Array, Dtype, Unsupported, make, type_of

FLOAT32 = DTYPES["float32"]


def _same(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _same


def _filled(default: Dtype) -> Callable[..., Array]:
    def filled(shape: Any, dtype: Dtype | None = None, **_: Any) -> Array:
        return make([shape] if isinstance(shape, int) else shape, dtype or default)

    return filled


def _full(shape: Any, value: Any, dtype: Dtype | None = None, **_: Any) -> Array:
    return make([shape] if isinstance(shape, int) else shape, dtype or type_of(value))


def _arange(*bounds: Any, dtype: Dtype | None = None, **named: Any) -> Array:
    start, stop, step = named.get("start", 0), named.get("stop", 0), named.get("step", 1)
    if len(bounds) == 1:
        stop = bounds[0]
    elif bounds:
        start, stop, step = (*bounds, step)[:3]
    kind = FLOAT32 if any(isinstance(value, float) for value in (start, stop, step)) else DTYPES["int32"]
    return make((max(0, ceil((stop - start) / step)),), dtype or kind)


def _random(*_: Any, shape: Any = (), dtype: Dtype | None = None, **__: Any) -> Array:
    return make([shape] if isinstance(shape, int) else shape, dtype or FLOAT32)


def _normal(shape: Any = (), dtype: Dtype | None = None, *_: Any, **__: Any) -> Array:
    return make(shape, dtype or FLOAT32)


class Missing:
    """A name of `mlx.core` that is not here: it can be mentioned, not used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raise Unsupported."""
        raise Unsupported(self._name)

    def __or__(self, other: Any) -> Any:  # in annotations
        return Any

    __ror__ = __or__


class _Fast(Missing):
    """`mlx.core.fast`: a kernel can be made, as modules do when they are imported, but not run."""

    def metal_kernel(self, *_: Any, **__: Any) -> Missing:
        """A kernel."""
        return Missing("a Metal kernel")


class Group:
    """A place in a group of `size` ranks."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        """The rank."""
        return self._rank

    def size(self) -> int:
        """The number of ranks."""
        return self._size


def core(load: Callable[[str], dict[str, Array]]) -> ModuleType:
    """The module that stands for `mlx.core`; `load` stands for `mlx.core.load`."""
    module = ModuleType("mlx.core")
    vars(module).update(OPERATIONS, **DTYPES, array=Array, Dtype=Dtype, inf=inf, pi=pi, load=load)
    vars(module).update(
        compile=_same,
        eval=lambda *_: None,
        default_device=lambda: None,
        issubdtype=lambda dtype, kinds: dtype.kind in kinds,
        floating=("float",),
        inexact=("float", "complex"),
        integer=("int", "uint"),
        zeros=_filled(FLOAT32),
        ones=_filled(FLOAT32),
        full=_full,
        arange=_arange,
        finfo=lambda _: SimpleNamespace(min=-3e38, max=3e38, eps=1e-7),
        fast=_Fast("mlx.core.fast"),
        linalg=SimpleNamespace(norm=norm),
        random=SimpleNamespace(uniform=_random, normal=_normal, randint=_random),
        metal=SimpleNamespace(is_available=lambda: False),
        cuda=SimpleNamespace(is_available=lambda: False),
        distributed=SimpleNamespace(Group=Group),
        __getattr__=lambda name: Missing(f"mlx.core.{name}"),
    )
    return module
