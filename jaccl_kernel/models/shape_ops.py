"""The operations of `mlx.core` on arrays that have only a shape and a type (shapes.py).

An operation checks what mlx checks and raises ValueError as mlx does. Importing this module gives Array its
methods and operators.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from math import prod
from typing import Any

from jaccl_kernel.models.shapes import (
    _BOOL,
    _GROUPS,
    _UINT8,
    _UINT32,
    DTYPES,
    OPERATIONS,
    Array,
    Dtype,
    _axis,
    _broadcast,
    _text,
    make,
    type_of,
)


def _reshape(array: Array, *shape: Any) -> Array:
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else list(shape)
    known = prod(size for size in sizes if size != -1)
    if -1 in sizes and known:
        sizes[sizes.index(-1)] = array.size // known
    if prod(sizes) != array.size:
        raise ValueError(f"[reshape] Cannot reshape array of size {array.size} into shape {_text(sizes)}.")
    return make(sizes, array.dtype)


def _flatten(array: Array, start_axis: int = 0, end_axis: int = -1) -> Array:
    if not array.ndim:
        return make((1,), array.dtype)
    start, end = _axis(array, start_axis), _axis(array, end_axis)
    return make(
        (*array.shape[:start], prod(array.shape[start : end + 1]), *array.shape[end + 1 :]), array.dtype
    )


def _unflatten(array: Array, axis: int, shape: Sequence[int]) -> Array:
    at = _axis(array, axis)
    return _reshape(array, [*array.shape[:at], *shape, *array.shape[at + 1 :]])


def _transpose(array: Array, *axes: Any) -> Array:
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], list | tuple) else axes
    order = order or tuple(reversed(range(array.ndim)))
    if sorted(_axis(array, axis) for axis in order) != list(range(array.ndim)):
        raise ValueError(f"[transpose] Received {len(order)} axes for array with {array.ndim} dimensions.")
    return make((array.shape[axis] for axis in order), array.dtype)


def _swapaxes(array: Array, axis1: int, axis2: int) -> Array:
    shape = list(array.shape)
    one, two = _axis(array, axis1), _axis(array, axis2)
    shape[one], shape[two] = shape[two], shape[one]
    return make(shape, array.dtype)


def _moveaxis(array: Array, source: int, destination: int) -> Array:
    shape = list(array.shape)
    shape.insert(_axis(array, destination), shape.pop(_axis(array, source)))
    return make(shape, array.dtype)


def _squeeze(array: Array, axis: Any = None) -> Array:
    if axis is None:
        return make((size for size in array.shape if size != 1), array.dtype)
    axes = {_axis(array, each) for each in (axis if isinstance(axis, list | tuple) else [axis])}
    if any(array.shape[each] != 1 for each in axes):
        raise ValueError(f"[squeeze] Cannot squeeze axis {axis} of shape {_text(array.shape)}.")
    return make((size for place, size in enumerate(array.shape) if place not in axes), array.dtype)


def _expand_dims(array: Array, axis: Any) -> Array:
    shape = list(array.shape)
    axes = axis if isinstance(axis, list | tuple) else [axis]
    for each in sorted(each % (array.ndim + len(axes)) for each in axes):
        shape.insert(each, 1)
    return make(shape, array.dtype)


def _repeat(array: Array, repeats: int, axis: int | None = None) -> Array:
    if axis is None:
        return make((array.size * repeats,), array.dtype)
    at = _axis(array, axis)
    return make(
        (size * (repeats if place == at else 1) for place, size in enumerate(array.shape)), array.dtype
    )


def _tile(array: Array, reps: Any) -> Array:
    reps = [reps] if isinstance(reps, int) else list(reps)
    pairs = zip_longest(reversed(array.shape), reversed(reps), fillvalue=1)
    return make(reversed([size * count for size, count in pairs]), array.dtype)


def _concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    first = arrays[0]
    at = _axis(first, axis)
    for other in arrays[1:]:
        if other.shape[:at] + other.shape[at + 1 :] != first.shape[:at] + first.shape[at + 1 :]:
            raise ValueError(
                "[concatenate] All the input array dimensions must match exactly except for the "
                f"concatenation axis. However, the provided shapes are {_text(first.shape)}, "
                f"{_text(other.shape)}, and the concatenation axis is {at}."
            )
    shape = list(first.shape)
    shape[at] = sum(array.shape[at] for array in arrays)
    return make(shape, type_of(*arrays))


def _stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError("[stack] All arrays must have the same shape")
    shape = list(arrays[0].shape)
    shape.insert(axis % (len(shape) + 1), len(arrays))
    return make(shape, type_of(*arrays))


def _split(array: Array, indices_or_sections: Any, axis: int = 0) -> list[Array]:
    at = _axis(array, axis)
    size = array.shape[at]
    if isinstance(indices_or_sections, int):
        if indices_or_sections <= 0 or size % indices_or_sections:
            raise ValueError(
                "Array split does not result in sub arrays with equal size: attempting "
                f"{indices_or_sections} splits along axis {at} for shape {_text(array.shape)}."
            )
        sizes = [size // indices_or_sections] * indices_or_sections
    else:
        ends = [0, *indices_or_sections, size]
        sizes = [len(range(*slice(start, end).indices(size))) for start, end in pairwise(ends)]
    return [make((*array.shape[:at], part, *array.shape[at + 1 :]), array.dtype) for part in sizes]


def _pad(array: Array, pad_width: Any, *_: Any, **__: Any) -> Array:
    if isinstance(pad_width, int):
        pad_width = [(pad_width, pad_width)] * array.ndim
    elif all(isinstance(width, int) for width in pad_width):
        pad_width = [tuple(pad_width) * (2 // len(pad_width))] * array.ndim
    for axis, (low, high) in enumerate(pad_width):
        if low < 0 or high < 0:
            raise ValueError(f"Invalid padding size ({min(low, high)}) passed to pad for axis {axis}.")
    return make(
        (size + low + high for size, (low, high) in zip(array.shape, pad_width, strict=True)), array.dtype
    )


def _view(array: Array, dtype: Dtype) -> Array:
    size = array.shape[-1] * array.dtype.size if array.ndim else array.dtype.size
    if size % dtype.size:
        raise ValueError(
            "[view] When viewing as a larger dtype, the size in bytes of the last axis must be a multiple of "
            "the requested type size."
        )
    return make((*array.shape[:-1], size // dtype.size) if array.ndim else (), dtype)


def _matmul(a: Array, b: Array) -> Array:
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else -1]:
        raise ValueError(
            f"[matmul] Last dimension of first input with shape {_text(a.shape)} must match second to last "
            f"dimension of second input with shape {_text(b.shape)}."
        )
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    sides = (*a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))
    return make((*batch, *sides), type_of(a, b))


# Elementwise operations and reductions


def _elementwise(*values: Any, dtype: Dtype | None = None) -> Array:
    shapes = [value.shape for value in values if isinstance(value, Array)]
    shape = shapes[0] if len(shapes) == 1 else _broadcast(*shapes)
    return make(shape, dtype or type_of(*values))


def _unary(array: Array, *_: Any, **__: Any) -> Array:
    return array


def _floating(array: Any, *_: Any, **__: Any) -> Array:
    return _elementwise(array, 1.0)


def _boolean(*values: Any, **_: Any) -> Array:
    return _elementwise(*values, dtype=_BOOL)


def _binary(a: Any, b: Any, **_: Any) -> Array:
    return _elementwise(a, b)


def _divided(a: Any, b: Any, **_: Any) -> Array:
    return _elementwise(a, b, 1.0)


def _reduce(dtype: Dtype | None = None) -> Callable[..., Array]:
    def reduce(array: Array, axis: Any = None, keepdims: bool = False, **_: Any) -> Array:
        axes = range(array.ndim) if axis is None else axis if isinstance(axis, list | tuple) else [axis]
        gone = {_axis(array, each) for each in axes}
        sizes = [1 if place in gone else size for place, size in enumerate(array.shape)]
        if not keepdims:
            sizes = [size for place, size in enumerate(sizes) if place not in gone]
        return make(sizes, dtype or array.dtype)

    return reduce


def norm(array: Array, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Array:  # noqa: A002
    """`mlx.core.linalg.norm`."""
    return _reduce()(array, axis, keepdims)


# Quantization


def _quantize(
    w: Array, group_size: int | None = None, bits: int | None = None, mode: str = "affine", **_: Any
) -> tuple[Array, ...]:
    size, width = _GROUPS.get(mode, (64, 4))
    size, width = group_size or size, bits or width
    if mode in _GROUPS and (size, width) != _GROUPS[mode]:
        raise ValueError(
            f"[quantize] {mode} quantization requires group size {_GROUPS[mode][0]} but got {size}."
        )
    if mode == "affine" and size not in (32, 64, 128):
        raise ValueError(
            f"[quantize] The requested group size {size} is not supported. The supported group sizes are "
            "32, 64, and 128."
        )
    if mode == "affine" and width not in (2, 3, 4, 5, 6, 8):
        raise ValueError(f"[quantize] The requested number of bits {width} is not supported.")
    if w.dtype.kind != "float":
        raise ValueError(
            f"[quantize] Only real floating types can be quantized but w has type {w.dtype.name}."
        )
    if w.shape[-1] % size:
        raise ValueError(
            "[quantize] The last dimension of the matrix needs to be divisible by the quantization group "
            f"size {size}. However the provided  matrix has shape {_text(w.shape)}"
        )
    packed = make((*w.shape[:-1], w.shape[-1] * width // 32), _UINT32)
    groups = (*w.shape[:-1], w.shape[-1] // size)
    if mode == "affine":
        return packed, make(groups, w.dtype), make(groups, w.dtype)
    return packed, make(groups, _UINT8)


def _dequantize(
    w: Array,
    scales: Array,
    biases: Array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    dtype: Dtype | None = None,
    **_: Any,
) -> Array:
    size, width = _GROUPS.get(mode, (64, 4))
    columns = w.shape[-1] * 32 // (bits or width)
    if columns != scales.shape[-1] * (group_size or size):
        raise ValueError("[dequantize] Shape of scales and biases does not match the matrix")
    plain = scales.dtype if mode == "affine" else DTYPES["bfloat16"]
    return make((*w.shape[:-1], columns), dtype or plain)


def _from_fp8(array: Array, dtype: Dtype = DTYPES["bfloat16"], **_: Any) -> Array:
    if array.dtype is not _UINT8:
        raise ValueError(f"[from_fp8] Input must have type uint8 but x.dtype() == {array.dtype.name}.")
    return make(array.shape, dtype)


def _each(names: str, operation: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return dict.fromkeys(names.split(), operation)


_OPERATIONS: dict[str, Any] = {
    **_each("contiguous stop_gradient tril triu cumsum roll sort copy depends abs negative sign", _unary),
    **_each("clip floor ceil round square softmax zeros_like ones_like", _unary),
    **_each("exp log log2 sqrt rsqrt sin cos tanh sigmoid erf erfinv expm1 log1p reciprocal", _floating),
    **_each("isinf isnan isfinite logical_not logical_and logical_or equal not_equal", _boolean),
    **_each("greater greater_equal less less_equal", _boolean),
    **_each("add subtract multiply maximum minimum power remainder floor_divide", _binary),
    **_each("sum max min mean prod std var", _reduce()),
    **_each("any all", _reduce(_BOOL)),
    **_each("argmax argmin", _reduce(_UINT32)),
    "divide": _divided,
    "where": lambda condition, a, b: make(
        _broadcast(*(value.shape for value in (condition, a, b) if isinstance(value, Array))), type_of(a, b)
    ),
    "astype": lambda array, dtype, **_: array if array.dtype is dtype else make(array.shape, dtype),
    "broadcast_to": lambda array, shape: make(_broadcast(array.shape, tuple(shape)), array.dtype),
    "from_fp8": _from_fp8,
    "to_fp8": lambda array, **_: make(array.shape, _UINT8),
    **{
        function.__name__.removeprefix("_"): function
        for function in (
            _reshape, _flatten, _unflatten, _transpose, _swapaxes, _moveaxis, _squeeze, _expand_dims, _repeat,
            _tile, _concatenate, _stack, _split, _pad, _view, _matmul, _quantize, _dequantize,
        )
    },
}  # fmt: skip
OPERATIONS.update(_OPERATIONS)

for _symbol, _rule in {
    **_each("add sub mul pow mod floordiv and or xor lshift rshift", _binary),
    "truediv": _divided,
}.items():
    setattr(Array, f"__{_symbol}__", _rule)
    setattr(Array, f"__r{_symbol}__", lambda a, b, rule=_rule: rule(b, a))
    setattr(Array, f"__i{_symbol}__", _rule)
for _symbol in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Array, f"__{_symbol}__", _boolean)
for _symbol in ("neg", "abs", "invert"):
    setattr(Array, f"__{_symbol}__", _unary)
