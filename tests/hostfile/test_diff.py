"""The difference between two hostfiles, as sentences and diff lines."""

from dataclasses import replace

from jaccl_kernel.hostfile.diff import difference
from jaccl_kernel.hostfile.hostfile import Host, Hostfile

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


def test_equal_files_have_no_difference() -> None:
    found = difference(OLD, OLD)
    assert not found
    assert found.lines == ()


def test_a_new_file_is_one_sentence() -> None:
    found = difference(None, OLD)
    assert found.sentences == ("New hostfile with 2 hosts: mac1, mac2.",)
    assert any(line.startswith("+") and "rdma_en3" in line for line in found.lines)


def test_a_changed_cell_is_reported_with_both_values_and_its_peer() -> None:
    found = difference(OLD, changed(1, rdma=("rdma_en5", None)))
    assert found.sentences == ("mac2 → mac1: set to rdma_en5 (was rdma_en4).",)
    assert [line[0] for line in found.lines if "b.local" in line] == ["-", "+"]


def test_a_name_and_a_list_of_that_name_are_equal_and_differ_only_in_the_lines() -> None:
    found = difference(OLD, changed(1, rdma=(("rdma_en4",), None)))
    assert found.sentences == ("Other entries change; see the diff.",)


def test_a_changed_coordinator_is_reported() -> None:
    found = difference(OLD, changed(0, ips=("10.0.0.11",)))
    assert found.sentences == ("Coordinator address: set to 10.0.0.11 (was 10.0.0.99).",)


def test_a_changed_backend_env_and_unknown_keys_are_reported() -> None:
    new = replace(OLD, backend="jaccl-ring", envs=("A=1",), extra={"rack": 3})
    assert difference(OLD, new).sentences == (
        "Backend: set to jaccl-ring (was jaccl).",
        "envs: set to A=1 (were none).",
        "Top-level entries that mlx.launch ignores change.",
    )


def test_a_new_rank_order_is_reported_and_cells_are_compared_by_mac() -> None:
    turned = Hostfile(
        (
            replace(OLD.hosts[1], ips=("10.0.0.12",), rdma=(None, "rdma_en4")),
            replace(OLD.hosts[0], ips=(), rdma=("rdma_en7", None)),
        ),
        "jaccl",
    )
    words = difference(OLD, turned).sentences
    assert words[0] == "Hosts in rank order: mac2, mac1 (were mac1, mac2)."
    assert "mac1 → mac2: set to rdma_en7 (was rdma_en3)." in words
    assert not any("rdma_en4" in word for word in words)
