"""Our wiring agrees with that of mlx.distributed_config.

Its ssh is replaced by what the simulated Macs print; all its reading, deciding and writing is its own.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from mlx._distributed_utils import config
from mlx._distributed_utils.common import Host

from jaccl_kernel.hostfile import matrix
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts, outputs
from jaccl_kernel.topology.tools import rdma
from jaccl_kernel.topology.wiring import build_wiring

CABLINGS = {
    "healthy": [],
    "doubled": ["doubled-cable:1-2"],
    "missing": ["missing-cable:1-3"],
    "swapped": ["swapped-cable:1-3,2-4"],
    "swapped on one Mac": ["swapped-cable:2"],
    "Thunderbolt 4": ["thunderbolt4:3"],
    "with a dock": ["dock:2"],
}


class Mlx:
    """mlx.distributed_config on a simulated cluster."""

    def __init__(self, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts = [Host(i, mac.name, [], []) for i, mac in enumerate(spec.macs)]
        answers = {mac.name: outputs(spec, i) for i, mac in enumerate(spec.macs)}

        def run(argv: Sequence[str], *, text: bool = False, **_: Any) -> CompletedProcess[Any]:
            _ssh, host, *command = argv
            stdout = answers[host][shlex.join(command)].stdout
            return CompletedProcess(argv, 0, stdout if text else stdout.encode())

        monkeypatch.setattr(config, "run", run)
        monkeypatch.setattr("builtins.input", lambda _prompt: "")
        self.macs, self.index = config.extract_connectivity(self.hosts, False)

    def hostfile(self, backend: str, folder: Path) -> list[dict[str, Any]]:
        """The hosts that it writes."""
        target = folder / "hosts.json"
        args = argparse.Namespace(
            verbose=False, dot=False, backend=backend, auto_setup=False, env=[], output_hostfile=str(target)
        )
        config.prepare_tb_hostfile(args, self.hosts, [config.SSHInfo(True, False) for _ in self.hosts])
        hosts: list[dict[str, Any]] = json.loads(target.read_text())["hosts"]
        return hosts


def cluster(name: str, n: int = 4) -> ClusterSpec:
    return with_faults(ClusterSpec.healthy(n), CABLINGS[name])


@pytest.mark.parametrize("name", CABLINGS)
def test_it_counts_the_same_cables_between_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cluster(name)
    mlx, ours = Mlx(spec, monkeypatch), build_wiring(facts(spec))
    counts = config.make_connectivity_matrix(mlx.macs, mlx.index)
    for i, j in ours.pairs:
        assert counts[i][j] == counts[j][i] == len(ours.between((i, j)))


@pytest.mark.parametrize("name", CABLINGS)
def test_it_reads_the_same_ports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cluster(name)
    mlx = Mlx(spec, monkeypatch)
    for theirs, mac in zip(mlx.macs, facts(spec), strict=True):
        ports = {
            (port.interface, port.domain_uuid, port.peer.domain_uuid if port.peer else None)
            for port in mac.ports or ()
        }
        assert {(port.iface, port.uuid, port.connected_to) for port in theirs.ports} == ports


@pytest.mark.parametrize("name", CABLINGS)
def test_it_finds_a_mesh_and_a_ring_where_we_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cluster(name)
    mlx, ours = Mlx(spec, monkeypatch), build_wiring(facts(spec))
    counts = config.make_connectivity_matrix(mlx.macs, mlx.index)
    every_pair = all(ours.state(pair) == "full" for pair in ours.pairs)
    assert config.check_valid_mesh(mlx.hosts, counts, False) == every_pair
    assert config.check_valid_ring(mlx.hosts, config.extract_rings(counts), False) == (ours.ring is not None)


@pytest.mark.parametrize("n", range(2, 7))
@pytest.mark.parametrize("faults", [[], ["swapped-cable:2"]])
def test_it_writes_the_same_mesh(
    n: int, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_faults(ClusterSpec.healthy(n), faults if n > 2 else [])
    rows = [host["rdma"] for host in Mlx(spec, monkeypatch).hostfile("jaccl", tmp_path)]
    assert rows == build_wiring(facts(spec)).rdma_matrix()


def test_it_chooses_the_same_one_of_two_cables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ClusterSpec.healthy(3).with_cable(0, 1).with_cable(2, 1)
    rows = [host["rdma"] for host in Mlx(spec, monkeypatch).hostfile("jaccl", tmp_path)]
    assert rows == build_wiring(facts(spec)).rdma_matrix()


@pytest.mark.parametrize("more", [[(0, 1)], [(1, 0), (0, 1)]])
def test_it_writes_the_same_lists_where_every_pair_has_several_cables(
    more: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ClusterSpec.healthy(2)
    for pair in more:
        spec = spec.with_cable(*pair)
    rows = [host["rdma"] for host in Mlx(spec, monkeypatch).hostfile("jaccl", tmp_path)]
    assert rows == build_wiring(facts(spec)).rdma_matrix()
    assert len(rows[0][1]) == len(rows[1][0]) == len(more) + 1


def test_its_ring_has_our_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(ClusterSpec.healthy(4), cables=tuple(
        CableSpec((a, 1), (b, 2)) for a, b in [(0, 2), (2, 1), (1, 3), (3, 0)]
    ))  # fmt: skip
    hosts = Mlx(spec, monkeypatch).hostfile("jaccl-ring", tmp_path)
    ours = build_wiring(facts(spec))
    numbers = [next(i for i, mac in enumerate(spec.macs) if mac.name == host["ssh"]) for host in hosts]
    mesh = ours.rdma_matrix()
    assert [host["rdma"] for host in hosts] == [[mesh[i][j] for j in numbers] for i in numbers]
    rows = ours.ring_matrix()
    assert rows is not None
    assert matrix.verdict([list(row) for row in rows], prefer_ring=True).kind == "ring"


def test_it_reads_hardware_ports_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    text = outputs(ClusterSpec.healthy(2), 1)["networksetup -listallhardwareports"].stdout
    theirs = {
        name.strip(): interface.strip()
        for name, interface in config.parse_hardware_ports(text.encode()).items()
    }
    assert {port.name: port.interface for port in rdma.hardware_ports(text) or ()} == theirs
