"""Judges from outside the ranks whether a job still runs, by their pulses and by what its steps took before.

A rank that sends nothing is stopped, hangs with Python's lock held, or is not reachable. If all ranks send
pulses and none makes progress, they wait in a collective that will not end (JACCL has no timeout). While one
rank makes progress, the others may wait for it.

Its inputs are the ranks' states and the clock. After a pause of this process itself (a closed lid), the
intervals start again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaccl_kernel.core.errors import DeadlineExceeded
from jaccl_kernel.core.events import Pulse
from jaccl_kernel.launch.job import RankState

LOOK_S = 0.5  # between two looks
PAUSE_S = 3.0  # a longer interval between two looks means that this process did not run
SUSPENDED_S = 5.0  # without a line of a rank, whose process is suspended
SILENCE_S = 8.0  # without a line of a rank, which sends a pulse every second
SLOW_SILENCE_S = 25.0  # in a stage that can hold Python's lock for long
SLOW_STAGES = ("start", "import", "load")
QUICK_STAGES = ("sums",)  # a few small collectives
JOIN = "join"  # MLX's init holds Python's lock until all ranks are there: no pulse, and its own deadline
STILL_S = 10.0  # without progress on any rank
STILL_FACTOR = 5  # times the longest step so far
FIRST_S = 120.0  # for the first steps of a stage, which say nothing of the next ones yet
FEW = 3  # so many points of progress are the first ones
LOAD_S = 600.0  # one tensor from a slow disk


@dataclass
class Watchdog:
    """The state between two looks.

    Args:
        ranks: the ranks' states, which the job keeps up to date.
    """

    ranks: Sequence[RankState]
    _looked: float | None = None
    _began: dict[int, float] = field(default_factory=dict)  # when the present pause of a rank began to count

    def look(
        self, now: float, *, still_s: float | None = None, patient: bool = False
    ) -> DeadlineExceeded | None:
        """What failed, or None.

        Args:
            now: a monotonic clock in seconds, that of `RankState.heard_at`.
            still_s: the least time without progress that counts, in seconds; None if the ranks may be idle.
            patient: whether the ranks run code of the user, which can hold Python's lock for long.
        """
        paused = self._looked is None or now - self._looked > PAUSE_S
        self._looked = now
        if paused:
            self._began = {rank.number: now for rank in self.ranks}
        running = [
            rank for rank in self.ranks if rank.program_pid and not rank.done and rank.returncode is None
        ]
        if not running:
            return None
        silent = [rank for rank in running if self._is_silent(rank, now, patient)]
        if silent:
            return self._silence(silent, now)
        if still_s is not None and all(
            rank.pulse and self._is_still(rank, rank.pulse, still_s, now) for rank in running
        ):
            return _stuck(running)
        return None

    def _is_silent(self, rank: RankState, now: float, patient: bool) -> bool:
        silence = now - self._since(rank)
        if silence > SUSPENDED_S and rank.is_suspended():
            return True
        if rank.stage == JOIN:
            return False
        return silence > (SLOW_SILENCE_S if patient or rank.stage in SLOW_STAGES else SILENCE_S)

    def _is_still(self, rank: RankState, pulse: Pulse, least: float, now: float) -> bool:
        if rank.stage == JOIN:
            return False
        if rank.stage in SLOW_STAGES:
            limit = LOAD_S
        elif pulse.points < FEW and rank.stage not in QUICK_STAGES:
            limit = FIRST_S
        else:
            limit = max(least, STILL_FACTOR * pulse.longest_s)
        return pulse.still_s > limit and now - self._began.get(rank.number, 0.0) > STILL_S

    def _since(self, rank: RankState) -> float:
        return max(rank.heard_at or 0.0, self._began.get(rank.number, 0.0))

    def _silence(self, silent: Sequence[RankState], now: float) -> DeadlineExceeded:
        took = min(now - self._since(rank) for rank in silent)
        if suspended := [rank for rank in silent if rank.is_suspended()]:
            [one, *_] = suspended
            return DeadlineExceeded(
                f"{_names(suspended)} is suspended (SIGSTOP or Ctrl-Z) in stage '{one.stage}': process "
                f"{one.program_pid}",
                where=one.name,
                fix="Find what suspends it; then start again.",
            )
        if len(silent) == len(self.ranks) > 1:
            return DeadlineExceeded(
                f"no rank has sent anything for {took:.0f} s: the launcher on this machine is stopped, "
                "or the network is down",
                where="this machine",
                fix="Check that nothing suspends the job's processes, and that the nodes answer over ssh.",
            )
        return DeadlineExceeded(
            f"{_names(silent)} has sent nothing for {took:.0f} s in stage '{silent[0].stage}': its process "
            "is stopped or hangs, or its node is not reachable",
            where=silent[0].name,
            fix=f"Check that {silent[0].name} answers over ssh and is not asleep; then start again.",
        )


def _stuck(ranks: Sequence[RankState]) -> DeadlineExceeded:
    """The error of ranks of which none makes progress: those that are behind come first."""
    pulses = {rank.number: rank.pulse for rank in ranks if rank.pulse}
    still = min(pulse.still_s for pulse in pulses.values())
    last = min(pulse.steps for pulse in pulses.values())
    behind = [rank for rank in ranks if pulses[rank.number].steps == last]
    if len(behind) == len(ranks):
        who = "all ranks are at the same step"
    else:
        others = [rank for rank in ranks if rank not in behind]
        pairs = ", ".join(f"{one.name} and {other.name}" for one in behind for other in others)
        who = f"{_names(behind)} is behind: the link between {pairs}"
    return DeadlineExceeded(
        f"no rank made progress for {still:.0f} s in stage '{ranks[0].stage}': "
        f"they wait in a collective that does not end ({who})",
        where=behind[0].name,
        fix="Check the cables and the links (`jaccl verify FILE`), then start again.",
    )


def _names(ranks: Sequence[RankState]) -> str:
    return ", ".join(f"rank {rank.number} ({rank.name})" for rank in ranks)
