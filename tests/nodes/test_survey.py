"""What a folder holds, hashed where it is."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import CommandTimeout, NodeError
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.survey import free_bytes, parse_survey, sibling, survey
from jaccl_kernel.nodes.tree import Difference, FileEntry, Tree

KEY = "1:2:{size}:1700000000.123:1700000001.5"
SUM = "a" * 64


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "m").mkdir(parents=True)
    return tmp_path / "home"


async def hashed(node: LocalNode, **options: str) -> list[int]:
    """The bytes that a look had to hash, one figure per file."""
    told: list[int] = []
    await survey(node, "~/m", on_hash=lambda done, total: told.append(total), **options)  # type: ignore[arg-type]
    return told


@pytest.mark.usefixtures("nothing_left")
async def test_every_file_has_size_time_and_hash(home: Path) -> None:
    (home / "m" / "sub dir").mkdir()
    (home / "m" / "sub dir" / "é 'x' \\ $y").write_bytes(b"abc")
    (home / "m" / "empty").touch()
    (home / "m" / ".hidden").write_text("x")
    (home / "m" / "link").symlink_to(home / "m" / "empty")
    (home / "m" / "dead link").symlink_to("nowhere")
    os.utime(home / "m" / "empty", (5, 5))
    seen = await survey(LocalNode("mac", home), "~/m")
    assert seen.path == str((home / "m").resolve())
    assert seen.tree.files == {
        "sub dir/é 'x' \\ $y": FileEntry(
            3,
            int((home / "m" / "sub dir" / "é 'x' \\ $y").stat().st_mtime),
            hashlib.sha256(b"abc").hexdigest(),
        ),
        "empty": FileEntry(0, 5, hashlib.sha256(b"").hexdigest()),
        "link": FileEntry(0, 5, hashlib.sha256(b"").hexdigest()),
    }
    assert seen.free
    assert seen.home == str(home)


BSD_STAT = r"""#!/bin/sh
# As macOS's: it knows no -c; %N is the name and %n a line break.
[ "$1" != -L ] || shift
[ "$1" = -f ] || { echo "stat: illegal option -- ${1#-}" >&2; exit 1; }
format=$(printf %s "$2" | sed 's/%n/\\n/g; s/%N/%n/; s/%z/%s/; s/%Fm/%.9Y/; s/%Fc/%.9Z/')
shift 2
exec /usr/bin/stat -L --printf="$format\n" "$@"
"""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.skipif(sys.platform == "darwin", reason="its own stat is the BSD one: all tests use it")
async def test_the_stat_of_macos_gives_the_same(home: Path, tmp_path: Path) -> None:
    (home / "m" / "sub dir").mkdir()
    (home / "m" / "sub dir" / "a b").write_bytes(b"abc")
    (home / "m" / "empty").touch()
    (home / ".m.partial").mkdir()
    (home / ".m.partial" / "part").write_text("12")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "stat").write_text(BSD_STAT)
    (tmp_path / "bin" / "stat").chmod(0o755)
    gnu = await survey(LocalNode("linux", home), "~/m", hashes="fresh")
    bsd = await survey(LocalNode("mac", home, f"{tmp_path}/bin:{os.environ['PATH']}"), "~/m", hashes="fresh")
    assert set(bsd.tree.files) == {"sub dir/a b", "empty"}
    assert (bsd.tree, bsd.partial) == (gnu.tree, gnu.partial)


@pytest.mark.usefixtures("nothing_left")
async def test_a_disk_that_does_not_respond_has_a_deadline(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "find").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "bin" / "find").chmod(0o755)
    monkeypatch.setattr("jaccl_kernel.nodes.survey.LIST_DEADLINE_S", 0.5)
    with pytest.raises(CommandTimeout, match="made no progress for"):
        await survey(LocalNode("mac", home, f"{tmp_path}/bin:{os.environ['PATH']}"), "~/m")


@pytest.mark.usefixtures("nothing_left")
async def test_a_hash_is_kept_until_the_file_is_touched_in_any_way(home: Path) -> None:
    node = LocalNode("mac", home)
    file = home / "m" / "weights"
    file.write_bytes(b"a" * 1000)
    assert await hashed(node) == [1000]
    assert await hashed(node) == []
    (home / "m").rename(home / "n")
    (home / "n").rename(home / "m")
    assert await hashed(node) == []
    assert await hashed(node, hashes="fresh") == [1000]
    times = file.stat()
    file.write_bytes(b"b" * 1000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await hashed(node) == [1000], "same size, same time, other bytes"


@pytest.mark.usefixtures("nothing_left")
async def test_the_hidden_sibling_is_listed_not_hashed(home: Path) -> None:
    (home / ".m.partial").mkdir()
    (home / ".m.partial" / "part").write_text("12")
    seen = await survey(LocalNode("mac", home), "~/m")
    assert seen.partial.files["part"].sha256 is None
    assert seen.partial.bytes == 2


@pytest.mark.usefixtures("nothing_left")
async def test_a_missing_folder_or_a_file_is_reported(home: Path) -> None:
    node = LocalNode("mac", home)
    missing = await survey(node, "~/far/away/x")
    assert (missing.state, missing.path) == ("missing", f"{home}/far/away/x")
    assert missing.free
    (home / "file").touch()
    assert (await survey(node, "~/file")).state == "taken"


@pytest.mark.usefixtures("nothing_left")
async def test_a_name_with_a_line_break_is_refused(home: Path) -> None:
    (home / "m" / "a\nb").touch()
    with pytest.raises(NodeError, match="unsupported file name"):
        await survey(LocalNode("mac", home), "~/m")


def test_incomplete_output_is_refused() -> None:
    with pytest.raises(NodeError, match="is incomplete"):
        parse_survey("home//h\nfolder//h/m\n", "mac")
    with pytest.raises(NodeError, match="changed during the survey"):
        parse_survey(f"folder//h/m\nfile/changing/{KEY.format(size=1)}/./x\nend/\n", "mac")
    whole = parse_survey(f"folder//h/m\nfile/{SUM}/{KEY.format(size=7)}/./x\nend/\n", "mac")
    assert whole.tree.files == {"x": FileEntry(7, 1700000000, SUM)}
    assert whole.free is None


def test_a_difference_has_a_text() -> None:
    one = Tree({name: FileEntry(1, 0, SUM) for name in ("a", "b", "c", "d", "e")})
    other = Tree({"a": FileEntry(1, 9, SUM), "e": FileEntry(1, 0, "b" * 64), "x": FileEntry(1, 0, SUM)})
    assert str(one.difference(other)) == "missing: b, c, d; changed: e; extra: x"
    assert not one.difference(one)
    assert Difference(missing=tuple("abcde")).missing
    assert str(Difference(missing=tuple("abcde"))) == "missing: a, b, c and 2 more"
    assert one.digest != other.digest


def test_a_file_without_a_hash_is_never_the_same() -> None:
    entry = FileEntry(1, 0)
    assert not entry.same_content(entry)


def test_the_sibling_is_hidden_and_beside() -> None:
    assert sibling("/a b/m.x") == "/a b/.m.x.partial"


def test_free_bytes_of_the_volume() -> None:
    printed = (Path(__file__).parents[1] / "topology" / "data" / "mac" / "df.txt").read_text(encoding="utf-8")
    assert free_bytes(printed) == 340_000_000 * 1024
    assert free_bytes("df: /nowhere: No such file or directory\n") is None
