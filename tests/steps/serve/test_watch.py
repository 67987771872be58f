"""The watchdog: silence and stalls are told, a pause of its own is not."""

from jaccl_kernel.core.events import Event, Heartbeat, Serving
from jaccl_kernel.steps.serve.watch import SILENCE_S, Watch


def beat(busy: float = 0.0, rank: int = 0) -> Event:
    return Event(rank, Heartbeat(busy))


def serving(stall: float = 60.0) -> Watch:
    watch = Watch(stall)
    watch.hear(Event(0, Serving("http://127.0.0.1:8080")), 100.0)
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


def test_heartbeats_are_ok_and_their_absence_is_reported_in_time() -> None:
    watch = serving()
    assert look_every_half_second(watch, 100.0, 160.0, beats=True) is None
    assert look_every_half_second(watch, 160.0, 160.0 + SILENCE_S - 0.5, beats=False) is None
    told = look_every_half_second(watch, 160.0 + SILENCE_S - 0.5, 170.0, beats=False)
    assert told is not None
    assert "no heartbeat from rank 0" in told


def test_heartbeats_of_workers_do_not_count_for_rank_0() -> None:
    watch = serving()
    for half in range(20):
        watch.hear(beat(rank=1), 100.0 + half / 2)
    assert look_every_half_second(watch, 100.0, 110.0, beats=False) is not None


def test_no_heartbeat_is_expected_before_the_server_is_ready() -> None:
    assert look_every_half_second(Watch(60.0), 0.0, 500.0, beats=False) is None


def test_a_pause_of_the_whole_machine_is_not_a_loss() -> None:
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
