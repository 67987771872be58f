"""Arrays that have only a shape and a type, for mlx-lm's code; shape_ops.py has their operations.

`mlx_core.py` makes of them a module that stands for `mlx.core`, on which `sources.py` runs mlx-lm's own
code: loading and sharding a model gives the shapes of its weights without any data. An operation checks what
mlx checks and raises ValueError as mlx does; one that is not here, or that needs values, raises Unsupported.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import zip_longest
from math import prod
from typing import Any

Shape = tuple[int, ...]
OPERATIONS: dict[str, Any] = {}  # mlx's operations and methods by name; shape_ops.py fills it


class Unsupported(Exception):
    """mlx-lm's code needs something of `mlx.core` that arrays without data do not have."""


class Dtype:
    """A type of mlx: its name, its kind ("bool", "uint", "int", "float" or "complex"), its size in bytes."""

    def __init__(self, name: str, kind: str, size: int) -> None:
        self.name, self.kind, self.size = name, kind, size

    def __repr__(self) -> str:
        return f"mlx.core.{self.name}"


_NAMES = "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64"
DTYPES = {"bool_": Dtype("bool", "bool", 1)}
for _name in _NAMES.split():
    _kind = _name.rstrip("0123456789").removeprefix("b")
    DTYPES[_name] = Dtype(_name, _kind, int(_name.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8)
_BOOL, _INT32, _FLOAT32, _UINT8, _UINT32 = (
    DTYPES[name] for name in ("bool_", "int32", "float32", "uint8", "uint32")
)
_KINDS = ("bool", "uint", "int", "float", "complex")
# How mlx reads the types of a safetensors file (load_safetensors in mlx/io); it refuses the others.
LOADED_AS = {
    "BOOL": "bool_", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "C64": "complex64", "F8_E4M3": "uint8", "F8_E8M0": "uint8",
}  # fmt: skip
_GROUPS = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}  # the only ones that mlx has for each mode


@lru_cache
def _promoted(a: Dtype, b: Dtype) -> Dtype:
    """The type of a sum of two arrays."""
    if a is b:
        return a
    low, high = sorted((a, b), key=lambda dtype: (_KINDS.index(dtype.kind), dtype.size))
    if low.kind == high.kind == "float":
        return high if high.size > low.size else _FLOAT32  # float16 and bfloat16
    if low.kind == "uint" and high.kind == "int" and high.size <= low.size:
        return DTYPES.get(f"int{16 * low.size}", _FLOAT32)
    return high


class Array:
    """A shape and a type; made from (nested) numbers as `mlx.core.array` is."""

    __slots__ = ("dtype", "shape")
    dtype: Dtype
    shape: Shape

    def __init__(self, value: Any, dtype: Dtype | None = None) -> None:
        shape, kind = _literal(value)
        self.shape, self.dtype = shape, dtype or kind

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.size

    @property
    def T(self) -> "Array":  # noqa: N802 (mlx's name)
        """The array with its axes reversed."""
        return self.transpose()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        function = OPERATIONS.get(name)
        if function is None:
            if name.startswith("__"):
                raise AttributeError(name)
            raise Unsupported(f"array.{name}")
        return lambda *args, **options: function(self, *args, **options)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        return (make(self.shape[1:], self.dtype) for _ in range(self.shape[0]))

    def __bool__(self) -> bool:
        raise Unsupported("the value of an array")

    def __getitem__(self, index: Any) -> "Array":
        return _indexed(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def __matmul__(self, other: "Array") -> "Array":
        return self.matmul(other)  # type: ignore[no-any-return]

    __hash__ = object.__hash__


def make(shape: Iterable[int], dtype: Dtype) -> Array:
    """An array of this shape and type."""
    array = object.__new__(Array)
    array.shape, array.dtype = tuple(shape), dtype
    return array


def _literal(value: Any) -> tuple[Shape, Dtype]:
    if isinstance(value, Array):
        return value.shape, value.dtype
    if isinstance(value, list | tuple):
        if not value:
            return (0,), _FLOAT32
        parts = [_literal(part) for part in value]
        if len({shape for shape, _ in parts}) > 1:
            raise ValueError("Initialization encountered non-uniform length.")
        dtype = parts[0][1]
        for _, other in parts:
            dtype = _promoted(dtype, other)
        return (len(value), *parts[0][0]), dtype
    kinds: dict[type, Dtype] = {bool: _BOOL, int: _INT32, float: _FLOAT32}
    return (), kinds.get(type(value), _FLOAT32)


# Shapes


def _text(shape: Sequence[int]) -> str:
    return f"({','.join(map(str, shape))})"


def _broadcast(*shapes: Shape) -> Shape:
    result: Shape = ()
    for shape in shapes:
        sides = []
        for a, b in zip_longest(reversed(result), reversed(shape), fillvalue=1):
            if a != b and 1 not in (a, b):
                raise ValueError(
                    f"[broadcast_shapes] Shapes {_text(result)} and {_text(shape)} cannot be broadcast."
                )
            sides.append(b if a == 1 else a)
        result = tuple(reversed(sides))
    return result


def _axis(array: Array, axis: int) -> int:
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"Invalid axis {axis} for array with {array.ndim} dimensions.")
    return axis % array.ndim


def _indexed(array: Array, index: Any) -> Array:
    parts = list(index) if isinstance(index, tuple) else [index]
    used = sum(part is not None and part is not ... for part in parts)
    if ... not in [part for part in parts if not isinstance(part, Array)]:
        parts.append(...)
    shape: list[int] = []
    taken: list[Shape] = []
    axis = place = 0
    for part in parts:
        if part is None:
            shape.append(1)
        elif part is ...:
            rest = array.ndim - used
            if rest < 0:
                raise ValueError(f"Too many indices for array with {array.ndim} dimensions.")
            shape += array.shape[axis : axis + rest]
            axis += rest
        elif isinstance(part, slice):
            shape.append(len(range(*part.indices(array.shape[axis]))))
            axis += 1
        else:
            if isinstance(part, Array | list):
                place = place if taken else len(shape)
                taken.append(part.shape if isinstance(part, Array) else _literal(part)[0])
            axis += 1
    if taken:
        shape[place:place] = _broadcast(*taken)
    return make(shape, array.dtype)


def type_of(*values: Any) -> Dtype:
    """The type of an elementwise result: numbers take that of the arrays unless they are of a higher kind."""
    result: Dtype | None = None
    for value in values:
        if isinstance(value, Array):
            result = value.dtype if result is None else _promoted(result, value.dtype)
    for value in values:
        if not isinstance(value, Array):
            own = _literal(value)[1]
            if result is None or _KINDS.index(own.kind) > _KINDS.index(result.kind):
                # an int beside unsigned integers stays unsigned
                result = own if result is None or (own.kind, result.kind) != ("int", "uint") else result
    return result or _FLOAT32
