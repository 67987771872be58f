"""The notebooks as files: short, clean, their links good."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 10  # lines
LINK = re.compile(r"\]\(([^)#]+)\)")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_every_step_has_its_notebook() -> None:
    steps = ["start", "enable", "verify", "hostfile", "sync", "bench", "serve", "prompt", "troubleshoot"]
    assert [path.name for path in NOTEBOOKS] == [f"{at:02}_{step}.ipynb" for at, step in enumerate(steps)]


@each
def test_a_notebook_is_valid_and_holds_no_output(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    import nbformat  # slow to import

    nbformat.validate(nbformat.reads(text, as_version=nbformat.NO_CONVERT))
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"


@each
def test_cells_are_short(path: Path) -> None:
    lengths = [len(cell["source"]) for cell in cells(path, "code")]
    assert max(lengths) <= LONGEST_CELL
    assert statistics.median(lengths) <= 4


@each
def test_it_opens_with_a_heading_and_says_what_success_looks_like(path: Path) -> None:
    prose = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    assert prose[0].startswith("# ")
    assert any("Expected result" in text and "If something fails" in text for text in prose)


@each
def test_its_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for target in LINK.findall("".join(cell["source"])):
            assert (FOLDER / target).exists(), target
