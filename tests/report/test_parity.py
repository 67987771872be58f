"""The correctness gate."""

from dataclasses import replace

from jaccl_kernel.core.results import Score
from jaccl_kernel.report.parity import NOT_TESTED, Parity, compare, first_difference, worst

TOP = ((1, 2), (3, 4), (5, 6))


def score(*rows: list[float], dtype: str = "bfloat16") -> Score:
    return Score(TOP, tuple(map(tuple, rows)), dtype)


BASE = score([-0.5, -1.0], [-0.7, -0.7], [-0.1, -3.0])


def test_equal_tokens_are_equal() -> None:
    parity = compare([1, 3, 5], [1, 3, 5], BASE, BASE)
    assert (parity.verdict, parity.first_difference, parity.max_logprob_diff) == ("equal", None, 0.0)
    assert "equal" in parity.sentence()


def test_a_near_tie_is_reported_but_is_no_failure() -> None:
    other = score([-0.5, -1.0], [-0.8, -0.6], [-0.1, -3.1])
    parity = compare([1, 3, 5], [1, 4, 9], BASE, other, reference_ranks=2)
    assert (parity.verdict, parity.first_difference, parity.reference_ranks) == ("near-tie", 1, 2)
    assert parity.max_logprob_diff is not None
    assert abs(parity.max_logprob_diff - 0.1) < 1e-9


def test_log_probabilities_that_rounding_does_not_explain_are_different() -> None:
    other = score([-0.5, -1.0], [-2.8, -0.6], [-0.1, -3.0])
    assert compare([1, 3, 5], [1, 4, 5], BASE, other).verdict == "different"
    close = score([-0.5, -1.0], [-0.72, -0.68], [-0.1, -3.0])
    assert compare([1, 3, 5], [1, 4, 5], replace(BASE, dtype="float32"), close).verdict == "different"


def test_a_token_that_the_reference_found_unlikely_is_no_near_tie() -> None:
    assert compare([1, 3, 5], [1, 99, 5], BASE, BASE).verdict == "different"


def test_not_a_number_agrees_with_nothing() -> None:
    other = score([-0.5, -1.0], [float("nan"), -0.7], [-0.1, -3.0])
    assert compare([1, 3, 5], [1, 4, 5], BASE, other).verdict == "different"


def test_the_first_difference_is_where_a_token_differs_or_is_missing() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], []) is None


def test_the_worst_run_decides() -> None:
    equal, near, bad = (Parity(name) for name in ("equal", "near-tie", "different"))
    assert worst([]) is NOT_TESTED
    assert worst([equal, near]) is near
    assert worst([near, bad, equal]) is bad
