"""Names that another machine tells never lead out of a folder of ours, on either side."""

import os
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import NodeError
from jaccl_kernel.nodes import staging
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.staging import StagingPlan
from jaccl_kernel.nodes.survey import Survey, parse_survey, survey
from jaccl_kernel.nodes.tree import FileEntry, Tree

NAMES = [
    "..", "../x", "../../x", "a/../../x", "a/..", "/etc/passwd", "//x", "a//b", "a/", "", ".", "./a", "a/./b",
    ".hidden", "a/.hidden", "a\tb", "a\x1b[2Jb", "a\x7f", "a\r", "a\u2028b", "a\u202eb", "\udcff",
]  # fmt: skip
FOLDERS = ["", "/", "relative", "~/x", "/a/../b", "/a/..", "/a//b", "/a/./b", "/a\tb", "/a\x1bb", "//a"]


@pytest.mark.parametrize("word", ["file", "part"])
@pytest.mark.parametrize("name", NAMES)
def test_a_listed_name_that_leads_out_of_the_folder_is_refused(word: str, name: str) -> None:
    digest = "-" if word == "part" else "0" * 64
    text = f"home//home/x\nfolder//home/x/m\n{word}/{digest}/1:2:3:4:5/./{name}\nend/\n"
    with pytest.raises(NodeError, match="unsupported file name") as caught:
        parse_survey(text, "mac2")
    assert caught.value.where == "mac2"


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("state", ["folder", "missing", "taken"])
def test_a_listed_folder_that_is_not_absolute_is_refused(state: str, folder: str) -> None:
    with pytest.raises(NodeError, match="unsupported folder"):
        parse_survey(f"{state}/{folder}\nend/\n", "mac2")


def test_an_ordinary_listing_is_read() -> None:
    lines = "".join(
        f"file/{'0' * 64}/1:2:3:4:5/./{name}\n" for name in ("a..b", "it's [1]*", "日本/ä b", "a-")
    )
    assert len(parse_survey(f"folder//a b/m\n{lines}end/\n", "mac2").tree.files) == 4


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the model's, with a file that nobody may touch."""
    folder = tmp_path / "models" / "other"
    folder.mkdir(parents=True)
    (folder / "x").write_text("precious")
    return folder


def there(tmp_path: Path, *names: str) -> Survey:
    tree = Tree(dict.fromkeys(names, FileEntry(1, 1)))
    return Survey(str(tmp_path / "models" / "m"), "folder", str(tmp_path), None, tree)


@pytest.mark.parametrize("verb", ["drop", "link", "basis", "own"])
@pytest.mark.parametrize("name", ["../other/x", "a/../../other/x", "..", "/x"])
@pytest.mark.usefixtures("nothing_left")
async def test_the_node_itself_refuses_to_prepare_a_name_outside(
    tmp_path: Path, outside: Path, verb: str, name: str
) -> None:
    steps = StagingPlan(((verb, name, "config.json"),), frozenset(), 0, 0)
    with pytest.raises(NodeError, match="refused"):
        await staging.prepare(LocalNode("mac2", tmp_path), there(tmp_path), steps)
    assert (outside / "x").read_text() == "precious"


@pytest.mark.parametrize("verb", ["drop", "link", "basis"])
@pytest.mark.usefixtures("nothing_left")
async def test_nothing_is_removed_behind_a_link_in_the_staging_folder(
    tmp_path: Path, outside: Path, verb: str
) -> None:
    model = tmp_path / "models" / "m"
    model.mkdir()
    (model / "config.json").write_text("{}")
    partial = tmp_path / "models" / ".m.partial"
    partial.mkdir()
    (partial / "sub").symlink_to(outside)
    steps = StagingPlan(((verb, "sub/x", "config.json"),), frozenset(), 0, 0)
    await staging.prepare(LocalNode("mac2", tmp_path), there(tmp_path), steps)
    assert (outside / "x").read_text() == "precious"


@pytest.mark.usefixtures("nothing_left")
async def test_a_staging_folder_that_is_a_link_is_refused(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "models" / ".m.partial").symlink_to(outside)
    steps = StagingPlan((("drop", "x"),), frozenset(), 0, 0)
    with pytest.raises(NodeError, match="is a link"):
        await staging.prepare(LocalNode("mac2", tmp_path), there(tmp_path), steps)
    assert (outside / "x").read_text() == "precious"


@pytest.mark.parametrize("name", ["../other/x", "/x"])
@pytest.mark.usefixtures("nothing_left")
async def test_a_commit_keeps_extra_files_only_in_its_own_folder(
    tmp_path: Path, outside: Path, name: str
) -> None:
    (tmp_path / "models" / "m").mkdir()
    (tmp_path / "models" / ".m.partial").mkdir()
    with pytest.raises(NodeError, match="refused"):
        await staging.commit(LocalNode("mac2", tmp_path), there(tmp_path, name), Tree({}))
    assert (outside / "x").read_text() == "precious"
    assert (tmp_path / "models" / "m").is_dir()


@pytest.mark.usefixtures("nothing_left")
async def test_a_node_that_lies_about_its_files_is_refused(tmp_path: Path, outside: Path) -> None:
    """Its `stat` lists a file of the hidden folder that is not below it."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "m").mkdir()
    (home / ".m.partial").mkdir()
    (home / ".m.partial" / "a").write_text("a")
    program = home / "bin" / "stat"
    program.write_text('#!/bin/sh\n[ "$2" = %s ] && exit\necho 1:2:3:4:5/./../../models/other/x\n')
    program.chmod(0o755)
    node = LocalNode("mac2", home, f"{home}/bin:{os.environ['PATH']}")
    with pytest.raises(NodeError, match="unsupported file name"):
        await survey(node, "~/m", hashes="none")
