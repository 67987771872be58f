"""rsync's words in both flavours. That copies arrive is in test_shell.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.nodes import rsync
from jaccl_kernel.nodes.rsync import Progress, ProgressReader


def read(*lines: str) -> list[Progress | None]:
    reader = ProgressReader()
    return [reader.feed(line) for line in lines]


def test_rsync_3_is_read_across_files() -> None:
    told = read(
        "sending incremental file list",
        "a.bin",
        "        500,000  50%   12.34MB/s    0:00:01  ",
        "      1,000,000 100%   12.00MB/s    0:00:00  ",
        "      1,000,000 100%   12.00MB/s    0:01:02 (xfr#1, to-chk=1/3)",
        "sub/b 100% sure.bin",
        "          1,024 100%    1.50kB/s    0:00:00 (xfr#2, to-chk=0/3)",
    )
    assert told == [
        None,
        None,
        Progress(500_000, 12.34 * 2**20, 1, 0),
        Progress(1_000_000, 12 * 2**20, 0, 0),
        Progress(1_000_000, 12 * 2**20, 0, 1),
        None,
        Progress(1_001_024, 1536, 0, 2),
    ]


def test_openrsync_is_read_across_files() -> None:
    told = read(
        "           1000  50%    1.95KB/s   00:00:01",
        "           2000 100%    1.95KB/s   00:00:01 (xfer#1, to-check=1/2)",
        "           3000 100%   00:00:03 (xfer#2, to-check=0/2)",  # slow: no rate
        "              0 nan%    0.00kB/s   00:00:00 (xfer#3, to-check=0/2)",  # an empty file
        "        1000 100%    0.95kB/s    0:00:00",
    )
    assert told == [
        Progress(1000, 1.95 * 1024, 1, 0),
        Progress(2000, 1.95 * 1024, 0, 1),
        Progress(5000, None, 0, 2),
        Progress(5000, 0, 0, 3),
        Progress(6000, 0.95 * 1024, 0, 3),
    ]


@pytest.mark.parametrize("number", ["1,234,567", "1.234.567", "1'234'567", "1234567"])
def test_every_locale_groups_its_own_way(number: str) -> None:
    [told] = read(f"  {number}  12%    1,50GB/s  111:00:07  ")
    assert told == Progress(1_234_567, 1.5 * 2**30, 111 * 3600 + 7, 0)


def test_an_unknown_time_left_is_none() -> None:
    [told] = read("         32,768   0%    0.00kB/s  ??:??:??  ")
    assert told == Progress(32_768, 0, None, 0)


@given(st.lists(st.text()))
def test_any_text_is_read_without_harm(lines: list[str]) -> None:
    for told in read(*lines):
        assert told is None or told.sent >= 0


@pytest.mark.parametrize(
    ("words", "why", "fix"),
    [
        (
            "sh: 1: exec: rsync: not found\nrsync error: error in rsync protocol data stream (code 12)",
            "rsync is not installed on the node (sh: 1: exec: rsync: not found)",
            "Install",
        ),
        (
            'rsync: [receiver] write failed on "/m/w.bin": No space left on device (28)\nrsync error: …',
            "the disk is full",
            "--partial",
        ),
        ("protocol version mismatch -- is your shell clean?", "a remote shell start-up file", ".zshenv"),
        ('file has vanished: "/m/x"', "vanished", "again"),
        ("rsync: --info=progress2: unknown option", "does not support an option", "openrsync"),
        ("rsync: open: Operation not permitted (1)", "missing permission to read or write", "macOS"),
        ("/bin/sh: line 0: cd: /m: No such file or directory", "a folder is missing", "path"),
        ("rsync: something new\nrsync error: …", "rsync: something new", ""),
        ("", "no error message", ""),
    ],
)
def test_messages_of_rsync_are_explained(words: str, why: str, fix: str) -> None:
    told, cure = rsync.explain(words)
    assert why in told
    assert fix in cure


@pytest.mark.parametrize(
    ("folder", "path"),
    [("~", "."), ("~/", "."), ("~/a b", "a b"), ("a/~b", "a/~b"), ("/m", "/m"), ("~//m", "m")],
)
def test_a_folder_is_seen_from_the_home(folder: str, path: str) -> None:
    assert rsync.relative_to_home(folder) == path


@pytest.mark.parametrize("folder", ["", "~bob", "~bob/m"])
def test_another_users_home_is_refused(folder: str) -> None:
    with pytest.raises(InputError):
        rsync.relative_to_home(folder)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert rsync.remote_path("mac1.local") == "mac1.local:./"
    assert rsync.remote_path("me@fe80::1%en0") == "me@[fe80::1%en0]:./"
