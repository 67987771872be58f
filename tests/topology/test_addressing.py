"""The network plan: exact commands, each with its undo command."""

import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.addressing import REBOOT, NetworkPlan, plan
from jaccl_kernel.topology.facts import Address, InterfaceFacts, NodeFacts
from jaccl_kernel.topology.wiring import build_wiring


def macs(*faults: str, n: int = 4) -> list[NodeFacts]:
    return facts(with_faults(ClusterSpec.healthy(n), faults))


def planned(*faults: str, n: int = 4) -> NetworkPlan:
    return plan(build_wiring(macs(*faults, n=n)))


def without_ipv4(n: int) -> list[str]:
    """Faults that remove the address of every connected port of n Macs."""
    return [f"no-ipv4:{mac + 1}:{port}" for mac in range(n) for port in range(1, n)]


def given(found: NetworkPlan) -> list[IPv4Interface]:
    return [IPv4Interface(f"{s.command[3]}/{s.command[5]}") for s in found.steps if s.kind == "address"]


def test_a_cluster_with_usable_gids_needs_no_steps() -> None:
    assert planned() == NetworkPlan(("macstudio1", "macstudio2", "macstudio3", "macstudio4"))


def test_a_port_without_an_address_gets_one_in_the_network_of_the_other_end() -> None:
    (step,) = planned("no-ipv4:3").steps
    assert step.node == 2
    assert step.command[:3] == ("ifconfig", "en3", "inet")
    assert IPv4Address(step.command[3]) in IPv4Network("169.254.0.0/16")
    assert step.command[4:] == ("netmask", "255.255.0.0")
    assert step.line.startswith("sudo ifconfig en3 inet 169.254.")
    assert step.undo == ("ifconfig", "en3", "inet", step.command[3], "-alias")


def test_a_bridged_port_is_removed_from_the_bridge_first_and_added_back_last() -> None:
    found = planned("bridged-port:2")
    assert [step.kind for step in found.steps] == ["unbridge", "address"]
    assert found.steps[0].line == "sudo ifconfig bridge0 deletem en3"
    assert found.steps[0].undo_line == "sudo ifconfig bridge0 addm en3"
    script = found.undo_script(1)
    assert script.index("-alias") < script.index("addm en3")


def test_a_bridge_member_with_a_usable_gid_is_not_changed() -> None:
    nodes = macs()
    interfaces = tuple(
        replace(one, bridge="bridge0") if one.name == "en3" else one for one in nodes[1].interfaces or ()
    )
    nodes[1] = replace(nodes[1], interfaces=interfaces)
    assert plan(build_wiring(nodes)).steps == ()


def test_a_cable_without_addresses_gets_its_own_30_network() -> None:
    found = planned(*without_ipv4(4))
    addresses = given(found)
    assert len(addresses) == 12
    assert {address.network.prefixlen for address in addresses} == {30}
    assert len({address.network for address in addresses}) == 6
    assert len({address.ip for address in addresses}) == 12


@pytest.mark.parametrize("lan", ["10.254.254.7/24", "10.0.0.5/8", "192.168.0.9/16", "172.16.3.4/12"])
def test_new_networks_overlap_no_network_of_any_mac(lan: str) -> None:
    nodes = macs(*without_ipv4(3), n=3)
    ip, _, prefix = lan.partition("/")
    more = InterfaceFacts("utun4", ipv4=(Address(ip, int(prefix)),))
    nodes[2] = replace(nodes[2], interfaces=(*(nodes[2].interfaces or ()), more))
    found = plan(build_wiring(nodes))
    lans = [IPv4Interface(lan).network, IPv4Network("10.0.0.0/24"), IPv4Network("10.0.1.0/24")]
    assert given(found)
    assert not any(address.network.overlaps(network) for address in given(found) for network in lans)
    assert any(str(IPv4Interface(lan).network) in note for note in found.notes)


def test_addresses_are_link_local_if_every_private_range_is_in_use() -> None:
    nodes = macs(*without_ipv4(2), n=2)
    taken = ("10.0.0.1/8", "172.16.0.1/12", "192.168.0.1/16", "198.18.0.1/15")
    vpns = tuple(
        InterfaceFacts(f"utun{i}", ipv4=(Address(one.partition("/")[0], int(one.partition("/")[2])),))
        for i, one in enumerate(taken)
    )
    nodes[0] = replace(nodes[0], interfaces=(*(nodes[0].interfaces or ()), *vpns))
    addresses = given(plan(build_wiring(nodes)))
    assert len({address.ip for address in addresses}) == 2
    assert all(address.ip.is_link_local for address in addresses)


def test_the_plan_mentions_the_effect_of_a_reboot() -> None:
    assert REBOOT in planned("no-ipv4:3").notes
    assert REBOOT in planned("no-ipv4:3").text()


def test_a_gid_at_a_wrong_index_gets_a_note_and_no_command() -> None:
    found = planned("gid-index-2:2")
    assert found.steps == ()
    assert "port 1 of macstudio2: the IPv4 GID is not at index 1" in found.notes[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang:2:ibv_devinfo", "the GIDs are unknown"),
        ("hang:2:ifconfig", "the network interface is unknown"),
        ("rdma-off:2", "no RDMA device is listed"),
    ],
)
def test_untested_ports_are_not_changed(fault: str, words: str) -> None:
    found = planned(fault)
    assert found.steps == ()
    assert words in found.notes[0]
    assert "macstudio2" in found.notes[0]


def test_the_text_has_the_commands_of_each_mac() -> None:
    text = planned("bridged-port:2", "no-ipv4:3").text()
    assert text.index("On macstudio2:") < text.index("sudo ifconfig bridge0 deletem en3")
    assert "On macstudio3:" in text
    assert "macstudio1:" not in text


def test_every_line_that_is_not_a_command_is_a_comment() -> None:
    found = planned("bridged-port:2")
    lines = [line.strip() for line in found.text().splitlines()]
    assert [line for line in lines if line.startswith("sudo")] == [step.line for step in found.of(1)]
    undo = [f"#   {step.undo_line}" for step in reversed(found.of(1))]
    assert lines[lines.index("# To undo on macstudio2, last change first:") + 1 :][:2] == undo


def addressed(macs_: list[NodeFacts], mac: int, name: str, ip: str) -> None:
    """Replace the addresses of an interface of one Mac with one address in a /24."""
    node = macs_[mac]
    interfaces = tuple(
        replace(one, ipv4=(Address(ip, 24),)) if one.name == name else one for one in node.interfaces or ()
    )
    macs_[mac] = replace(node, interfaces=interfaces)


def test_no_address_is_assigned_twice_if_both_other_ends_are_in_one_network() -> None:
    nodes = macs("no-ipv4:3:1", "no-ipv4:3:2", n=3)
    wiring = build_wiring(nodes)
    for cable in wiring.cables:  # the other ends of Mac 3's two ports
        end, far = (cable.a, cable.b) if cable.b.node == 2 else (cable.b, cable.a)
        if far.node == 2:
            name = wiring.port(end).interface
            assert name is not None
            addressed(nodes, end.node, name, f"10.0.5.{end.node + 1}")
    addresses = given(plan(build_wiring(nodes)))
    assert len(addresses) == 2
    assert len({address.ip for address in addresses}) == 2
    assert not any(address.ip in IPv4Network("10.0.5.0/24") for address in addresses)


def test_an_address_in_the_network_of_the_other_end_is_not_reported_as_new() -> None:
    nodes = macs("no-ipv4:2:1", n=2)
    wiring = build_wiring(nodes)
    name = wiring.port(wiring.cables[0].a).interface
    assert name is not None
    addressed(nodes, 0, name, "10.0.5.1")
    found = plan(build_wiring(nodes))
    assert [str(address) for address in given(found)] == ["10.0.5.2/24"]
    assert not any("overlap none" in note for note in found.notes)


def fake(folder: Path, status: int = 0, *, changed: bool = True) -> dict[str, str]:
    """An environment of macstudio2, changed or not; its `sudo` writes down what it was asked, and fails as
    told for `-alias`."""
    (address,) = (step.command[3] for step in planned("bridged-port:2").of(1) if step.kind == "address")
    told = f"inet {address} netmask 0xffff0000" if changed else "member: en3 flags=3<LEARNING,DISCOVER>"
    for name, script in {
        "ifconfig": f"echo '{told}'",
        "sudo": f'echo "$*" >>{folder}/asked\ncase "$*" in *-alias*) exit {status};; esac',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def run(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh"], input=script, env=env, text=True, capture_output=True, timeout=20, check=False
    )


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("status", "sudo"), [(0, None), (0, "sudo -n"), (1, None)])
def test_the_undo_script_runs_every_undo_last_change_first(
    tmp_path: Path, status: int, sudo: str | None
) -> None:
    found = planned("bridged-port:2")
    done = run(found.undo_script(1), fake(tmp_path, status) | ({"SUDO": sudo} if sudo else {}))
    flags = "-n " if sudo else ""
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"{flags}{step.undo_line.removeprefix('sudo ')}" for step in reversed(found.of(1))]
    assert done.returncode == status
    assert ("failed: ifconfig en3" in done.stderr) == bool(status)


@pytest.mark.usefixtures("nothing_left")
def test_an_undo_script_skips_changes_that_are_no_longer_in_effect(tmp_path: Path) -> None:
    done = run(planned("bridged-port:2").undo_script(1), fake(tmp_path, 1, changed=False))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "asked").exists()


@pytest.mark.usefixtures("nothing_left")
def test_two_undo_scripts_in_one_fail_if_the_first_does(tmp_path: Path) -> None:
    script = planned("bridged-port:2").undo_script(1)
    done = run(script + planned().undo_script(1), fake(tmp_path, 1))
    assert done.returncode == 1
