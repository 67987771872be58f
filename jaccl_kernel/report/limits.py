"""What physics allows, and where the time of a token went. Pure.

Decoding reads every active weight and the keys and values of the context once a token, so memory bandwidth
bounds it; with tensor parallel each rank reads its share, and adds two collectives a layer. Source of the
chips' figures: Apple's technical specifications.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ACHIEVABLE = 0.82  # of the specified bandwidth, measured on these chips
COLLECTIVES_PER_LAYER = 2  # of tensor parallel

# bytes a second, specified; by the chip's name, longest match first
CHIPS = {
    "M1 Ultra": 800e9, "M1 Max": 400e9, "M1 Pro": 200e9, "M1": 68e9,
    "M2 Ultra": 800e9, "M2 Max": 400e9, "M2 Pro": 200e9, "M2": 100e9,
    "M3 Ultra": 819e9, "M3 Max": 400e9, "M3 Pro": 150e9, "M3": 100e9,
    "M4 Max": 546e9, "M4 Pro": 273e9, "M4": 120e9,
}  # fmt: skip


def chip_bandwidth(chip: str) -> float | None:
    """Bytes a second that this chip's memory is specified for, or None if it is not known here."""
    return next(
        (speed for name, speed in sorted(CHIPS.items(), key=lambda one: -len(one[0])) if name in chip), None
    )


@dataclass(frozen=True)
class Limit:
    """One measured decode rate against what is possible.

    Attributes:
        limit_tps: tokens a second if nothing but memory counted, all ranks at their specified (or measured)
            bandwidth.
        percent: what part of that was reached, 0 to 100.
        memory_ms, collectives_ms, other_ms: where a token's time went; memory at the achievable bandwidth.
        bandwidth: bytes a second a rank, and
        specified: whether that is the chip's specification (else it was measured).
    """

    limit_tps: float
    percent: float
    memory_ms: float
    collectives_ms: float
    other_ms: float
    bandwidth: float
    specified: bool

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record."""
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
    """Judge a decode rate.

    Args:
        measured_tps: tokens a second of one sequence.
        weight_bytes: of all active weights, over all ranks.
        cache_bytes: of the keys and values read for a token, over all ranks.
        ranks: how many share them.
        layers: of the model.
        bandwidth: bytes a second of the slowest rank.
        specified: whether that is a specification, of which ACHIEVABLE is within reach.
        collective_s: seconds of one all_sum of a token's hidden state, 0 on one rank.
        sharding: "tensor" (ranks read at the same time) or "pipeline" (one after the other).

    Raises:
        ValueError: a rate or bandwidth that is not positive.
    """
    if measured_tps <= 0 or bandwidth <= 0:
        raise ValueError("a rate and a bandwidth are positive")
    at_once = ranks if sharding == "tensor" else 1
    share = (weight_bytes + cache_bytes) / at_once
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
    """Seconds of an all_sum of `size` bytes, between the nearest sizes that were measured; 0 if none was."""
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
