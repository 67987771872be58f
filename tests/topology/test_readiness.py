"""Ready, off, unsupported or unknown."""

from dataclasses import replace
from itertools import product

import pytest

from jaccl_kernel.rehearsal.faults import with_fault
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.facts import CommandOutcome, DeviceFacts, NodeFacts, PortFacts
from jaccl_kernel.topology.readiness import readiness, steps_to_enable

READY = NodeFacts(
    "mini1",
    "mini1.local",
    arch="arm64",
    macos="26.5.1",
    rdma="enabled",
    ports=(PortFacts(1, max_gbps=120),),
    devices=(DeviceFacts("rdma_en2"),),
)


def words(mac: NodeFacts) -> str:
    verdict = readiness(mac)
    return " ".join(verdict.reasons + verdict.steps)


def test_a_mac_with_devices_is_ready() -> None:
    assert readiness(READY).kind == "ready"
    assert readiness(READY).steps == ()


def test_rdma_off_has_the_steps_through_recovery() -> None:
    mac = replace(READY, rdma="disabled", devices=())
    assert readiness(mac).kind == "off"
    assert "rdma_ctl enable" in words(mac)
    assert "Options" in words(mac)


def test_newer_macos_has_a_switch_and_recovery_as_the_alternative() -> None:
    steps = steps_to_enable("27.0")
    assert "System Settings" in steps[0]
    assert any("Recovery" in step for step in steps[1:])
    assert not any("System Settings" in step for step in steps_to_enable("26.5.1"))


def test_a_thunderbolt_4_mac_is_unsupported_even_if_rdma_ctl_says_enabled() -> None:
    mac = replace(READY, chip="Apple M4", ports=(PortFacts(1, max_gbps=40),))
    assert readiness(mac).kind == "unsupported"
    assert "Apple M4" in words(mac)


def test_a_macos_that_is_too_old_must_be_updated_first() -> None:
    mac = replace(READY, macos="26.1", rdma=None, devices=None)
    assert readiness(mac).kind == "unsupported"
    assert "Software Update" in words(mac)


def test_an_intel_mac_is_unsupported() -> None:
    assert readiness(replace(READY, arch="x86_64")).kind == "unsupported"


def test_a_mac_without_thunderbolt_is_unsupported() -> None:
    assert "no Thunderbolt port" in words(replace(READY, ports=()))


def test_enabled_without_devices_needs_a_restart_not_recovery() -> None:
    mac = replace(READY, devices=())
    assert readiness(mac).kind == "off"
    assert "Restart" in words(mac)
    assert "rdma_ctl enable" not in words(mac)


def test_disabled_with_devices_is_off() -> None:
    assert readiness(replace(READY, rdma="disabled")).kind == "off"


@pytest.mark.parametrize(
    "changed",
    [
        {"ports": None},
        {"ports": (PortFacts(1, current_gbps=40),)},
        {"rdma": None, "devices": None},
        {"rdma": "enabled", "devices": None},
        {"rdma": None, "devices": ()},
        {"error": "Operation timed out"},
    ],
)
def test_a_missing_fact_makes_the_verdict_unknown(changed: dict[str, object]) -> None:
    verdict = readiness(replace(READY, **changed))  # type: ignore[arg-type]
    assert verdict.kind == "unknown"
    assert verdict.reasons
    assert verdict.steps


def test_a_missing_rdma_ctl_is_named() -> None:
    mac = replace(READY, rdma=None, devices=(), outcomes={"rdma_ctl": CommandOutcome("missing", "not found")})
    assert "`rdma_ctl` is not on this Mac: not found" in words(mac)


def test_devices_are_sufficient_proof_without_rdma_ctl() -> None:
    assert readiness(replace(READY, rdma=None)).kind == "ready"


def test_an_unsupported_mac_is_never_sent_to_recovery() -> None:
    slow = (PortFacts(1, max_gbps=40),)
    fast = (PortFacts(1, max_gbps=120),)
    every = product(
        ("x86_64", "arm64", None),
        ("26.1", "27.0", None),
        ("enabled", "disabled", None),
        (slow, fast, (), None),
        ((), (DeviceFacts("d"),), None),
    )
    for arch, macos, rdma, ports, devices in every:
        mac = NodeFacts("a", "a", arch=arch, macos=macos, rdma=rdma, ports=ports, devices=devices)  # type: ignore[arg-type]
        may = arch != "x86_64" and macos != "26.1" and ports == fast
        if "rdma_ctl enable" in words(mac):
            assert may, mac
        assert (readiness(mac).kind == "unsupported") == (
            arch == "x86_64" or macos == "26.1" or ports in (slow, ())
        ), mac


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("rdma-off:2", ["ready", "off", "ready"]),
        ("thunderbolt4:2", ["ready", "unsupported", "ready"]),
        ("old-macos:3", ["ready", "ready", "unsupported"]),
        ("asleep:1", ["unknown", "ready", "ready"]),
        ("ssh-fails:1", ["unknown", "ready", "ready"]),
        ("hang:2:system_profiler", ["ready", "unknown", "ready"]),
        ("hang:2:ibv_devinfo", ["ready", "ready", "ready"]),
    ],
)
def test_each_fault_of_a_rehearsal_has_its_verdict(fault: str, kinds: list[str]) -> None:
    spec = with_fault(ClusterSpec.healthy(3), fault)
    assert [readiness(mac).kind for mac in facts(spec)] == kinds
