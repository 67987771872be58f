"""The rules of `check` for hosts, addresses and environment, and their output."""

import dataclasses
import json

import pytest

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import (
    LAUNCH_VARIABLES,
    Problem,
    check,
    effective_backend,
    hostfile_verdict,
    render,
    to_json,
)
from tests.topology.samples import changed, cluster, found, with_cells

# A sound file, and the backend


@pytest.mark.parametrize("size", range(2, 9))
def test_a_valid_mesh_has_no_problem(size: int) -> None:
    assert found(cluster(size)) == []


def test_a_valid_ring_of_nine_has_no_problem() -> None:
    row: list[object] = [None] * 9
    hostfile = cluster(8)
    hosts = [
        dataclasses.replace(hostfile.hosts[rank % 8], ssh=f"r{rank}", rdma=tuple(row)) for rank in range(9)
    ]
    nine = dataclasses.replace(hostfile, hosts=tuple(hosts))
    for rank in range(9):
        nine = with_cells(nine, (rank, (rank - 1) % 9, "rdma_en2"), (rank, (rank + 1) % 9, "rdma_en3"))
    nine = changed(nine, 8, ips=())
    assert found(nine, "jaccl-ring") == []


@pytest.mark.parametrize(
    ("in_file", "asked", "chosen"),
    [
        ("jaccl-ring", None, "jaccl-ring"),
        ("jaccl-ring", "ring", "ring"),
        ("", None, "jaccl"),
        ("", "jaccl-ring", "jaccl-ring"),
    ],
)
def test_the_requested_backend_overrides_the_files(in_file: str, asked: str | None, chosen: str) -> None:
    assert effective_backend(cluster(backend=in_file), asked) == chosen


def test_without_a_matrix_the_backend_is_mlx_launchs_own() -> None:
    assert effective_backend(Hostfile.loads('[{"ssh": "a"}, {"ssh": "b"}]')) == "ring"


def test_a_file_without_a_backend_has_a_warning() -> None:
    assert found(cluster(backend="")) == [("backend-missing", "warning", "backend")]
    assert found(cluster(backend=""), "jaccl") == []


@pytest.mark.parametrize("backend", ["mpi", "nccl", "Jaccl", "any"])
def test_an_unknown_backend_is_an_error(backend: str) -> None:
    assert found(cluster(), backend) == [("unknown-backend", "error", "backend")]


@pytest.mark.parametrize(
    "text", ['[{"ssh": "m"}]', '{"backend": "jaccl", "hosts": [{"ssh": "m", "rdma": [7]}]}']
)
def test_one_host_is_a_warning(text: str) -> None:
    assert found(Hostfile.loads(text)) == [("single-host", "warning", "hosts")]


# ssh names


@pytest.mark.parametrize("ssh", ["", " ", "m 1", "-oProxyCommand=reboot", "m1\n", "m1\t"])
def test_an_invalid_ssh_name_is_an_error(ssh: str) -> None:
    hostfile = changed(cluster(), 2, ssh=ssh)
    assert found(hostfile) == [("ssh-name", "error", f"host 2 ({ssh or 'unnamed'})")]


@pytest.mark.parametrize("ssh", ["m0.local", "M0.local.", "alex@m0.local"])
def test_a_duplicate_mac_is_an_error(ssh: str) -> None:
    assert found(changed(cluster(), 3, ssh=ssh)) == [("ssh-name-twice", "error", f"host 3 ({ssh})")]


def test_only_the_literal_loopback_address_may_repeat() -> None:
    def twice(ssh: str) -> Hostfile:
        host = {"ssh": ssh, "ips": ["127.0.0.1"]}
        return Hostfile.loads(json.dumps({"backend": "ring", "hosts": [host, host]}))

    assert found(twice("127.0.0.1")) == []
    assert ("ssh-name-twice", "error", "host 1 (localhost)") in found(twice("localhost"))
    assert ("ssh-localhost", "warning", "host 0 (localhost)") in found(twice("localhost"))


# The coordinator


def test_no_address_on_rank_0_is_an_error_and_on_others_is_not() -> None:
    assert found(changed(cluster(), 0, ips=())) == [
        ("coordinator-missing", "error", "host 0 (m0.local), ips")
    ]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("<rank0_lan_ip>", "placeholder"),
        ("m0.local", "does not resolve names"),
        ("", "not an IPv4 address"),
        (" 192.168.1.10", "not an IPv4 address"),
        ("192.168.1", "not an IPv4 address"),
        ("192.168.1.10:5000", "port"),
        ("fe80::1", "IPv6"),
        ("::ffff:192.168.1.10", "IPv6"),
        ("127.0.0.1", "cannot reach rank 0"),
        ("0.0.0.0", "not the address of a single host"),
        ("224.0.0.1", "not the address of a single host"),
        ("255.255.255.255", "not the address of a single host"),
    ],
)
def test_an_invalid_coordinator_address_is_an_error(address: str, reason: str) -> None:
    hostfile = changed(cluster(), 0, ips=(address, "192.168.1.10"))
    assert found(hostfile) == [("coordinator-address", "error", "host 0 (m0.local), ips[0]")]
    assert reason in check(hostfile, environ={})[0].message


def test_another_hosts_address_cannot_be_the_coordinators() -> None:
    hostfile = changed(cluster(), 2, ips=("192.168.1.10",))
    (problem,) = check(hostfile, environ={})
    assert problem.code == "coordinator-address"
    assert "host 2 (m2.local)" in problem.message


def test_a_link_local_coordinator_is_a_warning() -> None:
    hostfile = changed(cluster(), 0, ips=("169.254.7.7",))
    assert found(hostfile) == [("coordinator-link-local", "warning", "host 0 (m0.local), ips[0]")]


def test_local_ranks_may_use_a_loopback_coordinator() -> None:
    hostfile = changed(cluster(2), 0, ips=("127.0.0.1",), ssh="127.0.0.1")
    assert found(changed(hostfile, 1, ssh="127.0.0.1")) == []
    assert [code for code, _, _ in found(hostfile)] == ["coordinator-address"]


# The TCP ring


def test_the_ring_needs_an_address_of_every_host() -> None:
    assert found(cluster(3), "ring") == [
        ("ips-missing", "error", "host 1 (m1.local), ips"),
        ("ips-missing", "error", "host 2 (m2.local), ips"),
    ]


def test_the_addresses_of_a_ring_must_be_reachable() -> None:
    hostfile = changed(cluster(3), 1, ips=("127.0.0.1", "m1.local"))
    assert found(changed(hostfile, 2, ips=("<ip>",)), "ring") == [
        ("ips-loopback", "error", "host 1 (m1.local), ips[0]"),
        ("ips-address", "error", "host 2 (m2.local), ips[0]"),
        ("ips-address", "warning", "host 1 (m1.local), ips[1]"),
    ]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "address is empty"),
        (" ", "address is empty"),
        ("fe80::1", "colon"),
        ("::1", "colon"),
        ("192.168.1.11:5000", "colon"),
        ("0.0.0.0", "not the address of a single host"),
        ("224.0.0.1", "not the address of a single host"),
        ("255.255.255.255", "not the address of a single host"),
    ],
)
def test_an_invalid_ring_address_is_an_error(address: str, reason: str) -> None:
    hostfile = changed(cluster(2), 1, ips=("192.168.1.11", address))
    assert found(hostfile, "ring") == [("ips-address", "error", "host 1 (m1.local), ips[1]")]
    assert reason in check(hostfile, backend="ring", environ={})[0].message


def test_two_macs_of_a_ring_cannot_have_one_address() -> None:
    hostfile = changed(cluster(2), 1, ips=("192.168.1.10", "192.168.1.11"))
    assert found(hostfile, "ring") == [("ips-twice", "error", "host 1 (m1.local), ips[0]")]
    assert "host 0 (m0.local)" in check(hostfile, backend="ring", environ={})[0].message
    # ranks of one machine may share an address, and a host may list it twice
    one = changed(changed(hostfile, 0, ssh="127.0.0.1"), 1, ssh="127.0.0.1", ips=("192.168.1.10",) * 2)
    assert found(one, "ring") == []


# Environment


@pytest.mark.parametrize(
    ("entry", "code", "severity"),
    [
        ("", "env-name", "warning"),
        ("=1", "env-name", "warning"),
        ("MY-KEY=1", "env-name", "warning"),
        ("1KEY=1", "env-name", "warning"),
        ("KEY", "env-value", "warning"),
        ("MLX_METAL_FAST_SYNCH=1", "fast-synch", "warning"),
        ("JACCL_RANK=0", "env-launch-variable", "error"),
        ("JACCL_IBV_DEVICES=/tmp/x", "env-launch-variable", "error"),
        ("MLX_JACCL_RING=0", "env-launch-variable", "warning"),
        ("MLX_RANK=0", "env-launch-variable", "warning"),
    ],
)
def test_an_ineffective_entry_of_envs_is_a_problem(entry: str, code: str, severity: str) -> None:
    assert found(cluster(envs=("HF_HUB_OFFLINE=1", entry))) == [(code, severity, "envs[1]")]


@pytest.mark.parametrize("entry", ["A=", "A=b=c", "_x=1", "MLX_METAL_FAST_SYNCH=0"])
def test_a_valid_entry_of_envs_has_no_problem(entry: str) -> None:
    assert found(cluster(envs=(entry,))) == []


@pytest.mark.parametrize("variable", LAUNCH_VARIABLES)
def test_an_inherited_launch_variable_is_a_warning(variable: str) -> None:
    assert found(cluster(), environ={variable: "0", "PATH": "/bin"}) == [
        ("inherited-variable", "warning", "environment")
    ]
    assert variable in check(cluster(), environ={variable: ""})[0].fix


def test_the_default_environment_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in LAUNCH_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert check(cluster()) == []
    monkeypatch.setenv("JACCL_COORDINATOR", "10.0.0.1:5000")
    assert [problem.code for problem in check(cluster())] == ["inherited-variable"]


# What is printed


def test_errors_come_first_and_each_has_a_location_and_a_fix() -> None:
    problems = check(with_cells(cluster(), (2, 0, None)), environ={"JACCL_RING": "1"})
    lines = render(problems).splitlines()
    assert [line.split()[0] for line in lines] == ["error", "Fix:", "warning", "Fix:"]
    assert lines[0].startswith("error    host 2 (m2.local), rdma[0]: ")
    assert render([]) == "ok       no problems found\n"


def test_the_json_has_the_same_content() -> None:
    hostfile = with_cells(cluster(), (2, 1, None))
    problems = check(hostfile, environ={})
    report = json.loads(json.dumps(to_json("f.json", problems, hostfile_verdict(hostfile))))
    assert (report["hostfile"], report["ok"]) == ("f.json", False)
    assert report["verdict"]["kind"] == "singleton"
    assert [Problem(**entry) for entry in report["problems"]] == problems
    assert to_json("f.json", [], None) == {"hostfile": "f.json", "ok": True, "verdict": None, "problems": []}


def test_the_verdict_depends_on_the_backend() -> None:
    kinds = [hostfile_verdict(cluster(), backend) for backend in ("jaccl", "jaccl-ring", "ring")]
    assert [outcome and outcome.kind for outcome in kinds] == ["mesh", "ring", None]
