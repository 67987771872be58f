"""Agreement between the ranks: rank 0's value on every rank, the minimum, and a logical or.

Every rank must call the same function at the same point. Without a group (one rank alone) each returns its
argument. Collectives run on the generation stream: collectives of two streams can cross, which makes sums
wrong.
"""

from typing import Any

import mlx.core as mx

# the ring backend is slow for fewer elements than ranks: with two ranks, as slow as five collectives
MIN_ELEMENTS = 16
LENGTH_BYTES = 4


def from_rank_0(group: Any, values: mx.array) -> mx.array:
    """Return rank 0's values (n, uint32) as a lazy array; the other ranks pass zeros.

    For use inside a computation: runs on the current stream and evaluates nothing.
    """
    if group is None:
        return values
    count = len(values)
    if count < MIN_ELEMENTS:
        values = mx.concatenate([values, mx.zeros((MIN_ELEMENTS - count,), dtype=mx.uint32)])
    return mx.distributed.all_sum(values, group=group)[:count]


def broadcast(group: Any, data: bytes = b"") -> bytes:
    """Return rank 0's bytes on every rank; ignores the other ranks' argument."""
    if group is None:
        return data
    leads = group.rank() == 0
    length = len(data).to_bytes(LENGTH_BYTES, "big") if leads else bytes(LENGTH_BYTES)
    count = int.from_bytes(_broadcast(group, length), "big")
    return _broadcast(group, data if leads else bytes(count))


def minimum(group: Any, number: int) -> int:
    """Return the smallest `number` of all ranks, with the 24 bits of a float32."""
    if group is None:
        return number
    with mx.stream(_stream()):
        numbers = mx.distributed.all_gather(mx.array([float(number)]), group=group)
        return int(numbers.min().item())


def any_rank(group: Any, value: bool) -> bool:
    """Return whether `value` is true on any rank."""
    if group is None:
        return value
    with mx.stream(_stream()):
        mine = mx.array([float(value)] * MIN_ELEMENTS)
        return bool(mx.distributed.all_sum(mine, group=group).max().item() > 0)


def _broadcast(group: Any, data: bytes) -> bytes:
    if not data:
        return b""
    with mx.stream(_stream()):
        return bytes(from_rank_0(group, mx.array(list(data), dtype=mx.uint32)).tolist())


def _stream() -> Any:
    from mlx_lm.generate import generation_stream  # slow to import

    return generation_stream
