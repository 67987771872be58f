"""What a copy must send, and what is there already. That it arrives is in tests/steps/sync/test_sync.py."""

from pathlib import Path

import pytest

from jaccl_kernel.core.errors import CommandFailed
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.staging import commit, plan, prepare
from jaccl_kernel.nodes.survey import Survey, survey
from jaccl_kernel.nodes.tree import FileEntry, Tree

A, B, C = "a" * 64, "b" * 64, "c" * 64


def there(old: dict[str, FileEntry] | None = None, partial: dict[str, FileEntry] | None = None) -> Survey:
    return Survey("/h/m", "folder", "/h", 10**9, Tree(old or {}), Tree(partial or {}))


def test_an_empty_place_needs_everything() -> None:
    steps = plan(Tree({"x": FileEntry(7, 1, A), "y": FileEntry(5, 1, B)}), there())
    assert (steps.ops, steps.in_place, steps.done, steps.needed) == ((), frozenset(), 0, 12)


def test_what_an_earlier_copy_brought_is_not_sent_again() -> None:
    wanted = Tree({"x": FileEntry(7, 1, A), "y": FileEntry(5, 1, B)})
    steps = plan(wanted, there(partial={"x": FileEntry(7, 1), "y": FileEntry(2, 9), "z": FileEntry(1, 1)}))
    assert steps.in_place == {"x"}
    assert (steps.done, steps.needed) == (7, 3)
    assert steps.ops == (("drop", "z"), ("own", "y"))


def test_a_right_file_of_the_old_folder_is_linked_under_whatever_name() -> None:
    steps = plan(Tree({"x": FileEntry(7, 1, A)}), there(old={"y": FileEntry(7, 9, A)}))
    assert steps.ops == (("link", "x", "y"),)
    assert (steps.in_place, steps.needed) == (frozenset({"x"}), 0)


def test_another_file_of_the_name_is_a_basis() -> None:
    steps = plan(Tree({"x": FileEntry(7, 1, A)}), there(old={"x": FileEntry(6, 1, B)}))
    assert steps.ops == (("basis", "x", "x"),)
    assert (steps.in_place, steps.needed) == (frozenset(), 7)


def test_a_link_to_the_old_file_is_not_taken_for_the_new_one_of_the_same_time() -> None:
    steps = plan(
        Tree({"x": FileEntry(7, 1, A)}),
        there(old={"x": FileEntry(7, 1, C)}, partial={"x": FileEntry(7, 1)}),
    )
    assert steps.in_place == frozenset()
    assert steps.ops == (("own", "x"),)


@pytest.mark.usefixtures("nothing_left")
async def test_the_old_folder_stays_when_the_new_one_cannot_take_its_name(tmp_path: Path) -> None:
    """The partial folder is gone: nothing may happen to the old one."""
    node = LocalNode("mac", tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").write_text("old")
    seen = await survey(node, "~/m")
    with pytest.raises(CommandFailed):
        await commit(node, seen, Tree())
    assert (tmp_path / "m" / "x").read_text() == "old"


@pytest.mark.usefixtures("nothing_left")
async def test_a_file_that_only_the_old_folder_had_is_kept_whatever_its_name(tmp_path: Path) -> None:
    node = LocalNode("mac", tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / " notes ").write_text("mine")
    (tmp_path / ".m.partial").mkdir()
    seen = await survey(node, "~/m")
    aside = await commit(node, seen, Tree())
    assert aside is not None
    assert (Path(aside) / " notes ").read_text() == "mine"


@pytest.mark.usefixtures("nothing_left")
async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    node = LocalNode("mac", tmp_path)
    (tmp_path / "file").touch()
    seen = Survey(str(tmp_path / "file" / "m"), "missing", str(tmp_path), None)
    with pytest.raises(CommandFailed, match="file"):
        await prepare(node, seen, plan(Tree(), seen))
