"""What physics allows."""

from typing import Any

import pytest

from jaccl_kernel.report import limits

GB = 1e9


def limit(rate: float, **more: Any) -> limits.Limit:
    usual: dict[str, Any] = {
        "weight_bytes": 8 * GB, "cache_bytes": 0.0, "ranks": 1, "layers": 32, "bandwidth": 800 * GB,
        "specified": True, "collective_s": 0.0,
    }  # fmt: skip
    return limits.limit(rate, **usual | more)


def test_one_rank_is_bound_by_reading_the_weights_once_a_token() -> None:
    told = limit(50.0)
    assert told.limit_tps == pytest.approx(100.0)
    assert told.percent == pytest.approx(50.0)
    assert told.memory_ms == pytest.approx(10.0 / limits.ACHIEVABLE)
    assert told.memory_ms + told.collectives_ms + told.other_ms == pytest.approx(20.0)
    assert limit(50.0, specified=False).memory_ms == pytest.approx(10.0), "measured: nothing to take off"


def test_tensor_parallel_reads_a_share_and_pays_two_collectives_a_layer() -> None:
    told = limit(100.0, ranks=2, collective_s=25e-6)
    assert told.limit_tps == pytest.approx(200.0)
    assert told.collectives_ms == pytest.approx(2 * 32 * 0.025)


def test_a_pipeline_reads_all_of_it_one_rank_after_the_other() -> None:
    told = limit(80.0, ranks=2, sharding="pipeline", collective_s=25e-6)
    assert told.limit_tps == pytest.approx(100.0)
    assert told.collectives_ms == pytest.approx(2 * 0.025)


def test_the_parts_never_add_up_to_more_than_the_whole() -> None:
    told = limit(1000.0, ranks=2, collective_s=1.0)
    assert told.percent > 100, "told as it is: then the bandwidth or the bytes are wrong"
    assert told.collectives_ms == 0.0
    assert told.other_ms == pytest.approx(0.0)
    with pytest.raises(ValueError, match="positive"):
        limit(0.0)


def test_the_longest_name_of_a_chip_counts() -> None:
    assert limits.chip_bandwidth("Apple M3 Ultra") == 819e9
    assert limits.chip_bandwidth("Apple M4 Pro") == 273e9
    assert limits.chip_bandwidth("Apple M4") == 120e9
    assert limits.chip_bandwidth("Intel(R) Xeon(R)") is None


def test_a_collectives_time_lies_between_the_sizes_that_were_measured() -> None:
    known = {"group": [{"op": "all_sum", "bytes": size, "seconds": size * 1e-9} for size in (64, 1024, 4096)]}
    assert limits.collective_seconds(known, 2048) == pytest.approx(2048e-9)
    assert limits.collective_seconds(known, 16) == pytest.approx(64e-9)
    assert limits.collective_seconds(known, 1 << 20) == pytest.approx(4096e-9)
    assert limits.collective_seconds(None, 64) == 0.0
