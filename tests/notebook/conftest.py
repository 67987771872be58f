"""A clone's notebooks and hostfiles in a JupyterLab of their own, and a Chromium to look at them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.notebook import session
from tests.lab import REPOSITORY, Lab, open_browser, start_lab


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the notebooks and hostfiles as they are in git."""
    root = tmp_path / "clone"
    for folder in ("notebooks", "hostfiles"):
        shutil.copytree(
            REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("*.local.json", ".ipynb_*")
        )
    return root


@pytest.fixture
def lab(clone: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Lab]:
    """A JupyterLab on that folder, with the tiny model chosen; its own data lies in tmp_path / "own"."""
    (tmp_path / "own").mkdir(exist_ok=True)
    session.choose_model(str(tiny_model))
    with start_lab(clone, tmp_path / "own") as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One Chromium for a file's tests."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """That Chromium; its pages are closed after the test, or they look for their lost server for ever."""
    yield chromium
    for context in chromium.contexts:
        context.close()
