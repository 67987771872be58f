"""macOS tools' output -> values. Run: pytest tests/cluster/test_parse.py

The samples in `data/mac` are written after the formats that the field's reports show; no Mac was there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.cluster import parse
from jaccl_kernel.cluster.facts import Address, PowerFacts, PythonFacts, RsyncFacts

SAMPLES = Path(__file__).parent / "data" / "mac"

READERS: dict[str, Callable[[str], Any]] = {
    "ifconfig.txt": parse.ifconfig,
    "getifaddr.txt": parse.getifaddr,
    "sw_vers.txt": parse.sw_vers,
    "sysctl.txt": parse.settings,
    "pmset.txt": parse.pmset,
    "pmset_batt.txt": parse.pmset_batt,
    "pmset_ac.txt": parse.pmset_ac,
    "pmset_assertions.txt": parse.pmset_assertions,
    "rsync_3.txt": parse.rsync_flavour,
    "df.txt": parse.df,
    "ssh.txt": parse.ssh_version,
    "date.txt": parse.clock,
    "python.txt": parse.python_versions,
}


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


def test_interfaces_have_their_addresses_status_and_bridge() -> None:
    found = {interface.name: interface for interface in parse.ifconfig(sample("ifconfig.txt")) or ()}
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
    (interface,) = parse.ifconfig(text) or ()
    assert interface.ipv4 == (Address("10.0.0.7", 30),)
    assert interface.active is None


def test_a_missing_interface_is_not_read() -> None:
    assert parse.ifconfig("ifconfig: interface bridge0 does not exist\n") is None


def test_a_netmask_with_holes_has_no_prefix() -> None:
    text = "en4: flags=8863<UP> mtu 1500\n\tinet 10.0.0.7 netmask 0xff00ff00\n"
    (interface,) = parse.ifconfig(text) or ()
    assert interface.ipv4 == (Address("10.0.0.7", None),)


def test_an_interface_without_address_gives_none() -> None:
    assert parse.getifaddr(sample("getifaddr.txt")) == "192.168.1.21"
    assert parse.getifaddr("") is None
    assert parse.getifaddr("get if addr en9 failed, (os/kern) failure\n") is None


def test_version_and_build_of_macos() -> None:
    assert parse.sw_vers(sample("sw_vers.txt")) == ("26.5.1", "25F80")
    assert parse.sw_vers("nothing") == (None, None)


def test_sysctl_in_both_of_its_forms() -> None:
    values = parse.settings(sample("sysctl.txt"))
    assert parse.count(values["hw.memsize"]) == 64 * 2**30
    assert values["machdep.cpu.brand_string"] == "Apple M4 Pro"
    assert parse.settings("hw.memsize = 17\n") == {"hw.memsize": "17"}
    assert parse.count("17 apples") is None


def test_power_settings() -> None:
    assert parse.pmset(sample("pmset.txt")) == PowerFacts(low_power_mode=True, sleep_minutes=1)
    assert parse.pmset(" powermode 2\n").low_power_mode is False
    assert parse.pmset_batt(sample("pmset_batt.txt")) == PowerFacts(source="battery", battery_percent=87)
    assert parse.pmset_batt("Now drawing from 'AC Power'\n") == PowerFacts(source="ac")
    assert parse.pmset_ac(sample("pmset_ac.txt")) == PowerFacts(adapter_watts=94)
    assert parse.pmset_ac("No adapter attached.\n") == PowerFacts()


def test_caffeinate_is_told_from_other_reasons_to_stay_awake() -> None:
    held = parse.pmset_assertions(sample("pmset_assertions.txt"))
    assert (held.sleep_prevented, held.caffeinated) == (True, True)
    other = parse.pmset_assertions("   PreventUserIdleSystemSleep     1\n   pid 9(coreaudiod): [0x1]\n")
    assert (other.sleep_prevented, other.caffeinated) == (True, False)
    asleep = parse.pmset_assertions("   PreventUserIdleSystemSleep     0\n   PreventSystemSleep 0\n")
    assert asleep.sleep_prevented is False


def test_openrsync_is_told_from_rsync() -> None:
    assert parse.rsync_flavour(sample("rsync_open.txt")) == RsyncFacts("openrsync", "2.6.9", 29)
    assert parse.rsync_flavour(sample("rsync_3.txt")) == RsyncFacts("rsync", "3.4.1", 32)
    assert parse.rsync_flavour("zsh: command not found: rsync") is None


def test_free_bytes_of_the_volume() -> None:
    assert parse.df(sample("df.txt")) == 340_000_000 * 1024
    assert parse.df("df: /nowhere: No such file or directory\n") is None


def test_python_tells_its_packages_through_a_chatty_shell() -> None:
    assert parse.python_versions(sample("python.txt")) == PythonFacts(
        executable="/opt/miniconda3/envs/mlxjccl/bin/python",
        version="3.12.11",
        mlx="0.32.4",
        mlx_lm="0.32.2",
        transformers="5.1.0",
        jaccl_kernel=None,
    )


def test_ssh_and_clock() -> None:
    assert parse.ssh_version(sample("ssh.txt")) == "OpenSSH_10.0p2"
    assert parse.clock(sample("date.txt")) == 1_800_000_000.0
    assert parse.clock("Fri Nov 20 10:00:00 CET 2026") is None


@pytest.mark.parametrize("name", READERS)
def test_carriage_returns_change_nothing(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\n", "\r\n")) == READERS[name](text)


@pytest.mark.parametrize("name", READERS)
def test_tabs_and_spaces_are_the_same(name: str) -> None:
    text = sample(name)
    assert READERS[name](text.replace("\t", "    ")) == READERS[name](text)


@given(st.text(), st.sampled_from(sorted(READERS)))
def test_no_text_makes_a_reader_fail(text: str, name: str) -> None:
    READERS[name](text)


@given(st.binary(), st.sampled_from(sorted(READERS)))
def test_no_bytes_make_a_reader_fail(data: bytes, name: str) -> None:
    READERS[name](data.decode(errors="replace"))


@given(st.data(), st.sampled_from(sorted(READERS)))
def test_no_damage_to_a_sample_makes_a_reader_fail(data: st.DataObject, name: str) -> None:
    text = sample(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    READERS[name](text[:start] + data.draw(st.text(max_size=20)) + text[end:])
