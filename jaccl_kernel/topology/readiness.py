"""Whether a Mac can use RDMA over Thunderbolt (ready, off, unsupported, unknown), and how to enable it.

Reads facts only. A Mac without support is never sent to Recovery: `rdma_ctl enable` succeeds on a Thunderbolt
4 Mac too, but has no effect. Sources: Apple TN3205, MLX's distributed docs, WWDC26.
"""

from dataclasses import dataclass
from typing import Literal

from jaccl_kernel.topology.facts import NodeFacts, version_tuple

MIN_MACOS = (26, 2)
SETTINGS_MACOS = (27,)
"""The first macOS whose System Settings have the switch; Recovery works on every version."""

_RECOVERY = (
    "Shut the Mac down, then hold its power button until “Loading startup options” appears.",
    "Choose Options, then Utilities → Terminal, and type: rdma_ctl enable",
    "Restart from the Apple menu.",
)
_SETTINGS = (
    "Open System Settings, search for “RDMA” and switch on “Enable RDMA over Thunderbolt”.",
    "Restart the Mac.",
)
_SCAN = "Scan again: the state becomes ready when `ibv_devices` lists the ports."


@dataclass(frozen=True)
class Readiness:
    """The verdict on one Mac: the reasons, and the steps to take on that Mac, in order."""

    kind: Literal["ready", "off", "unsupported", "unknown"]
    reasons: tuple[str, ...]
    steps: tuple[str, ...] = ()


def readiness(facts: NodeFacts) -> Readiness:
    """Judge one Mac by its facts; a missing fact makes the verdict `unknown`, never better or worse."""
    if facts.error is not None:
        return Readiness(
            "unknown", (f"The scan failed: {facts.error}",), ("Fix the ssh connection, then scan again.",)
        )
    if obstacles := _obstacles(facts):
        return Readiness(
            "unsupported", tuple(reason for reason, _ in obstacles), tuple(step for _, step in obstacles)
        )
    if facts.thunderbolt5 is None:
        return Readiness(
            "unknown", (_no_ports(facts),), ("Leave one Thunderbolt port empty, then scan again.",)
        )
    if facts.devices:
        return _with_devices(facts, len(facts.devices))
    if facts.rdma == "disabled":
        return Readiness("off", ("RDMA is off (`rdma_ctl status`: disabled).",), steps_to_enable(facts.macos))
    if facts.rdma == "enabled" and facts.devices is not None:
        reason = "RDMA is enabled, but there is no RDMA device: the Mac has not restarted since."
        return Readiness("off", (reason,), ("Restart the Mac.", _SCAN))
    return _unknown(facts)


def steps_to_enable(macos: str | None) -> tuple[str, ...]:
    """The steps that enable RDMA on that macOS version, locally on the Mac (ssh cannot do it)."""
    version = version_tuple(macos)
    if version is not None and version >= SETTINGS_MACOS:
        return (*_SETTINGS, "If the switch is missing, use Recovery: " + " ".join(_RECOVERY), _SCAN)
    return (*_RECOVERY, _SCAN)


def _obstacles(facts: NodeFacts) -> list[tuple[str, str]]:
    """The permanent obstacles, each with its fix."""
    found = []
    if facts.arch is not None and facts.arch not in ("arm64", "arm64e"):
        found.append((f"The Mac has no Apple silicon ({facts.arch}).", "Remove this Mac from the cluster."))
    elif facts.thunderbolt5 is False:
        ports = (
            "no Thunderbolt port"
            if not facts.ports
            else "Thunderbolt 4 or older, but RDMA needs Thunderbolt 5"
        )
        chip = f" ({facts.chip})" if facts.chip else ""
        found.append(
            (
                f"This Mac{chip} has {ports}.",
                "Remove it from the cluster, or use MLX's ring backend, which needs no RDMA.",
            )
        )
    version = version_tuple(facts.macos)
    if version is not None and version < MIN_MACOS:
        step = (
            "Update macOS (System Settings → General → Software Update) to the same build as the other Macs."
        )
        found.append((f"macOS {facts.macos} is too old: RDMA over Thunderbolt needs 26.2.", step))
    return found


def _with_devices(facts: NodeFacts, count: int) -> Readiness:
    if facts.rdma == "disabled":
        reason = f"`rdma_ctl status` is disabled, although {count} RDMA devices are listed."
        return Readiness("off", (reason,), steps_to_enable(facts.macos))
    listed = f"{count} RDMA device{'s are' if count > 1 else ' is'} listed, and the ports are Thunderbolt 5."
    if facts.rdma == "enabled":
        return Readiness("ready", ("RDMA is enabled.", listed))
    return Readiness("ready", (listed, _failed_command(facts, "rdma_ctl")))


def _unknown(facts: NodeFacts) -> Readiness:
    reasons = []
    if facts.rdma is None:
        reasons.append(_failed_command(facts, "rdma_ctl"))
    if facts.devices is None:
        reasons.append(_failed_command(facts, "ibv_devices"))
    if facts.macos is None:
        reasons.append(_failed_command(facts, "sw_vers"))
    if not reasons or facts.devices is not None:
        reasons.append("No RDMA device is listed.")
    return Readiness("unknown", tuple(reasons), ("Scan again.",))


def _no_ports(facts: NodeFacts) -> str:
    if facts.ports is None:
        return _failed_command(facts, "system_profiler")
    return "All Thunderbolt ports have slow links, so it is unknown whether they are Thunderbolt 5."


def _failed_command(facts: NodeFacts, command: str) -> str:
    """One sentence about a command that has no usable result."""
    outcome = facts.outcomes.get(command)
    if outcome is None:
        return f"`{command}` did not run."
    how = {
        "missing": "is not on this Mac",
        "timeout": "timed out",
        "empty": "printed nothing",
        "failed": "failed",
        "unreadable": "printed unreadable output",
        "ok": "printed nothing useful",
    }[outcome.status]
    return f"`{command}` {how}{': ' + outcome.detail if outcome.detail else ''}."
