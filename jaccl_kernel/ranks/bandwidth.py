"""The memory bandwidth of this rank."""

import time

import mlx.core as mx


def bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Read bandwidth in bytes per second: the best of a few sums over a large array."""
    large = mx.ones((megabytes << 18,), dtype=mx.float32)
    mx.eval(large)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        mx.eval(mx.sum(large))
        best = max(best, large.nbytes / (time.perf_counter() - began))
    return best
