"""What only a Mac can show: its own tools against our parsers, its rsync, its GPU.

One Mac without any Thunderbolt cable will do, so that a hosted runner can run it; it proves nothing about
RDMA. Skipped on other systems.
"""

import ipaddress
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.bench import bench
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.probe import probe

pytestmark = pytest.mark.skipif(sys.platform != "darwin", reason="reads what macOS's own tools print")

EVERY_MAC_HAS = (
    "hostname",
    "uname",
    "sw_vers",
    "system_profiler",
    "networksetup",
    "ifconfig",
    "pmset",
    "df",
    "date",
    "rsync",
    "ssh",
    "python",
)


@pytest.fixture
async def mac() -> NodeFacts:
    """This Mac, as a scan reads it."""
    [facts] = await probe([LocalNode("this Mac")], python=sys.executable)
    assert facts.error is None
    return facts


def test_every_tool_answers_and_is_understood(mac: NodeFacts) -> None:
    told = {key: mac.outcomes[key] for key in EVERY_MAC_HAS}
    assert {key: one.status for key, one in told.items()} == dict.fromkeys(EVERY_MAC_HAS, "ok"), told
    assert [key for key, one in mac.outcomes.items() if one.status in ("unreadable", "timeout")] == []


def test_the_facts_agree_with_python(mac: NodeFacts) -> None:
    assert mac.macos == platform.mac_ver()[0]
    assert mac.arch == platform.machine()
    assert mac.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert mac.chip
    assert mac.model
    assert mac.python
    assert mac.python.version == platform.python_version()


def test_interfaces_are_those_that_ifconfig_lists(mac: NodeFacts) -> None:
    assert mac.interfaces
    names = subprocess.run(["ifconfig", "-l"], capture_output=True, text=True, check=True).stdout.split()
    assert {one.name for one in mac.interfaces} == set(names)
    loopback = mac.interface("lo0")
    assert loopback
    assert "127.0.0.1" in {address.ip for address in loopback.ipv4}


def test_the_lan_address_is_one_of_its_own(mac: NodeFacts) -> None:
    assert mac.interfaces
    own = {address.ip for one in mac.interfaces for address in one.ipv4}
    for lan in mac.lan or ():
        assert ipaddress.ip_address(lan.ip).version == 4
        assert lan.ip in own


@pytest.mark.parametrize("tool", ["ibv_devices", "ibv_devinfo", "rdma_ctl"])
def test_rdma_tools_are_missing_or_understood(mac: NodeFacts, tool: str) -> None:
    """They came with macOS 26.2; a Mac without Thunderbolt 5 has them too, and they list nothing."""
    outcome = mac.outcomes[tool]
    if outcome.status == "missing":
        pytest.skip(f"macOS {mac.macos} has no {tool}")
    assert outcome.status != "unreadable", outcome.detail


def test_the_copies_of_this_suite_are_made_by_apple_s_rsync(mac: NodeFacts) -> None:
    """Then tests/steps/sync/test_sync.py shows that openrsync goes on with a copy that was stopped."""
    assert mac.rsync
    assert mac.rsync.flavour == "openrsync"


@pytest.mark.usefixtures("nothing_left")
async def test_one_rank_generates_on_the_gpu(tiny_model: Path) -> None:
    code = "import mlx.core as mx; print(mx.default_device())"
    device = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "gpu" in device
    report = await bench(
        make_hostfile(1), BenchOptions(model=str(tiny_model), max_tokens=8, repeats=1), save=False
    )
    [point] = report.record["points"]
    assert len(point["tokens"]) == 8
    assert point["peak_memory_bytes"][0] > 0
