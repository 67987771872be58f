"""Fixtures of the steps' tests."""

import sys
from pathlib import Path

import pytest

from tests.needs import path_without


@pytest.fixture(
    params=[
        pytest.param("ps", marks=pytest.mark.needs("ps")),
        pytest.param("no ps", marks=pytest.mark.skipif(sys.platform == "darwin", reason="macOS has ps")),
    ]
)
def with_and_without_ps(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes are found by ps, and on a small Linux system without it."""
    if request.param == "no ps":
        (tmp_path / "programs").mkdir()
        monkeypatch.setenv("PATH", path_without("ps", tmp_path / "programs"))
