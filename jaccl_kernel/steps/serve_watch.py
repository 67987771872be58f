"""Whether a server gets on, judged from outside its ranks: by rank 0's heartbeats and what they say. Pure.

Fed with events and the clock. A pause of the watcher itself (a closed lid, a stopped process) is nobody's
silence: after it, everyone starts afresh.
"""

from dataclasses import dataclass

from jaccl_kernel.wire import Event

SILENCE_S = 3.0
PAUSE_S = 1.5  # between two looks: longer means that we did not run


@dataclass
class Watch:
    """The watchdog's memory.

    Args:
        stall_s: how long a step may take before the ranks count as stuck, in seconds.
    """

    stall_s: float
    serving: bool = False
    _heard: float = 0.0
    _looked: float = 0.0
    _busy_s: float = 0.0

    def hear(self, event: Event, now: float) -> None:
        """Take an event; `now` is a monotonic clock's, in seconds."""
        if event.rank != 0:
            return
        if event.kind == "serving":
            self.serving = True
            self._looked = now
        if event.kind in ("serving", "beat"):
            self._heard = now
            self._busy_s = float(event.data.get("busy_s", 0.0))

    def look(self, now: float) -> str | None:
        """What is wrong, in words, or None."""
        paused = now - self._looked > PAUSE_S
        self._looked = now
        if not self.serving:
            return None
        if paused:
            self._heard = now
            self._busy_s = 0.0
        if now - self._heard > SILENCE_S:
            return f"rank 0 has said nothing for {SILENCE_S:.0f} s: its process hangs or is stopped"
        if self._busy_s > self.stall_s:
            return f"a step has made no progress for {self._busy_s:.0f} s: the ranks are stuck"
        return None
