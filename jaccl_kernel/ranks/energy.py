"""What this Mac drew while it worked, where macOS tells it without a password: MacBooks do, desktops do not.

macOS keeps running sums of the system's load in the battery controller's registry entry and publishes them
every 10 to 60 seconds (`ioreg -rw0 -c AppleSmartBattery`: "PowerTelemetryData" with AccumulatedSystemLoad,
in milliwatts, and SystemLoadAccumulatorCount). The mean between two readings is exact; when the sums did not
move in between, nothing is known. `powermetrics` would tell more, but wants sudo.
"""

import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

IOREG = "/usr/sbin/ioreg"
DEADLINE_S = 5.0


@dataclass(frozen=True)
class Reading:
    """The running sums at one moment: milliwatts, and how many samples they hold."""

    milliwatts: int
    samples: int


def read(command: str = IOREG) -> Reading | None:
    """The sums now; None where there are none (no battery, another system)."""
    if command == IOREG and sys.platform != "darwin":
        return None
    try:
        told = subprocess.run(
            [command, "-rw0", "-c", "AppleSmartBattery"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(told)


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
    """The mean between two readings; None if the sums did not move, or were begun anew."""
    if before is None or after is None:
        return None
    samples, total = after.samples - before.samples, after.milliwatts - before.milliwatts
    return total / samples / 1e3 if samples > 0 and total >= 0 else None


class Meter:
    """From its making to `read`, what this machine drew."""

    def __init__(self) -> None:
        self._before = read()

    def read(self) -> dict[str, Any]:
        """`machine` (ranks of one machine draw the same power), and `watts` in the mean, or None."""
        return {"machine": platform.node(), "watts": watts(self._before, read())}
