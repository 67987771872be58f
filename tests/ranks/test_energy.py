"""Power as MacBooks tell it."""

import sys
from pathlib import Path

import pytest

from jaccl_kernel.core.results import Power
from jaccl_kernel.ranks import energy
from jaccl_kernel.ranks.energy import Reading
from jaccl_kernel.report import record

IOREG = """+-o AppleSmartBattery  <class AppleSmartBattery, id 0x100000333>
    {
      "ExternalConnected" = Yes
      "PowerTelemetryData" = {"SystemEnergyConsumed"=3660,"SystemLoad"=13177,\
"AccumulatedSystemLoad"=2118775727,"SystemLoadAccumulatorCount"=167702,"SystemPowerIn"=13177}
    }
"""


@pytest.mark.usefixtures("nothing_left")
def test_the_running_sums_are_read_from_a_macbook_and_missing_elsewhere(tmp_path: Path) -> None:
    assert energy.parse(IOREG) == Reading(2118775727, 167702)
    assert energy.parse("") is None
    tool = tmp_path / "ioreg"
    tool.write_text(f"#!/bin/sh\ncat <<'TEXT'\n{IOREG}TEXT\n")
    tool.chmod(0o755)
    assert energy.read(str(tool)) == Reading(2118775727, 167702)
    assert energy.read(str(tmp_path / "none")) is None
    if sys.platform != "darwin":
        assert energy.Meter().read().watts is None


def test_the_mean_counts_every_sample_once_and_says_nothing_without_new_ones() -> None:
    before = Reading(1_000_000, 100)
    assert energy.watts(before, Reading(1_000_000 + 10 * 42_000, 110)) == pytest.approx(42.0)
    assert energy.watts(before, before) is None
    assert energy.watts(before, Reading(5, 1)) is None, "the counter was begun anew"
    assert energy.watts(None, before) is None


def test_joules_a_token_count_each_machine_once_and_need_all_of_them() -> None:
    one, other = Power("a", 60.0), Power("b", 40.0)
    assert record.energy([one, other], 50.0) == {"watts": 100.0, "joules_per_token": 2.0}
    assert record.energy([one, one], 30.0) == {"watts": 60.0, "joules_per_token": 2.0}
    assert record.energy([one, Power("b")], 50.0) is None
