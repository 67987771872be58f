"""What changes between two hostfiles, in words and lines. Run: pytest tests/cluster/test_difference.py"""

from dataclasses import replace

from jaccl_kernel.cluster.difference import difference
from jaccl_kernel.cluster.hostfile import Host, Hostfile

OLD = Hostfile(
    (
        Host("a.local", ("10.0.0.99",), (None, "rdma_en3"), {"name": "mac1"}),
        Host("b.local", (), ("rdma_en4", None), {"name": "mac2"}),
    ),
    "jaccl",
)


def changed(rank: int, **fields: object) -> Hostfile:
    hosts = list(OLD.hosts)
    hosts[rank] = replace(hosts[rank], **fields)  # type: ignore[arg-type]  # replace checks the names
    return replace(OLD, hosts=tuple(hosts))


def test_equal_files_have_none() -> None:
    found = difference(OLD, OLD)
    assert not found
    assert found.lines == ()


def test_a_new_file_is_all_new() -> None:
    found = difference(None, OLD)
    assert found.words == ("A new hostfile of 2 hosts: mac1, mac2.",)
    assert any(line.startswith("+") and "rdma_en3" in line for line in found.lines)


def test_a_cell_is_named_with_both_its_values_and_where_it_leads() -> None:
    found = difference(OLD, changed(1, rdma=("rdma_en5", None)))
    assert found.words == ("host 1 (mac2), rdma[0], towards mac1: rdma_en4 becomes rdma_en5.",)
    assert [line[0] for line in found.lines if "b.local" in line] == ["-", "+"]


def test_a_name_and_a_list_of_that_name_mean_the_same_and_only_the_lines_tell() -> None:
    found = difference(OLD, changed(1, rdma=(("rdma_en4",), None)))
    assert found.words == ("Other entries change: see the lines.",)


def test_the_coordinator_is_told() -> None:
    found = difference(OLD, changed(0, ips=("10.0.0.11",)))
    assert found.words == ("host 0 (mac1), ips[0]: the ranks meet at 10.0.0.11 instead of 10.0.0.99.",)


def test_a_backend_an_env_and_unknown_keys_are_told() -> None:
    new = replace(OLD, backend="jaccl-ring", envs=("A=1",), extra={"rack": 3})
    assert difference(OLD, new).words == (
        "The backend becomes jaccl-ring (was jaccl).",
        "envs become A=1 (were empty).",
        "Top-level entries that mlx.launch does not read change.",
    )


def test_another_rank_order_is_told_and_cells_are_compared_by_mac() -> None:
    turned = Hostfile(
        (
            replace(OLD.hosts[1], ips=("10.0.0.12",), rdma=(None, "rdma_en4")),
            replace(OLD.hosts[0], ips=(), rdma=("rdma_en7", None)),
        ),
        "jaccl",
    )
    words = difference(OLD, turned).words
    assert words[0] == "The hosts, in rank order, become mac2, mac1 (were mac1, mac2)."
    assert "host 1 (mac1), rdma[0], towards mac2: rdma_en3 becomes rdma_en7." in words
    assert not any("rdma_en4" in word for word in words)
