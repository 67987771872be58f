"""Judges from outside the ranks whether a server makes progress, by rank 0's heartbeats. Pure.

Its inputs are events and the clock. After a pause of the watchdog itself (a closed lid, a stopped process),
the intervals start again.
"""

from dataclasses import dataclass

from jaccl_kernel.core.events import Event, Heartbeat, Serving

SILENCE_S = 3.0
PAUSE_S = 1.5  # a longer interval between two checks means that this process did not run


@dataclass
class Watch:
    """The state of the watchdog.

    Args:
        stall_s: seconds without progress after which the ranks count as stuck.
    """

    stall_s: float
    serving: bool = False
    _heard: float = 0.0
    _looked: float = 0.0
    _busy_s: float = 0.0

    def hear(self, event: Event, now: float) -> None:
        """Process an event; `now` is a monotonic clock in seconds."""
        if event.rank != 0:
            return
        match event.body:
            case Serving():
                self.serving = True
                self._looked = self._heard = now
                self._busy_s = 0.0
            case Heartbeat(busy_s):
                self._heard = now
                self._busy_s = busy_s

    def look(self, now: float) -> str | None:
        """Return what failed, or None."""
        paused = now - self._looked > PAUSE_S
        self._looked = now
        if not self.serving:
            return None
        if paused:
            self._heard = now
            self._busy_s = 0.0
        if now - self._heard > SILENCE_S:
            return f"no heartbeat from rank 0 for {SILENCE_S:.0f} s: its process hangs or is stopped"
        if self._busy_s > self.stall_s:
            return f"no progress for {self._busy_s:.0f} s: the ranks are stuck"
        return None
