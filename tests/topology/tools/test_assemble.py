"""Raw command results -> the facts of one Mac."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.topology.facts import LanAddress, NodeFacts, PowerFacts
from jaccl_kernel.topology.tools.assemble import assemble
from jaccl_kernel.topology.tools.commands import COMMANDS, CommandResult

SAMPLES = Path(__file__).parents[1] / "data" / "mac"


def result(name: str) -> CommandResult:
    return CommandResult((SAMPLES / name).read_text())


def outputs(**changed: CommandResult) -> dict[str, CommandResult]:
    """A Mac mini that answered everything."""
    return {
        "hostname": CommandResult("mini1.local\n"),
        "uname": CommandResult("arm64\n"),
        "sw_vers": result("sw_vers.txt"),
        "sysctl": result("sysctl.txt"),
        "rdma_ctl": result("rdma_ctl.txt"),
        "ibv_devices": result("ibv_devices.txt"),
        "ibv_devinfo": result("ibv_devinfo_v.txt"),
        "system_profiler": result("system_profiler.json"),
        "networksetup": result("networksetup.txt"),
        "ifconfig": result("ifconfig.txt"),
        "getifaddr_en0": result("getifaddr.txt"),
        "getifaddr_en1": CommandResult("192.168.1.77\n"),
        "pmset": result("pmset.txt"),
        "pmset_batt": result("pmset_batt.txt"),
        "pmset_ac": result("pmset_ac.txt"),
        "pmset_assertions": result("pmset_assertions.txt"),
        "df": result("df.txt"),
        "date": replace(result("date.txt"), at=1_800_000_000.5),
        "rsync": result("rsync_open.txt"),
        "ssh": CommandResult(stderr="OpenSSH_10.0p2, LibreSSL 3.3.6\n"),
        "python": result("python.txt"),
    } | changed


def facts(**changed: CommandResult) -> NodeFacts:
    return assemble("mini1", "mini1.local", outputs(**changed))


def test_the_samples_answer_every_command_of_the_scan() -> None:
    assert set(outputs()) == {command.id for command in COMMANDS}


def test_complete_output_gives_complete_facts() -> None:
    mac = facts()
    assert (mac.hostname, mac.arch, mac.model, mac.chip) == (
        "mini1.local",
        "arm64",
        "Mac16,11",
        "Apple M4 Pro",
    )
    assert (mac.macos, mac.build, mac.memory, mac.wired_limit_mb) == ("26.5.1", "25F80", 64 * 2**30, 0)
    assert (mac.rdma, mac.thunderbolt5, mac.ssh_version) == ("enabled", True, "OpenSSH_10.0p2")
    assert mac.power == PowerFacts("battery", 87, 94, True, 1, True, True)
    assert mac.disk_free == 340_000_000 * 1024
    assert mac.clock_offset_s == 0.0
    assert mac.python is not None
    assert mac.python.mlx == "0.32.4"
    assert {outcome.status for outcome in mac.outcomes.values()} == {"ok"}


def test_ports_get_the_interface_that_networksetup_names() -> None:
    ports = facts().ports or ()
    assert [(port.number, port.interface, port.rdma_device) for port in ports] == [
        (1, "en3", "rdma_en3"),
        (2, "en6", "rdma_en6"),
        (3, "en2", "rdma_en2"),
    ]


def test_no_interface_is_guessed_without_networksetup() -> None:
    ports = facts(networksetup=CommandResult()).ports or ()
    assert [port.interface for port in ports] == [None, None, None]


def test_the_lan_is_ethernet_first_and_never_thunderbolt() -> None:
    assert facts().lan == (
        LanAddress("en0", "192.168.1.21", "ethernet", 24),
        LanAddress("en1", "192.168.1.77", "wifi", 24),
    )


def test_the_lan_is_found_without_ifconfig() -> None:
    lan = facts(ifconfig=CommandResult(returncode=127)).lan or ()
    assert [(address.interface, address.kind) for address in lan] == [("en0", "ethernet"), ("en1", "wifi")]


def test_a_mac_without_lan_has_none_and_an_untested_one_is_unknown() -> None:
    none = CommandResult(returncode=1)
    only_loopback = CommandResult("lo0: flags=8049<UP> mtu 16384\n\tinet 127.0.0.1 netmask 0xff000000\n")
    assert facts(ifconfig=only_loopback, getifaddr_en0=none, getifaddr_en1=none).lan == ()
    assert assemble("a", "a", {}).lan is None


def test_a_hanging_devinfo_does_not_affect_the_other_facts() -> None:
    mac = facts(ibv_devinfo=CommandResult("hca_id:\trdma_en2\n", returncode=None, timed_out=True))
    assert mac.outcomes["ibv_devinfo"].status == "timeout"
    assert [device.name for device in mac.devices or ()] == ["rdma_en2", "rdma_en6", "rdma_en3"]
    assert {(device.state, device.gids) for device in mac.devices or ()} == {(None, None)}


def test_devinfo_alone_gives_the_devices() -> None:
    mac = facts(ibv_devices=CommandResult(stderr="zsh: command not found: ibv_devices", returncode=127))
    assert [device.name for device in mac.devices or ()] == ["rdma_en2", "rdma_en6", "rdma_en3"]
    assert mac.outcomes["ibv_devices"].status == "missing"


def test_each_kind_of_failure_has_its_status() -> None:
    mac = facts(
        rdma_ctl=CommandResult("what?\n"),
        df=CommandResult(),
        rsync=CommandResult(stderr="rsync: boom\n", returncode=2),
        ibv_devices=CommandResult(stderr="sh: ibv_devices: not found", returncode=127),
        ibv_devinfo=CommandResult(timed_out=True, returncode=None),
    )
    assert {
        key: mac.outcomes[key].status for key in ("rdma_ctl", "df", "rsync", "ibv_devices", "ibv_devinfo")
    } == {
        "rdma_ctl": "unreadable",
        "df": "empty",
        "rsync": "failed",
        "ibv_devices": "missing",
        "ibv_devinfo": "timeout",
    }
    assert mac.outcomes["rdma_ctl"].detail == "what?"
    assert (mac.rdma, mac.disk_free, mac.rsync, mac.devices) == (None, None, None, None)


def test_partial_output_of_a_failed_sysctl_is_used() -> None:
    text = "hw.memsize: 17179869184\n"
    mac = facts(sysctl=CommandResult(text, "sysctl: unknown oid 'iogpu.wired_limit_mb'\n", returncode=1))
    assert (mac.memory, mac.wired_limit_mb) == (16 * 2**30, None)


def test_a_clock_that_is_ahead_is_reported() -> None:
    mac = facts(date=CommandResult("1800000060\n", at=1_800_000_000.5))
    assert mac.clock_offset_s == 60.0
    assert facts(date=CommandResult("1800000060\n")).clock_offset_s is None


def test_an_unreachable_node_has_only_an_error() -> None:
    mac = assemble("mini2", "mini2.local", {}, error="Permission denied (publickey)")
    assert mac == NodeFacts("mini2", "mini2.local", error="Permission denied (publickey)")


RESULTS = st.builds(
    CommandResult,
    stdout=st.text(),
    stderr=st.text(),
    returncode=st.none() | st.integers(-15, 255),
    timed_out=st.booleans(),
    at=st.none() | st.floats(0, 2e9),
)


@given(st.dictionaries(st.sampled_from([command.id for command in COMMANDS]), RESULTS))
def test_any_answers_give_facts_that_survive_json(answers: dict[str, CommandResult]) -> None:
    mac = assemble("a", "a", answers)
    assert NodeFacts.from_json(mac.to_json()) == mac
