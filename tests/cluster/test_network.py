"""The network set-up: exact commands, each with its undo. Run: pytest tests/cluster/test_network.py"""

import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from jaccl_kernel.cluster.facts import Address, InterfaceFacts, NodeFacts
from jaccl_kernel.cluster.network import REBOOT, NetworkPlan, plan
from jaccl_kernel.cluster.wiring import wire
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts


def macs(*faults: str, n: int = 4) -> list[NodeFacts]:
    return facts(with_faults(ClusterSpec.healthy(n), faults))


def planned(*faults: str, n: int = 4) -> NetworkPlan:
    return plan(wire(macs(*faults, n=n)))


def without_ipv4(n: int) -> list[str]:
    """Faults that leave every cabled port of n Macs without an address."""
    return [f"no-ipv4:{mac + 1}:{port}" for mac in range(n) for port in range(1, n)]


def given(found: NetworkPlan) -> list[IPv4Interface]:
    return [IPv4Interface(f"{s.command[3]}/{s.command[5]}") for s in found.steps if s.kind == "address"]


def test_a_cluster_whose_gids_are_in_place_needs_nothing() -> None:
    assert planned() == NetworkPlan(("macstudio1", "macstudio2", "macstudio3", "macstudio4"))


def test_a_port_without_an_address_gets_one_in_the_far_ends_network() -> None:
    (step,) = planned("no-ipv4:3").steps
    assert step.node == 2
    assert step.command[:3] == ("ifconfig", "en3", "inet")
    assert IPv4Address(step.command[3]) in IPv4Network("169.254.0.0/16")
    assert step.command[4:] == ("netmask", "255.255.0.0")
    assert step.line.startswith("sudo ifconfig en3 inet 169.254.")
    assert step.undo == ("ifconfig", "en3", "inet", step.command[3], "-alias")


def test_a_bridged_port_leaves_the_bridge_first_and_its_undo_puts_it_back_last() -> None:
    found = planned("bridged-port:2")
    assert [step.kind for step in found.steps] == ["unbridge", "address"]
    assert found.steps[0].line == "sudo ifconfig bridge0 deletem en3"
    assert found.steps[0].undo_line == "sudo ifconfig bridge0 addm en3"
    script = found.undo_script(1)
    assert script.index("-alias") < script.index("addm en3")


def test_a_bridge_member_whose_gid_is_in_place_is_left_alone() -> None:
    nodes = macs()
    interfaces = tuple(
        replace(one, bridge="bridge0") if one.name == "en3" else one for one in nodes[1].interfaces or ()
    )
    nodes[1] = replace(nodes[1], interfaces=interfaces)
    assert plan(wire(nodes)).steps == ()


def test_a_cable_without_any_address_gets_a_30_of_its_own() -> None:
    found = planned(*without_ipv4(4))
    addresses = given(found)
    assert len(addresses) == 12
    assert {address.network.prefixlen for address in addresses} == {30}
    assert len({address.network for address in addresses}) == 6
    assert len({address.ip for address in addresses}) == 12


@pytest.mark.parametrize("lan", ["10.254.254.7/24", "10.0.0.5/8", "192.168.0.9/16", "172.16.3.4/12"])
def test_new_networks_touch_no_network_of_any_mac(lan: str) -> None:
    nodes = macs(*without_ipv4(3), n=3)
    ip, _, prefix = lan.partition("/")
    more = InterfaceFacts("utun4", ipv4=(Address(ip, int(prefix)),))
    nodes[2] = replace(nodes[2], interfaces=(*(nodes[2].interfaces or ()), more))
    found = plan(wire(nodes))
    lans = [IPv4Interface(lan).network, IPv4Network("10.0.0.0/24"), IPv4Network("10.0.1.0/24")]
    assert given(found)
    assert not any(address.network.overlaps(network) for address in given(found) for network in lans)
    assert any(str(IPv4Interface(lan).network) in note for note in found.notes)


def test_where_every_private_range_is_taken_the_addresses_are_link_local() -> None:
    nodes = macs(*without_ipv4(2), n=2)
    taken = ("10.0.0.1/8", "172.16.0.1/12", "192.168.0.1/16", "198.18.0.1/15")
    vpns = tuple(
        InterfaceFacts(f"utun{i}", ipv4=(Address(one.partition("/")[0], int(one.partition("/")[2])),))
        for i, one in enumerate(taken)
    )
    nodes[0] = replace(nodes[0], interfaces=(*(nodes[0].interfaces or ()), *vpns))
    addresses = given(plan(wire(nodes)))
    assert len({address.ip for address in addresses}) == 2
    assert all(address.ip.is_link_local for address in addresses)


def test_what_a_reboot_loses_is_said() -> None:
    assert REBOOT in planned("no-ipv4:3").notes
    assert REBOOT in planned("no-ipv4:3").text()


def test_a_late_gid_gets_words_and_no_command() -> None:
    found = planned("gid-index-2:2")
    assert found.steps == ()
    assert "port 1 of macstudio2: its IPv4 GID is not at index 1" in found.notes[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang:2:ibv_devinfo", "its GIDs are not known"),
        ("hang:2:ifconfig", "nothing is known of its network interface"),
        ("rdma-off:2", "it lists no RDMA device"),
    ],
)
def test_what_nobody_saw_is_not_changed(fault: str, words: str) -> None:
    found = planned(fault)
    assert found.steps == ()
    assert words in found.notes[0]
    assert "macstudio2" in found.notes[0]


def test_the_text_holds_the_commands_of_each_mac() -> None:
    text = planned("bridged-port:2", "no-ipv4:3").text()
    assert text.index("On macstudio2:") < text.index("sudo ifconfig bridge0 deletem en3")
    assert "On macstudio3:" in text
    assert "macstudio1:" not in text


def test_every_line_that_is_no_command_for_now_is_a_comment_of_its_own() -> None:
    found = planned("bridged-port:2")
    lines = [line.strip() for line in found.text().splitlines()]
    assert [line for line in lines if line.startswith("sudo")] == [step.line for step in found.of(1)]
    undo = [f"#   {step.undo_line}" for step in reversed(found.of(1))]
    assert lines[lines.index("# To take it back on macstudio2, last change first:") + 1 :][:2] == undo


def addressed(macs_: list[NodeFacts], mac: int, name: str, ip: str) -> None:
    """Give an interface of one Mac an address of a /24, in place of what it has."""
    node = macs_[mac]
    interfaces = tuple(
        replace(one, ipv4=(Address(ip, 24),)) if one.name == name else one for one in node.interfaces or ()
    )
    macs_[mac] = replace(node, interfaces=interfaces)


def test_no_address_is_given_twice_though_both_far_ends_are_in_one_network() -> None:
    nodes = macs("no-ipv4:3:1", "no-ipv4:3:2", n=3)
    wiring = wire(nodes)
    for cable in wiring.cables:  # the far ends of Mac 3's two ports
        end, far = (cable.a, cable.b) if cable.b.node == 2 else (cable.b, cable.a)
        if far.node == 2:
            name = wiring.port(end).interface
            assert name is not None
            addressed(nodes, end.node, name, f"10.0.5.{end.node + 1}")
    addresses = given(plan(wire(nodes)))
    assert len(addresses) == 2
    assert len({address.ip for address in addresses}) == 2
    assert not any(address.ip in IPv4Network("10.0.5.0/24") for address in addresses)


def test_an_address_in_the_far_ends_own_network_is_not_said_to_be_in_a_new_one() -> None:
    nodes = macs("no-ipv4:2:1", n=2)
    wiring = wire(nodes)
    name = wiring.port(wiring.cables[0].a).interface
    assert name is not None
    addressed(nodes, 0, name, "10.0.5.1")
    found = plan(wire(nodes))
    assert [str(address) for address in given(found)] == ["10.0.5.2/24"]
    assert not any("touch none" in note for note in found.notes)


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


def test_an_undo_script_passes_over_what_is_not_there_any_more(tmp_path: Path) -> None:
    done = run(planned("bridged-port:2").undo_script(1), fake(tmp_path, 1, changed=False))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "asked").exists()


def test_two_undo_scripts_in_one_fail_if_the_first_does(tmp_path: Path) -> None:
    script = planned("bridged-port:2").undo_script(1)
    done = run(script + planned().undo_script(1), fake(tmp_path, 1))
    assert done.returncode == 1
