"""How many tokens fit beside the model: what each rank's memory holds, and the least of them counts.

On a Mac the limit is what Metal recommends as a working set (`iogpu.wired_limit_mb` moves it); elsewhere it
is what the system says is available. Rank side, on the CPU too.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx

HEADROOM = 0.9  # of the limit: activations and the allocator's own need the rest


def memory_limit() -> int:
    """Bytes that this process may use, with what it uses already."""
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return mx.get_active_memory() + _available()


def capacity(limit: int, token_bytes: float) -> int:
    """How many tokens of cache fit under `limit` bytes beside what is loaded; at least 0."""
    free = int(limit * HEADROOM) - mx.get_active_memory()
    return max(0, int(free / token_bytes)) if token_bytes else 1 << 40


def least(group: Any, number: int) -> int:
    """The smallest `number` of all ranks."""
    if group is None:
        return number
    # float32 is what the proof of the group used; its 24 bits are as exact as a memory limit needs
    everyone = mx.distributed.all_gather(mx.array([float(number)]), group=group)
    return int(everyone.min().item())


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 8 << 30  # not told: a guess that a small machine survives
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 8 << 30
