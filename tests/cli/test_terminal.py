"""What a command tells at a terminal."""

import io

from jaccl_kernel.cli.terminal import Reporter
from jaccl_kernel.core.events import Event, Stage


def told(*stages: tuple[int, str, str, float | None]) -> list[str]:
    """The lines for these stages: rank, name, text, fraction."""
    stream = io.StringIO()
    reporter = Reporter(stream)
    for rank, name, text, fraction in stages:
        reporter.event(Event(rank, Stage(name, text, fraction)))
    return stream.getvalue().splitlines()


def test_a_long_load_is_told_by_tenths_and_how_fast_it_was() -> None:
    loading = [(0, "load", f"{at / 10:.2f} of 10.00 GB", at / 100) for at in range(101)]
    lines = told((0, "load", "loading big", None), *loading, (0, "load", "loaded 10.00 GB (2.50 GB/s)", 1.0))
    assert lines[:3] == [
        "[rank 0] load: loading big",
        "[rank 0] load: 0.00 of 10.00 GB (0%)",
        "[rank 0] load: 1.00 of 10.00 GB (10%)",
    ]
    assert lines[-1] == "[rank 0] load: loaded 10.00 GB (2.50 GB/s) (100%)"
    assert len(lines) == 13


def test_each_rank_is_told_once_a_stage() -> None:
    lines = told(
        (0, "join", "", None), (1, "join", "", None), (0, "join", "again", None), (-1, "prepare", "a", None),
        (-1, "prepare", "b", None), (1, "serve", "following rank 0", None),
    )  # fmt: skip
    assert lines == [
        "[rank 0] join: ", "[rank 1] join: ", "[jaccl] prepare: a", "[jaccl] prepare: b",
        "[rank 1] serve: following rank 0",
    ]  # fmt: skip
