"""The workbench folder: copied once, updated where untouched, never over an edit."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.notebook import workbench
from jaccl_kernel.notebook.workbench import RECORD, place

ROOT = Path(__file__).parents[2]
BENCH = "notebooks/05_bench.ipynb"
BESIDE = f"notebooks/05_bench.{__version__}.ipynb"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a version of the package brings: two notebooks, a template and the rehearsal's hostfile."""
    folder = tmp_path / "source"
    write(folder / workbench.START, notebook("start = StartPanel()"))
    write(folder / BENCH, notebook("panel = BenchPanel()", "report = await panel.run()"))
    write(folder / "hostfiles/two.template.json", '{"hosts": []}')
    write(folder / "hostfiles/rehearsal.json", '{"hosts": [1]}')
    return folder


def notebook(*sources: str, outputs: list[Any] | None = None, indent: int = 1) -> str:
    cells = [
        {"cell_type": "code", "id": str(number), "metadata": {}, "outputs": outputs or [], "source": [source]}
        for number, source in enumerate(sources)
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=indent)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def listing(folder: Path) -> dict[str, str]:
    """The texts of all files below the folder but the record."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD
    }


def test_everything_is_copied_into_a_new_folder(tmp_path: Path, source: Path) -> None:
    placed = place(tmp_path / "a" / "b", source)
    assert listing(tmp_path / "a" / "b") == listing(source)
    assert (len(placed.new), placed.updated, placed.kept) == (4, (), ())
    assert placed.lines()[0] == f"Workbench folder: {tmp_path / 'a' / 'b'}"


def test_a_clones_own_notebooks_and_templates_are_copied_but_not_its_users_hostfiles(tmp_path: Path) -> None:
    write(tmp_path / "clone" / workbench.START, notebook("x"))
    write(tmp_path / "clone" / "hostfiles/mine.local.json", "{}")
    assert place(tmp_path / "a", tmp_path / "clone").new == (workbench.START,)
    assert workbench.clone() == ROOT
    assert len(place(tmp_path / "b").new) == len([*ROOT.glob("notebooks/*.ipynb")]) + len(
        [path for path in ROOT.glob("hostfiles/*.json") if not path.name.endswith(".local.json")]
    )


def test_a_second_start_changes_nothing_and_says_nothing(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    before = listing(tmp_path / "a")
    assert len(place(tmp_path / "a", source).lines()) == 1
    assert listing(tmp_path / "a") == before


def test_an_edited_file_stays_as_it_is(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    mine = notebook("panel = BenchPanel(ranks=(1, 2, 4))")
    write(tmp_path / "a" / BENCH, mine)
    write(tmp_path / "a" / "hostfiles/rehearsal.json", '{"hosts": [1, 2]}')
    for _ in range(2):
        assert len(place(tmp_path / "a", source).lines()) == 1
    assert listing(tmp_path / "a")[BENCH] == mine
    assert listing(tmp_path / "a")["hostfiles/rehearsal.json"] == '{"hosts": [1, 2]}'
    assert BESIDE not in listing(tmp_path / "a")


def test_a_new_version_replaces_what_was_not_edited(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    # as JupyterLab saves it: laid out anew, with an empty cell at the end, but not edited
    write(
        tmp_path / "a" / BENCH, notebook("panel = BenchPanel()", "report = await panel.run()", "", indent=4)
    )
    write(source / BENCH, notebook("panel = NewPanel()"))
    write(source / "hostfiles/two.template.json", '{"hosts": [0]}')
    placed = place(tmp_path / "a", source)
    assert set(placed.updated) == {BENCH, "hostfiles/two.template.json"}
    assert listing(tmp_path / "a") == listing(source)


def test_a_new_version_is_placed_beside_an_edited_file_once(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    mine, newer = notebook("panel = BenchPanel(ranks=(4,))"), notebook("panel = NewPanel()")
    write(tmp_path / "a" / BENCH, mine)
    write(source / BENCH, newer)
    placed = place(tmp_path / "a", source)
    assert placed.kept == ((BENCH, BESIDE),)
    assert f"kept your edited {BENCH}; the new version is {BESIDE}" in placed.lines()[-1]
    found = listing(tmp_path / "a")
    assert (found[BENCH], found[BESIDE]) == (mine, newer)
    assert len(place(tmp_path / "a", source).lines()) == 1
    assert listing(tmp_path / "a") == found


def test_a_notebook_with_outputs_is_kept_beside_its_replacement(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    outputs = [{"output_type": "stream", "name": "stdout", "text": ["41.0 tok/s\n"]}]
    run = notebook("panel = BenchPanel()", "report = await panel.run()", outputs=outputs)
    write(tmp_path / "a" / BENCH, run)
    write(source / BENCH, notebook("panel = NewPanel()"))
    placed = place(tmp_path / "a", source)
    assert (placed.updated, placed.outputs) == ((BENCH,), ("notebooks/05_bench.outputs.ipynb",))
    found = listing(tmp_path / "a")
    assert (found[BENCH], found[placed.outputs[0]]) == (notebook("panel = NewPanel()"), run)


def test_a_file_of_the_users_that_was_there_first_stays(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "a" / BENCH, "not even a notebook")
    assert place(tmp_path / "a", source).kept == ((BENCH, BESIDE),)
    assert listing(tmp_path / "a")[BENCH] == "not even a notebook"


def test_a_deleted_file_comes_back(tmp_path: Path, source: Path) -> None:
    place(tmp_path / "a", source)
    (tmp_path / "a" / BENCH).unlink()
    assert place(tmp_path / "a", source).new == (BENCH,)


@pytest.mark.parametrize("record", ["", "[]", '{"files": 3}', '{"files": {"notebooks/05_bench.ipynb": "?"}}'])
def test_without_a_readable_record_every_file_that_differs_counts_as_edited(
    tmp_path: Path, source: Path, record: str
) -> None:
    place(tmp_path / "a", source)
    (tmp_path / "a" / RECORD).write_text(record)
    before = listing(source)[BENCH]
    write(source / BENCH, notebook("panel = NewPanel()"))
    assert place(tmp_path / "a", source).kept == ((BENCH, BESIDE),)
    assert listing(tmp_path / "a")[BENCH] == before


def test_a_folder_that_cannot_be_written_says_which_and_how_to_choose_another(
    tmp_path: Path, source: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JacclError) as told:
        place(tmp_path / "file", source)
    assert str(tmp_path / "file") in told.value.where
    assert "--folder" in told.value.fix


def test_a_package_without_notebooks_says_so(tmp_path: Path) -> None:
    with pytest.raises(JacclError, match="notebooks are missing"):
        place(tmp_path / "a", tmp_path)
    assert not (tmp_path / "a").exists()


def test_the_default_folder_is_the_one_you_stand_in_if_it_is_a_workbench(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert workbench.default_folder() == tmp_path / "jaccl-workbench"
    place(tmp_path / "jaccl-workbench", source)
    monkeypatch.chdir(tmp_path / "jaccl-workbench")
    assert workbench.default_folder() == tmp_path / "jaccl-workbench"
