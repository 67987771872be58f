"""What copies within this machine where rsync is not installed, held against rsync itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.nodes import local_copy
from jaccl_kernel.nodes.rsync import ProgressReader, explain

pytestmark = pytest.mark.usefixtures("nothing_left")
AS_PUSH = ("-L", "-I", "--inplace", "--timeout=300", "--exclude=.*")


def run(
    source: Path, to: Path, *options: str, program: str = "", folder: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [program] if program else [sys.executable, "-I", local_copy.__file__]
    return subprocess.run(
        [*command, "-rlt", *options, f"{source}/" if folder else str(source), f"{to}/"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def listing(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: files by content, time and mode; links by where they lead."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        what: object = (
            path.readlink() if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
        )
        time = status.st_mtime_ns if path.is_file() and not path.is_symlink() else 0
        found[str(path.relative_to(folder))] = (what, time, status.st_mode)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "a: b"
    (folder / "sub dir" / "[odd] *name?").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "junk").write_text("junk")
    (folder / "big").write_bytes(os.urandom(3_000_000))
    (folder / "nothing").touch()
    (folder / "sub dir" / "[odd] *name?" / "it's").write_text("1")
    (folder / "sub dir" / "oddname").write_text("2")
    (folder / "back\\slash").write_text("3")
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o750)
    (folder / "link").symlink_to("big")
    os.utime(folder / "big", (1_700_000_000, 1_700_000_000.5))
    return folder


@pytest.mark.needs("rsync")
@pytest.mark.parametrize(
    "options",
    [
        (),
        AS_PUSH,
        (*AS_PUSH, "--exclude=/big", "--exclude=/back\\slash"),
        (*AS_PUSH, "--exclude=/sub dir/\\[odd] \\*name\\?"),
        (*AS_PUSH, "--exclude=odd*"),
        ("--include=/tool", "--exclude=*"),
    ],
)
def test_it_leaves_what_rsync_leaves(source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    done = run(source, ours, *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert run(source, theirs, *options, program=str(shutil.which("rsync"))).returncode == 0
    assert listing(ours) == listing(theirs)
    assert listing(ours)


def test_one_file_goes_into_the_folder(source: Path, tmp_path: Path) -> None:
    assert run(source / "tool", tmp_path / "there" / "new", folder=False).returncode == 0
    assert listing(tmp_path / "there" / "new")["tool"] == listing(source)["tool"]


def test_progress_adds_up_to_all_bytes(source: Path, tmp_path: Path) -> None:
    reader = ProgressReader()
    told = [reader.feed(line) for line in run(source, tmp_path / "there", "--progress").stdout.splitlines()]
    last = [one for one in told if one][-1]
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert (last.sent, last.files) == (sum(path.stat().st_size for path in files), len(files))


def test_what_an_earlier_copy_brought_is_not_written_again(tmp_path: Path) -> None:
    """Blocks that are equal stay as they are: a hole in the file there is still one."""
    source, there = tmp_path / "source", tmp_path / "there"
    for folder, last in ((source, b"new"), (there, b"old, and longer")):
        folder.mkdir()
        with (folder / "big").open("wb") as file:
            file.truncate(8 << 20)
            file.seek(0, os.SEEK_END)
            file.write(last)
    before = (there / "big").stat()
    assert run(source, there, *AS_PUSH).returncode == 0
    after = (there / "big").stat()
    assert (there / "big").read_bytes() == (source / "big").read_bytes()
    assert after.st_ino == before.st_ino
    assert after.st_blocks * 512 < 4 << 20


def test_not_in_place_a_file_that_fails_leaves_the_old_one(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "big").write_text("old")
    wrapped = tmp_path / "wrapped"
    wrapped.write_text(f'#!/bin/sh\nulimit -f 200\nexec {sys.executable} -I {local_copy.__file__} "$@"\n')
    wrapped.chmod(0o755)
    done = run(source, there, program=str(wrapped))
    assert done.returncode == 11
    assert "File too large" in done.stderr
    assert (there / "big").read_text() == "old"
    assert not list(there.glob(".big.*"))


def test_a_file_that_is_read_only_can_be_gone_on_with(source: Path, tmp_path: Path) -> None:
    (source / "big").chmod(0o444)
    assert run(source, tmp_path / "there", *AS_PUSH).returncode == 0
    assert (tmp_path / "there" / "big").stat().st_mode & 0o600 == 0o600


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [(("--delete",), 1, "does not support an option"), ((), 11, "a folder is missing")],
)
def test_a_failure_is_explained_as_rsyncs_is(
    tmp_path: Path, options: tuple[str, ...], status: int, words: str
) -> None:
    done = run(tmp_path / "gone", tmp_path / "there", *options)
    assert done.returncode == status
    assert words in explain(done.stderr)[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_to_be_full(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "big").symlink_to("/dev/full")
    done = run(source, tmp_path / "there", *AS_PUSH)
    assert done.returncode == 11
    assert explain(done.stderr)[0].startswith("the disk is full")
