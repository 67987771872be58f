"""The watchdog: silence and stalls are told, a pause of its own is not."""

from jaccl_kernel.steps.serve_watch import SILENCE_S, Watch
from jaccl_kernel.wire import Event


def beat(busy: float = 0.0, rank: int = 0) -> Event:
    return Event(rank, "beat", {"busy_s": busy})


def serving(stall: float = 60.0) -> Watch:
    watch = Watch(stall)
    watch.hear(Event(0, "serving"), 100.0)
    return watch


def look_every_half_second(watch: Watch, start: float, end: float, beats: bool) -> str | None:
    now = start
    while now < end:
        now += 0.5
        if beats:
            watch.hear(beat(), now)
        if wrong := watch.look(now):
            return wrong
    return None


def test_beats_keep_it_quiet_and_silence_is_told_in_time() -> None:
    watch = serving()
    assert look_every_half_second(watch, 100.0, 160.0, beats=True) is None
    assert look_every_half_second(watch, 160.0, 160.0 + SILENCE_S - 0.5, beats=False) is None
    told = look_every_half_second(watch, 160.0 + SILENCE_S - 0.5, 170.0, beats=False)
    assert told is not None
    assert "rank 0 has said nothing" in told


def test_workers_beats_do_not_stand_for_rank_0() -> None:
    watch = serving()
    for half in range(20):
        watch.hear(beat(rank=1), 100.0 + half / 2)
    assert look_every_half_second(watch, 100.0, 110.0, beats=False) is not None


def test_before_it_serves_nothing_is_expected_of_it() -> None:
    assert look_every_half_second(Watch(60.0), 0.0, 500.0, beats=False) is None


def test_a_pause_of_everyone_is_nobodys_silence() -> None:
    watch = serving()
    assert look_every_half_second(watch, 100.0, 105.0, beats=True) is None
    assert watch.look(165.0) is None  # a minute later: the lid was closed
    assert look_every_half_second(watch, 165.0, 167.0, beats=False) is None
    assert look_every_half_second(watch, 167.0, 169.0, beats=False) is not None


def test_a_step_without_end_is_a_stall() -> None:
    watch = serving(stall=60.0)
    watch.hear(beat(59.0), 100.2)
    assert watch.look(100.4) is None
    watch.hear(beat(61.0), 101.2)
    told = watch.look(101.4)
    assert told is not None
    assert "stuck" in told
