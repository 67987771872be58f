"""The physical limit of the decode rate, and the breakdown of the time per token. Pure.

Decode reads every active weight and the KV cache of the context once per token, so memory bandwidth is the
limit; with tensor parallelism, each rank reads its shard and adds two collectives per layer. The chips'
figures are from Apple's technical specifications.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ACHIEVABLE = 0.82  # fraction of the specified bandwidth, measured on these chips
COLLECTIVES_PER_LAYER = 2  # with tensor parallelism

# specified bytes per second by chip name; the longest match is used
CHIPS = {
    "M1 Ultra": 800e9, "M1 Max": 400e9, "M1 Pro": 200e9, "M1": 68e9,
    "M2 Ultra": 800e9, "M2 Max": 400e9, "M2 Pro": 200e9, "M2": 100e9,
    "M3 Ultra": 819e9, "M3 Max": 400e9, "M3 Pro": 150e9, "M3": 100e9,
    "M4 Max": 546e9, "M4 Pro": 273e9, "M4": 120e9,
}  # fmt: skip


def chip_bandwidth(chip: str) -> float | None:
    """The specified memory bandwidth of this chip in bytes per second, or None if unknown."""
    return next(
        (speed for name, speed in sorted(CHIPS.items(), key=lambda one: -len(one[0])) if name in chip), None
    )


@dataclass(frozen=True)
class Limit:
    """One measured decode rate compared with the physical limit.

    Attributes:
        limit_tps: tokens per second with memory reads only, at the specified (or measured) bandwidth of all
            ranks.
        percent: measured rate in percent of the limit, 0 to 100.
        memory_ms, collectives_ms, other_ms: breakdown of the time per token, memory at achievable bandwidth.
        bandwidth: bytes per second per rank.
        specified: whether the bandwidth is the chip's specification or was measured.
    """

    limit_tps: float
    percent: float
    memory_ms: float
    collectives_ms: float
    other_ms: float
    bandwidth: float
    specified: bool

    def to_json(self) -> dict[str, Any]:
        """The JSON object in a record."""
        return asdict(self)


def limit(
    measured_tps: float,
    *,
    weight_bytes: float,
    cache_bytes: float,
    ranks: int,
    layers: int,
    bandwidth: float,
    specified: bool,
    collective_s: float,
    sharding: str = "tensor",
) -> Limit:
    """Compare a decode rate with the physical limit.

    Args:
        measured_tps: tokens per second of one sequence.
        weight_bytes: size of all active weights, over all ranks.
        cache_bytes: size of the keys and values read per token, over all ranks.
        ranks: number of ranks.
        layers: number of layers.
        bandwidth: bytes per second of the slowest rank.
        specified: whether the bandwidth is a specification, of which a fraction of ACHIEVABLE is possible.
        collective_s: seconds of one all-reduce of a token's hidden state, 0 on one rank.
        sharding: "tensor" (ranks read in parallel) or "pipeline" (one after the other).

    Raises:
        ValueError: a rate or bandwidth is not positive.
    """
    if measured_tps <= 0 or bandwidth <= 0:
        raise ValueError("measured_tps and bandwidth must be positive")
    parallel = ranks if sharding == "tensor" else 1
    share = (weight_bytes + cache_bytes) / parallel
    limit_tps = bandwidth / share
    token_ms = 1e3 / measured_tps
    memory_ms = min(token_ms, share / (bandwidth * (ACHIEVABLE if specified else 1.0)) * 1e3)
    count = COLLECTIVES_PER_LAYER * layers if sharding == "tensor" else ranks
    collectives_ms = min(token_ms - memory_ms, count * collective_s * 1e3 if ranks > 1 else 0.0)
    return Limit(
        limit_tps,
        100.0 * measured_tps / limit_tps,
        memory_ms,
        collectives_ms,
        token_ms - memory_ms - collectives_ms,
        bandwidth,
        specified,
    )


def collective_seconds(collectives: Mapping[str, Any] | None, size: int) -> float:
    """Seconds of an all-reduce of `size` bytes, interpolated between measured sizes; 0 without any."""
    if not collectives:
        return 0.0
    known = sorted((one["bytes"], one["seconds"]) for one in collectives["group"] if one["op"] == "all_sum")
    below = [one for one in known if one[0] <= size] or known[:1]
    above = [one for one in known if one[0] >= size] or known[-1:]
    if not known:
        return 0.0
    (low, low_s), (high, high_s) = below[-1], above[0]
    if high == low:
        return float(low_s)
    return float(low_s + (high_s - low_s) * (size - low) / (high - low))
