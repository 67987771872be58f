"""How many tokens of KV cache fit into this rank's memory together with the model.

On a Mac the limit is Metal's recommended working set (`iogpu.wired_limit_mb` changes it); elsewhere it is the
system's available memory. Rank side, also on the CPU.
"""

from pathlib import Path

import mlx.core as mx

HEADROOM = 0.9  # of the limit: activations and the allocator need the rest


def memory_limit() -> int:
    """Return the bytes that this process may use, including those in use."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return mx.get_active_memory() + _available()


def capacity(limit: int, token_bytes: float) -> int:
    """Return how many tokens of cache fit into `limit` bytes together with the loaded arrays; at least 0."""
    free = int(limit * HEADROOM) - mx.get_active_memory()
    return max(0, int(free / token_bytes)) if token_bytes else 1 << 40


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 8 << 30  # unknown: a conservative guess
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 8 << 30
