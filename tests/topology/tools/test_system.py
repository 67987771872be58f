"""macOS tools' output -> values.

The samples in `data/mac` are written after the formats that the field's reports show; no Mac was there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.nodes.survey import free_bytes
from jaccl_kernel.topology.facts import Address, PowerFacts, PythonFacts, RsyncFacts
from jaccl_kernel.topology.tools import system

SAMPLES = Path(__file__).parents[1] / "data" / "mac"

READERS: dict[str, Callable[[str], Any]] = {
    "ifconfig.txt": system.ifconfig,
    "getifaddr.txt": system.getifaddr,
    "sw_vers.txt": system.sw_vers,
    "sysctl.txt": system.settings,
    "pmset.txt": system.pmset,
    "pmset_batt.txt": system.pmset_batt,
    "pmset_ac.txt": system.pmset_ac,
    "pmset_assertions.txt": system.pmset_assertions,
    "rsync_3.txt": system.rsync_flavour,
    "df.txt": free_bytes,
    "ssh.txt": system.ssh_version,
    "date.txt": system.clock,
    "python.txt": system.python_versions,
}


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


def test_interfaces_have_their_addresses_status_and_bridge() -> None:
    found = {interface.name: interface for interface in system.ifconfig(sample("ifconfig.txt")) or ()}
    assert list(found) == ["lo0", "en0", "en1", "en6", "en2", "bridge0"]
    assert found["en0"].ipv4 == (Address("192.168.1.21", 24),)
    assert found["en6"].ipv4 == (Address("169.254.7.3", 16),)
    assert found["en6"].ipv6_link_local == "fe80::3474:d9ff:fe9d:cc84"
    assert found["en6"].active is True
    assert found["en2"].active is False
    assert found["en2"].ipv4 == ()
    assert found["en2"].bridge == "bridge0"
    assert found["en6"].bridge is None
    assert found["bridge0"].members == ("en2",)


def test_one_interface_alone_is_read_too() -> None:
    text = "en4: flags=8863<UP> mtu 1500\n\tinet 10.0.0.7 netmask 255.255.255.252\n"
    (interface,) = system.ifconfig(text) or ()
    assert interface.ipv4 == (Address("10.0.0.7", 30),)
    assert interface.active is None


def test_a_missing_interface_is_not_read() -> None:
    assert system.ifconfig("ifconfig: interface bridge0 does not exist\n") is None


def test_a_non_contiguous_netmask_has_no_prefix() -> None:
    text = "en4: flags=8863<UP> mtu 1500\n\tinet 10.0.0.7 netmask 0xff00ff00\n"
    (interface,) = system.ifconfig(text) or ()
    assert interface.ipv4 == (Address("10.0.0.7", None),)


def test_an_interface_without_address_gives_none() -> None:
    assert system.getifaddr(sample("getifaddr.txt")) == "192.168.1.21"
    assert system.getifaddr("") is None
    assert system.getifaddr("get if addr en9 failed, (os/kern) failure\n") is None


def test_version_and_build_of_macos() -> None:
    assert system.sw_vers(sample("sw_vers.txt")) == ("26.5.1", "25F80")
    assert system.sw_vers("nothing") == (None, None)


def test_sysctl_in_both_of_its_forms() -> None:
    values = system.settings(sample("sysctl.txt"))
    assert system.count(values["hw.memsize"]) == 64 * 2**30
    assert values["machdep.cpu.brand_string"] == "Apple M4 Pro"
    assert system.settings("hw.memsize = 17\n") == {"hw.memsize": "17"}
    assert system.count("17 apples") is None


def test_power_settings() -> None:
    assert system.pmset(sample("pmset.txt")) == PowerFacts(low_power_mode=True, sleep_minutes=1)
    assert system.pmset(" powermode 2\n").low_power_mode is False
    assert system.pmset_batt(sample("pmset_batt.txt")) == PowerFacts(source="battery", battery_percent=87)
    assert system.pmset_batt("Now drawing from 'AC Power'\n") == PowerFacts(source="ac")
    assert system.pmset_ac(sample("pmset_ac.txt")) == PowerFacts(adapter_watts=94)
    assert system.pmset_ac("No adapter attached.\n") == PowerFacts()


def test_caffeinate_is_distinguished_from_other_assertions() -> None:
    held = system.pmset_assertions(sample("pmset_assertions.txt"))
    assert (held.sleep_prevented, held.caffeinated) == (True, True)
    other = system.pmset_assertions("   PreventUserIdleSystemSleep     1\n   pid 9(coreaudiod): [0x1]\n")
    assert (other.sleep_prevented, other.caffeinated) == (True, False)
    asleep = system.pmset_assertions("   PreventUserIdleSystemSleep     0\n   PreventSystemSleep 0\n")
    assert asleep.sleep_prevented is False


def test_openrsync_is_distinguished_from_rsync() -> None:
    assert system.rsync_flavour(sample("rsync_open.txt")) == RsyncFacts("openrsync", "2.6.9", 29)
    assert system.rsync_flavour(sample("rsync_3.txt")) == RsyncFacts("rsync", "3.4.1", 32)
    assert system.rsync_flavour("zsh: command not found: rsync") is None


def test_the_python_probe_is_read_despite_other_shell_output() -> None:
    assert system.python_versions(sample("python.txt")) == PythonFacts(
        executable="/opt/miniconda3/envs/mlxjccl/bin/python",
        version="3.12.11",
        mlx="0.32.4",
        mlx_lm="0.32.2",
        transformers="5.1.0",
        jaccl_kernel=None,
    )


def test_ssh_and_clock() -> None:
    assert system.ssh_version(sample("ssh.txt")) == "OpenSSH_10.0p2"
    assert system.clock(sample("date.txt")) == 1_800_000_000.0
    assert system.clock("Fri Nov 20 10:00:00 CET 2026") is None


@pytest.mark.parametrize("name", READERS)
def test_carriage_returns_change_nothing(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\n", "\r\n")) == READERS[name](text)


@pytest.mark.parametrize("name", READERS)
def test_tabs_and_spaces_are_the_same(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\t", "    ")) == READERS[name](text)


@given(st.text(), st.sampled_from(sorted(READERS)))
def test_no_text_makes_a_parser_fail(text: str, name: str) -> None:
    READERS[name](text)


@given(st.binary(), st.sampled_from(sorted(READERS)))
def test_no_bytes_make_a_parser_fail(data: bytes, name: str) -> None:
    READERS[name](data.decode(errors="replace"))


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_no_damage_to_a_sample_makes_a_parser_fail(data: st.DataObject, name: str) -> None:
    text = sample(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    READERS[name](text[:start] + data.draw(st.text(max_size=20)) + text[end:])
