"""The power that this Mac draws, where macOS reports it without a password: on MacBooks, not on desktops.

macOS keeps running sums of the system's load in the battery controller's registry entry and publishes them
every 10 to 60 seconds (`ioreg -rw0 -c AppleSmartBattery`: "PowerTelemetryData" with AccumulatedSystemLoad, in
milliwatts, and SystemLoadAccumulatorCount). The mean between two readings is exact; if the sums did not
change, the power is unknown. `powermetrics` reports more, but requires sudo.
"""

import platform
import re
import subprocess
import sys
from dataclasses import dataclass

from jaccl_kernel.core.results import Power

IOREG = "/usr/sbin/ioreg"
DEADLINE_S = 5.0


@dataclass(frozen=True)
class Reading:
    """The running sums at one moment: milliwatts, and their number of samples."""

    milliwatts: int
    samples: int


def read(command: str = IOREG) -> Reading | None:
    """The present sums; None if there are none (no battery, another system)."""
    if command == IOREG and sys.platform != "darwin":
        return None
    try:
        output = subprocess.run(
            [command, "-rw0", "-c", "AppleSmartBattery"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(output)


def parse(text: str) -> Reading | None:
    """ioreg's output as a Reading."""
    values = [
        re.search(rf'"{name}"\s*=\s*(\d+)', text)
        for name in ("AccumulatedSystemLoad", "SystemLoadAccumulatorCount")
    ]
    if not all(values):
        return None
    total, count = (int(found.group(1)) for found in values if found)
    return Reading(total, count)


def watts(before: Reading | None, after: Reading | None) -> float | None:
    """The mean power between two readings; None if the sums did not change, or were reset."""
    if before is None or after is None:
        return None
    samples, total = after.samples - before.samples, after.milliwatts - before.milliwatts
    return total / samples / 1e3 if samples > 0 and total >= 0 else None


class Meter:
    """Measures this machine's power from its construction until `read`."""

    def __init__(self) -> None:
        self._before = read()

    def read(self) -> Power:
        """The mean power since then; ranks of one machine draw the same power."""
        return Power(platform.node(), watts(self._before, read()))
