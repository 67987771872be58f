"""Simulated Macs, and what their commands print."""

import json
import shlex

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts, outputs, results
from jaccl_kernel.topology.facts import LanAddress, NodeFacts
from jaccl_kernel.topology.tools.commands import COMMANDS

LEFT_TO_THE_MACHINE = {"df", "date", "rsync", "ssh", "python"}


def test_every_command_of_a_scan_has_an_answer() -> None:
    spec = ClusterSpec.healthy(2)
    assert set(results(spec, 0)) == {command.id for command in COMMANDS}
    faked = {command.id for command in COMMANDS if shlex.join(command.argv) in outputs(spec, 0)}
    assert faked == {command.id for command in COMMANDS} - LEFT_TO_THE_MACHINE


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sw_vers -productVersion", "26.5.1"),
        ("sysctl -n hw.memsize", str(512 * 2**30)),
        ("ipconfig getifaddr en0", "10.0.0.12"),
        ("ifconfig en3", "status: active"),
        ("ibv_devinfo", "PORT_ACTIVE (4)"),
    ],
)
def test_the_commands_that_people_type_answer_too(line: str, words: str) -> None:
    result = outputs(ClusterSpec.healthy(3), 1)[line]
    assert words in result.stdout
    assert result.returncode == 0


def test_an_interface_that_is_not_there_fails_as_on_a_mac() -> None:
    answers = outputs(ClusterSpec.healthy(2), 0)
    assert answers["ifconfig bridge0"].returncode == 1
    assert answers["ipconfig getifaddr en7"].returncode == 1


def test_a_healthy_mac_reads_as_what_it_was_described_as() -> None:
    spec = ClusterSpec.healthy(4)
    for described, read in zip(spec.macs, facts(spec), strict=True):
        assert isinstance(read, NodeFacts)
        assert (read.chip, read.memory) == (described.chip, described.memory_gb * 2**30)
        assert (read.macos, read.build, read.rdma) == (described.macos, described.build, "enabled")
        assert {port.number: port.interface for port in read.ports or ()} == described.interfaces
        assert (read.lan or ())[0] == LanAddress("en0", described.lan_ip, "ethernet", 24)
        assert read.python is not None
        assert read.python.mlx == described.mlx
        assert {outcome.status for outcome in read.outcomes.values()} == {"ok"}


def test_cabled_ports_are_active_and_have_their_ipv4_gid_at_index_1() -> None:
    spec = ClusterSpec.healthy(3)
    for node, mac in enumerate(facts(spec)):
        for port in mac.ports or ():
            device = mac.device(port.rdma_device)
            assert device is not None
            assert device.active is (port.number in spec.cables_of(node))
            assert (device.ipv4_gid is not None) is device.active
            assert device.ipv4_gid is None or device.ipv4_gid[0] == 1


def test_interfaces_are_not_numbered_as_ports() -> None:
    first, second = ClusterSpec.healthy(2).macs
    assert list(second.interfaces.values()) != sorted(second.interfaces.values())
    assert first.interfaces != second.interfaces


def test_no_two_macs_share_an_address_or_an_identity() -> None:
    spec = ClusterSpec.healthy(7)
    macs = facts(spec)
    ips = [address.ip for mac in macs for interface in mac.interfaces or () for address in interface.ipv4]
    uuids = [port.domain_uuid for mac in macs for port in mac.ports or ()]
    guids = [device.node_guid for mac in macs for device in mac.devices or ()]
    for values in ([ip for ip in ips if ip != "127.0.0.1"], uuids, guids):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("n", range(1, 9))
def test_a_healthy_cluster_has_as_many_cables_as_a_mesh_until_ports_run_out(n: int) -> None:
    assert len(ClusterSpec.healthy(n).cables) == (n * (n - 1) // 2 if n < 7 else n)


@pytest.mark.parametrize("n", [0, 9, -1])
def test_a_rehearsal_has_one_to_eight_macs(n: int) -> None:
    with pytest.raises(InputError, match="needs 1 to 8 Macs"):
        ClusterSpec.healthy(n)


def test_a_cable_wants_free_ports() -> None:
    spec = ClusterSpec.healthy(6).with_cable(0, 1)
    assert {
        spec.macs[node].interfaces[number] for node, number in (spec.cables[-1].a, spec.cables[-1].b)
    } == {"en2"}, "the port beside Ethernet is the last to be used"
    with pytest.raises(InputError, match="macstudio1 has no free Thunderbolt port"):
        spec.with_cable(0, 1)


def test_thunderbolt_json_is_json_with_one_bus_a_port() -> None:
    text = outputs(ClusterSpec.healthy(2), 0)["system_profiler SPThunderboltDataType -json"].stdout
    assert len(json.loads(text)["SPThunderboltDataType"]) == 6
