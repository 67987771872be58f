"""A run's events, folded up."""

from jaccl_kernel.core.events import HOST, Body, Done, Event, Exited, JobStarted, RankError, Stage
from jaccl_kernel.notebook.views.timeline import Timeline


def heard(*events: tuple[float, int, Body], names: tuple[str, ...] = ("mac1", "mac2")) -> Timeline:
    timeline = Timeline(names)
    timeline.begin(0.0)
    for at, rank, body in events:
        timeline.handle(Event(rank, body, at))
    return timeline


def test_a_new_stage_of_the_host_ends_the_one_before_it() -> None:
    timeline = heard((1.0, HOST, Stage("demo model")), (4.0, HOST, Stage("bench", "1 rank")))
    first, second = timeline.snapshot(5.0)["stages"]
    assert (first["state"], first["began"], first["ended"]) == ("done", 1.0, 4.0)
    assert (second["state"], second["text"], second["ended"]) == ("running", "1 rank", None)


def test_a_fraction_moves_a_stage_on_instead_of_adding_one() -> None:
    timeline = heard(
        (1.0, HOST, Stage("demo model", "downloading", 0.0)),
        (2.0, HOST, Stage("demo model", "downloading", 0.5)),
    )
    (only,) = timeline.snapshot(3.0)["stages"]
    assert (only["fraction"], only["began"]) == (0.5, 1.0)


def test_a_rank_keeps_the_time_of_its_stage_while_its_text_changes() -> None:
    timeline = heard(
        (1.0, 1, Stage("load", "0.1 of 2 GB", 0.05)),
        (3.0, 1, Stage("load", "1 of 2 GB", 0.5)),
    )
    (rank,) = timeline.snapshot(4.0)["ranks"]
    assert (rank["label"], rank["began"], rank["text"]) == ("rank 1 · mac2", 1.0, "1 of 2 GB")


def test_a_rank_that_is_done_tells_its_whole_time() -> None:
    timeline = heard((1.0, 0, Stage("load")), (9.0, 0, Done()))
    assert not timeline.handle(Event(0, Exited(0), 9.5))
    (rank,) = timeline.snapshot(10.0)["ranks"]
    assert (rank["state"], rank["began"], rank["ended"]) == ("done", 1.0, 9.0)


def test_a_rank_that_failed_keeps_its_own_words_when_it_exits() -> None:
    timeline = heard(
        (1.0, 0, Stage("load")),
        (2.0, 0, RankError("ModelError", "no weights", stage="load")),
        (3.0, 0, Exited(1)),
    )
    (rank,) = timeline.snapshot(4.0)["ranks"]
    assert (rank["state"], rank["text"]) == ("failed", "at load: no weights")


def test_a_rank_that_vanishes_has_failed() -> None:
    timeline = heard((1.0, 0, Stage("measure")), (2.0, 0, Exited(-9)))
    (rank,) = timeline.snapshot(3.0)["ranks"]
    assert (rank["state"], rank["text"]) == ("failed", "exit status -9")


def test_a_new_job_has_new_ranks() -> None:
    timeline = heard((1.0, 0, Stage("measure")), (2.0, HOST, JobStarted("x", "/logs", "mlx.launch")))
    assert timeline.snapshot(3.0)["ranks"] == []


def test_the_end_of_a_run_ends_what_still_ran_in_the_same_way() -> None:
    timeline = heard((1.0, HOST, Stage("bench")), (2.0, 0, Stage("measure")))
    timeline.end("stopped", 7.0)
    shot = timeline.snapshot(8.0)
    assert [shot["state"], shot["stages"][0]["state"], shot["ranks"][0]["state"]] == ["stopped"] * 3
    assert shot["ranks"][0]["ended"] == 7.0
    timeline.begin(9.0)
    assert timeline.snapshot(9.0)["stages"] == []


def test_a_rank_beyond_the_known_names_goes_by_its_number() -> None:
    assert heard(names=()).label(3) == "rank 3"
