"""Reading (as mlx.launch does), writing (atomically) and refusing hostfiles (with a location)."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx._distributed_utils import common as mlx_common

from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.hostfile.hostfile import PLACEHOLDER, Host, Hostfile, read_device_file
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.hostfile.template import template

# mlx's own reader leaves the file to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HOSTFILES = Path(__file__).parents[2] / "hostfiles"
TEMPLATES = {
    "two-macs-jaccl.template.json": 2,
    "three-macs-jaccl.template.json": 3,
    "m3-ultra-jaccl.template.json": 4,
}

THREE = """{
  "backend": "jaccl",
  "comment": ["shelf 2", {"since": 2026}],
  "envs": ["HF_HUB_OFFLINE=1"],
  "hosts": [
    {"name": "left", "ssh": "m1.local", "ips": ["10.0.1.11", "10.0.0.1"], "rdma": [null, "rdma_en2", "en3"]},
    {"ssh": "m2.local", "rdma": ["rdma_en4", null, ["rdma_en5", "rdma_en6"]], "asset": 7},
    {"ssh": "m3.local", "ips": [], "rdma": ["rdma_en2", ["rdma_en3", "rdma_en4"], null]}
  ],
  "zone": null
}
"""


def mlx_content(path: Path) -> dict[str, Any]:
    """The hosts that mlx.launch's own reader returns."""
    content: dict[str, Any] = mlx_common.Hostfile.from_file(str(path)).to_json()
    return content


def content(hostfile: Hostfile) -> dict[str, Any]:
    """The hosts of our reader, in the form of mlx's reader."""
    hosts = [{"ssh": host.ssh, "ips": host.ips, "rdma": host.rdma} for host in hostfile.hosts]
    plain: dict[str, Any] = json.loads(
        json.dumps({"backend": hostfile.backend, "envs": hostfile.envs, "hosts": hosts})
    )
    return plain


# Reading


def test_all_content_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "three.json"
    path.write_text(THREE)
    hostfile = Hostfile.read(path)
    assert len(hostfile) == 3
    assert (hostfile.backend, hostfile.envs, hostfile.path) == ("jaccl", ("HF_HUB_OFFLINE=1",), path)
    assert hostfile.coordinator == "10.0.1.11"
    assert hostfile.rdma[1] == ("rdma_en4", None, ("rdma_en5", "rdma_en6"))
    assert [host.name for host in hostfile.hosts] == ["left", "m2.local", "m3.local"]
    assert hostfile.hosts[1].extra == {"asset": 7}
    assert hostfile.extra == {"comment": ["shelf 2", {"since": 2026}], "zone": None}
    assert content(hostfile) == mlx_content(path)


def test_a_bare_list_of_hosts_is_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    path.write_text('[{"ssh": "127.0.0.1"}, {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]')
    hostfile = Hostfile.read(path)
    assert (hostfile.bare, hostfile.backend, hostfile.coordinator) == (True, "", None)
    assert content(hostfile) == mlx_content(path)


@pytest.mark.parametrize("name", [None, "", 7, ["a"]])
def test_a_host_with_an_invalid_name_is_called_by_its_ssh_name(name: object) -> None:
    assert Host("m1.local", extra={"name": name}).name == "m1.local"


def test_cells_of_a_wrong_type_are_preserved() -> None:
    """`check` reports them."""
    hostfile = Hostfile.loads('[{"ssh": "a", "rdma": [7, {"x": 1}, [["b"]], true]}]')
    assert json.loads(hostfile.dumps())[0]["rdma"] == [7, {"x": 1}, [["b"]], True]


# What cannot be read


@pytest.mark.parametrize(
    ("text", "line", "column", "near"),
    [
        ('{"hosts": [\n  {"ssh": "a"},\n]}', 3, 1, "]}"),
        ('{"hosts": [\n  {"ssh": "a" "ips": []}\n]}', 2, 15, '{"ssh": "a" "ips": []}'),
        ('{"hosts": [\n  {"ssh": "a}\n]}', 2, 14, '{"ssh": "a}'),
        ("// my Macs\n[]", 1, 1, "// my Macs"),
        ("", 1, 1, ""),
    ],
)
def test_a_json_error_names_line_and_column(text: str, line: int, column: int, near: str) -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.loads(text, Path("macs.json"))
    assert f"line {line}, column {column}" in caught.value.what
    assert caught.value.what.endswith(near)
    assert (caught.value.where, bool(caught.value.fix)) == ("macs.json", True)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("7", "a number", "f"),
        ('"a"', "text", "f"),
        ("null", "null", "f"),
        ("[]", "list of hosts is empty", "f"),
        ('{"hosts": []}', "list of hosts is empty", "f"),
        ("{}", '"hosts" is missing', "f"),
        ('{"hosts": {"ssh": "a"}}', '"hosts" must be a list (got an object)', "f"),
        ('{"backend": 7, "hosts": [{"ssh": "a"}]}', '"backend" must be text (got a number)', "f"),
        ('{"envs": null, "hosts": [{"ssh": "a"}]}', '"envs" must be a list (got null)', "f"),
        ('{"envs": "A=1", "hosts": [{"ssh": "a"}]}', '"envs" must be a list (got text)', "f"),
        ('{"envs": [1], "hosts": [{"ssh": "a"}]}', "envs[0] must be text (got a number)", "f"),
        ('["a"]', "must be an object (got text)", "f: hosts[0]"),
        ('[{"ssh": "a"}, {"ips": []}]', '"ssh" is missing', "f: hosts[1]"),
        ('[{"ssh": true}]', '"ssh" must be text (got true)', "f: hosts[0]"),
        ('[{"ssh": "a", "ips": "10.0.0.1"}]', '"ips" must be a list (got text)', "f: hosts[0]"),
        ('[{"ssh": "a", "ips": ["10.0.0.1", null]}]', "ips[1] must be text (got null)", "f: hosts[0]"),
        ('[{"ssh": "a", "rdma": "rdma_en2"}]', '"rdma" must be a list of cells (got text)', "f: hosts[0]"),
        ('[{"ssh": null}]', '"ssh" must be text (got null)', "f: hosts[0]"),
        ("[" * 100_000, "cannot parse the JSON", "f"),
        ("1" * 5000, "cannot parse the JSON", "f"),
    ],
)
def test_a_wrong_structure_is_reported_with_its_location(text: str, what: str, where: str) -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.loads(text, Path("f"))
    assert what in caught.value.what
    assert caught.value.where == where
    assert caught.value.fix


def test_null_means_absent_where_mlx_launch_accepts_it() -> None:
    hosts = '[{"ssh": "a", "ips": ["10.0.0.1"], "rdma": null}, {"ssh": "b", "ips": null}]'
    with_nulls = Hostfile.loads(f'{{"backend": null, "hosts": {hosts}}}')
    without = Hostfile.loads('{"hosts": [{"ssh": "a", "ips": ["10.0.0.1"]}, {"ssh": "b"}]}')
    assert with_nulls == without
    assert with_nulls.digest() == without.digest()
    assert "null" not in with_nulls.dumps()


def test_an_unpaired_surrogate_is_refused_with_its_location(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_text('[{"ssh": "a"},\n {"ssh": "m0\\uD800"}]')
    with pytest.raises(HostfileError, match=r"unpaired surrogate \\ud800 at line 2") as caught:
        Hostfile.read(path)
    assert caught.value.where == str(path)
    assert Hostfile.loads('[{"ssh": "m0\\ud83d\\ude00"}]').hosts[0].ssh == "m0😀"


def test_a_byte_order_mark_is_refused_as_mlx_launch_does(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b'\xef\xbb\xbf[{"ssh": "a"}]')
    with pytest.raises(ValueError, match="BOM"):
        mlx_content(path)
    with pytest.raises(HostfileError, match="byte order mark"):
        Hostfile.read(path)


def test_a_missing_file_a_folder_and_non_utf8_text_are_reported(tmp_path: Path) -> None:
    latin = tmp_path / "latin.json"
    latin.write_bytes('[\n{"ssh": "büro"}]'.encode("latin-1"))
    for path, what in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "directory"),
        (latin, "not UTF-8 text (byte 12, line 2)"),
    ):
        with pytest.raises(HostfileError) as caught:
            Hostfile.read(path)
        assert what in caught.value.what
        assert caught.value.where == str(path)
        assert caught.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(THREE)
    path.chmod(0)
    with pytest.raises(HostfileError, match="Permission denied"):
        Hostfile.read(path)


# Writing


def test_writing_preserves_the_keys_and_their_order() -> None:
    """Same keys, same order; nothing is added except missing lists."""
    written = json.loads(Hostfile.loads(THREE).dumps())
    original = json.loads(THREE)
    original["hosts"][1]["ips"] = []
    assert written == original
    assert list(written) == list(original)
    assert list(written["hosts"][0]) == ["name", "ssh", "ips", "rdma"]


def test_each_host_is_on_one_line() -> None:
    lines = template(["a", "b", "c"]).dumps().splitlines()
    assert [line.split('"rdma": ')[1].rstrip(",") for line in lines if '"ssh"' in line] == [
        '[null, "rdma_en3", "rdma_en4"]}',
        '["rdma_en3", null, "rdma_en4"]}',
        '["rdma_en3", "rdma_en4", null]}',
    ]


def test_a_device_file_is_recognised_and_converted(tmp_path: Path) -> None:
    path = tmp_path / "hosts_7f_0.json"
    path.write_text('[["rdma_en9", "rdma_en4"], [["rdma_en5", "rdma_en6"], null]]')
    with pytest.raises(HostfileError, match="device file") as caught:
        Hostfile.read(path)
    assert f"jaccl hostfile new --hosts A,B,… --devices {path}" in caught.value.fix
    made = template(["a", "b"], read_device_file(path))
    assert made.rdma == ((None, "rdma_en4"), (("rdma_en5", "rdma_en6"), None))
    with pytest.raises(InputError, match="2 rows, but there are 3 hosts"):
        template(["a", "b", "c"], read_device_file(path))
    path.write_text('[[null, "rdma_en4"], ["rdma_en5"]]')
    with pytest.raises(HostfileError, match="square matrix"):
        read_device_file(path)


def test_a_bare_list_stays_bare_until_it_needs_other_keys() -> None:
    bare = Hostfile.loads('[{"ssh": "a"}, {"ssh": "b"}]')
    assert json.loads(bare.dumps()) == [{"ssh": "a", "ips": []}, {"ssh": "b", "ips": []}]
    named = json.loads(dataclasses.replace(bare, backend="ring").dumps())
    assert (named["backend"], len(named["hosts"])) == ("ring", 2)


def test_a_written_file_can_be_read_by_mlx_launch_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    hostfile = Hostfile((Host("büro-mac", ("10.0.0.1",), (None,), {"name": "Büro 😀"}),), "jaccl")
    hostfile.write(path)
    assert path.read_bytes().isascii()
    assert Hostfile.read(path) == hostfile
    assert mlx_content(path) == content(hostfile)


def test_writing_is_atomic_and_keeps_mode_and_symlink(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    template(["a", "b"]).write(link)
    assert link.is_symlink()
    assert Hostfile.read(real) == template(["a", "b"])
    assert real.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.json", "real.json"]


@pytest.mark.parametrize("target", ["no-folder/f.json", "."])
def test_an_unwritable_file_is_reported_and_leaves_no_temporary_file(tmp_path: Path, target: str) -> None:
    with pytest.raises(HostfileError, match="cannot write the file"):
        template(["a", "b"]).write(tmp_path / target)
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob(".*.tmp")) == []


def test_the_digest_depends_on_the_content_and_not_the_layout() -> None:
    hostfile = Hostfile.loads(THREE)
    relaid = Hostfile.loads(json.dumps(json.loads(THREE), sort_keys=True, indent=7))
    assert hostfile.digest() == relaid.digest() == Hostfile.loads(hostfile.dumps()).digest()
    assert len(hostfile.digest()) == 64
    assert hostfile.digest() != Hostfile.loads(THREE.replace("rdma_en2", "rdma_en9")).digest()
    assert hostfile.digest() != Hostfile.loads(THREE.replace("shelf 2", "shelf 3")).digest()
    assert Hostfile.loads('[{"ssh": "a"}]').digest() == Hostfile.loads('{"hosts": [{"ssh": "a"}]}').digest()


# Subsets


def test_a_subset_has_the_matching_rows_and_columns() -> None:
    part = Hostfile.loads(THREE).subset([2, 0])
    assert [host.ssh for host in part.hosts] == ["m3.local", "m1.local"]
    assert part.rdma == ((None, "rdma_en2"), ("en3", None))
    assert (part.backend, part.envs, part.path) == ("jaccl", ("HF_HUB_OFFLINE=1",), None)
    assert part.hosts[1].extra == {"name": "left"}


def test_a_subset_of_hosts_without_a_matrix_has_none() -> None:
    assert Hostfile.loads('[{"ssh": "a"}, {"ssh": "b"}]').subset([1]).rdma == ((),)


@pytest.mark.parametrize("ranks", [[], [0, 0], [3], [-1], [0, 7]])
def test_invalid_ranks_for_a_subset_are_refused(ranks: list[int]) -> None:
    with pytest.raises(InputError, match="invalid ranks"):
        Hostfile.loads(THREE).subset(ranks)


def test_a_subset_of_a_short_row_is_refused() -> None:
    with pytest.raises(HostfileError, match="1 cells, but the hostfile has 2 hosts"):
        Hostfile.loads('[{"ssh": "a", "rdma": [null]}, {"ssh": "b"}]').subset([0])


# Templates


@pytest.mark.parametrize(("name", "size"), TEMPLATES.items())
def test_the_templates_that_we_ship_are_current(name: str, size: int) -> None:
    names = [f"macstudio{number}.local" for number in range(1, size + 1)]
    assert (HOSTFILES / name).read_text() == template(names).dumps()


@pytest.mark.parametrize("size", range(2, 9))
def test_a_template_lacks_only_an_address(size: int) -> None:
    hostfile = template([f"mac{number}" for number in range(size)])
    assert hostfile.coordinator == PLACEHOLDER
    (problem,) = check(hostfile, environ={})
    assert (problem.code, problem.severity) == ("coordinator-address", "error")
    first = dataclasses.replace(hostfile.hosts[0], ips=("192.168.1.10",))
    assert check(dataclasses.replace(hostfile, hosts=(first, *hostfile.hosts[1:])), environ={}) == []


def test_a_template_for_one_mac_has_no_group() -> None:
    assert template(["mac"]) == Hostfile((Host("mac"),))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([], "got 0"),
        ([f"mac{number}" for number in range(9)], "got 9"),
        (["a", ""], "host 1 has an invalid ssh name"),
        (["a", " b"], "host 1 has an invalid ssh name"),
        (["-oProxyCommand=x", "b"], "host 0 has an invalid ssh name"),
        (["a", "b", "a"], "duplicate host a"),
        (["mac.local", "me@Mac.local."], "duplicate host me@Mac.local."),
    ],
)
def test_invalid_names_for_a_template_are_refused(names: list[str], what: str) -> None:
    with pytest.raises(InputError) as caught:
        template(names)
    assert what in caught.value.what
    assert caught.value.fix


def test_this_machine_may_repeat_in_a_template() -> None:
    assert len(template(["127.0.0.1"] * 4)) == 4


# Agreement with mlx.launch's own reader

NAMES = st.text(max_size=6)
CELLS = st.none() | NAMES | st.lists(NAMES, max_size=3) | st.integers()
HOSTS = st.fixed_dictionaries(
    {"ssh": NAMES},
    optional={"ips": st.lists(NAMES, max_size=2), "rdma": st.lists(CELLS, max_size=3), "note": CELLS},
)
HOST_LISTS = st.lists(HOSTS, min_size=1, max_size=3)
FILES = HOST_LISTS | st.fixed_dictionaries(
    {"hosts": HOST_LISTS},
    optional={"backend": NAMES, "envs": st.lists(NAMES, max_size=2), "note": CELLS},
)
ANY_FILE = FILES | st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hosts", "ssh", "ips", "rdma", "envs", "backend"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@given(FILES)
def test_mlx_launch_reads_the_same_as_we_do_before_and_after_writing(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    path = tmp_path_factory.mktemp("agree", numbered=True) / "f.json"
    path.write_text(json.dumps(data))
    hostfile = Hostfile.read(path)
    assert content(hostfile) == mlx_content(path)
    hostfile.write(path)
    assert content(hostfile) == mlx_content(path)
    assert Hostfile.read(path) == hostfile


@given(ANY_FILE)
def test_we_accept_no_file_that_mlx_launch_refuses(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    path = tmp_path_factory.mktemp("any", numbered=True) / "f.json"
    path.write_text(json.dumps(data))
    ours = theirs = False
    with contextlib.suppress(HostfileError):
        ours = bool(Hostfile.read(path))
    with contextlib.suppress(ValueError):
        theirs = bool(mlx_content(path))
    assert theirs or not ours
