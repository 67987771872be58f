"""Arrays without data have the shapes and types of mlx's, and raise where mlx raises."""

import json
import subprocess
import sys
from typing import Any

import pytest

from jaccl_kernel.models import shape_ops  # noqa: F401  gives Array its methods
from jaccl_kernel.models.mlx_core import core
from jaccl_kernel.models.shapes import DTYPES, Array, Unsupported, make

TYPES = ("bool_", "uint8", "uint32", "uint64", "int8", "int32", "int64", "float16", "bfloat16", "float32")
EXPRESSIONS = [
    *(f"mx.zeros((2,), mx.{a}) + mx.zeros((2,), mx.{b})" for a in TYPES for b in TYPES),
    *(f"mx.zeros((2,), mx.{a}) * {b}" for a in TYPES for b in (True, 2, 2.0)),
    "mx.zeros((2, 3), mx.uint8) / 2",
    "-8 * mx.zeros((2,), mx.bfloat16)",
    "mx.zeros((2, 1, 3)) + mx.zeros((4, 1))",
    "mx.zeros((4,)) + mx.zeros((5,))",
    "mx.zeros((2, 3))[:, None, 1:]",
    "mx.zeros((2, 3, 4))[..., ::2]",
    "mx.zeros((2, 3, 4))[1]",
    "mx.zeros((3,))[5:9]",
    "mx.zeros((8, 3))[mx.array([1, 2])]",
    "mx.zeros((2, 3)).reshape(3, -1)",
    "mx.zeros((4,)).reshape(3, -1)",
    "mx.zeros((2, 3, 4)).flatten(-2)",
    "mx.unflatten(mx.zeros((2, 6)), -1, (3, 2))",
    "mx.zeros((2, 3, 4)).transpose(0, 2, 1)",
    "mx.zeros((2, 3, 4)).transpose(0, 1)",
    "mx.zeros((2, 3)).T",
    "mx.zeros((2, 3, 4)).swapaxes(-1, -2)",
    "mx.zeros((2, 3, 4)).moveaxis(2, 0)",
    "mx.zeros((2, 1, 4)).squeeze()",
    "mx.zeros((2, 1, 4)).squeeze(0)",
    "mx.expand_dims(mx.zeros((2, 3)), -2)",
    "mx.repeat(mx.zeros((2, 3)), 2, axis=0)",
    "mx.tile(mx.zeros((2, 3)), (2, 1, 2))",
    "mx.stack([mx.zeros((4,)), mx.zeros((4,), mx.bfloat16)])",
    "mx.stack([mx.zeros((4,)), mx.zeros((5,))])",
    "mx.concatenate([mx.zeros((4, 1)), mx.zeros((5, 1), mx.float16)])",
    "mx.concatenate([mx.zeros((4, 1)), mx.zeros((5, 2))])",
    "mx.split(mx.zeros((10, 2)), 5)",
    "mx.split(mx.zeros((10,)), 3)",
    "mx.split(mx.zeros((10,)), [3, 20])",
    "mx.split(mx.zeros((10,)), [7, 3])",
    "mx.pad(mx.zeros((2, 3)), ((0, 1), (2, 0)))",
    "mx.pad(mx.zeros((2, 3)), ((0, -1), (2, 0)))",
    "mx.zeros((4, 8), mx.uint8).view(mx.uint32)",
    "mx.zeros((4, 6), mx.uint8).view(mx.uint32)",
    "mx.zeros((4, 6), mx.uint32).view(mx.uint8)",
    "mx.zeros((2, 3)) @ mx.zeros((5, 3, 4))",
    "mx.zeros((2, 3)) @ mx.zeros((4, 3))",
    "mx.quantize(mx.zeros((4, 64), mx.bfloat16), 64, 4)",
    "mx.quantize(mx.zeros((4, 64), mx.bfloat16), 32, 3)",
    "mx.quantize(mx.zeros((4, 64)), 32, 4, mode='mxfp4')",
    "mx.quantize(mx.zeros((4, 64)), 16, 4, mode='nvfp4')",
    "mx.quantize(mx.zeros((4, 64)), 32, 8, mode='mxfp8')",
    "mx.quantize(mx.zeros((4, 64)), 64, 4, mode='mxfp4')",
    "mx.quantize(mx.zeros((4, 48)), 32, 4)",
    "mx.quantize(mx.zeros((4, 48)), 48, 4)",
    "mx.quantize(mx.zeros((4, 64)), 64, 7)",
    "mx.quantize(mx.zeros((4, 64), mx.uint32), 64, 4)",
    "mx.dequantize(mx.zeros((4, 8), mx.uint32), mx.zeros((4, 1)), mx.zeros((4, 1)), 64, 4)",
    "mx.dequantize(mx.zeros((4, 8), mx.uint32), mx.zeros((4, 3)), mx.zeros((4, 3)), 64, 4)",
    "mx.from_fp8(mx.zeros((4,), mx.uint8), dtype=mx.bfloat16)",
    "mx.from_fp8(mx.zeros((4,)))",
    "mx.arange(1, 8, 2)",
    "mx.arange(0, 2, 0.5)",
    "mx.array([[1, 2], [3, 4]])",
    "mx.array([1.0])",
    "mx.array([[1], [2, 3]])",
    "mx.sum(mx.zeros((2, 3)), axis=-1, keepdims=True)",
    "mx.linalg.norm(mx.zeros((4, 64)), axis=0, keepdims=True)",
    "mx.zeros((2, 3)) != 1",
    "mx.where(mx.zeros((2, 1)) > 0, mx.zeros((3,), mx.float16), 1.0)",
    "mx.zeros((2, 4), mx.int32) >> 1",
    "mx.exp(mx.zeros((2,), mx.int32))",
    "mx.full((2, 3), 1.0, dtype=mx.float16)",
]  # fmt: skip
_ASK_MLX = """
import json, sys
import mlx.core as mx
def told(value):
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return [list(value.shape), str(value.dtype).removeprefix("mlx.core.")]
def answer(expression):
    try:
        return told(eval(expression))
    except ValueError:
        return "ValueError"
print(json.dumps({each: answer(each) for each in json.load(sys.stdin)}))
"""


def told(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [told(each) for each in value]
    return [list(value.shape), value.dtype.name]


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    command = [sys.executable, "-c", _ASK_MLX]
    question = json.dumps(EXPRESSIONS)
    answer = subprocess.run(command, input=question, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(answer.stdout))


@pytest.mark.processes
def test_operations_give_the_shapes_and_types_of_mlx(real: dict[str, Any]) -> None:
    mx = core(lambda _: {})
    found = {}
    for expression in EXPRESSIONS:
        try:
            found[expression] = told(eval(expression, {"mx": mx}))
        except ValueError:
            found[expression] = "ValueError"
    assert found == real


def test_what_needs_values_or_is_not_there_says_so() -> None:
    mx = core(lambda _: {})
    array = make((2, 3), DTYPES["float32"])
    assert array.nbytes == 24
    for use in (
        lambda: bool(array),
        lambda: array.item(),
        lambda: mx.fast.rope(array),
        lambda: mx.conv_general(array),
    ):
        with pytest.raises(Unsupported):
            use()
    assert isinstance(mx.zeros(3), Array)
