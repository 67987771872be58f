"""May this Mac use RDMA over Thunderbolt: ready, able but off, unable, or not known; and what to do.

Reads facts only. A Mac that cannot is never sent to Recovery: `rdma_ctl enable` succeeds on a Thunderbolt 4
Mac too, and then nothing comes of it. Sources: Apple TN3205, MLX's distributed docs, WWDC26.
"""

from dataclasses import dataclass
from typing import Literal

from jaccl_kernel.cluster.facts import NodeFacts, version_tuple

OLDEST_MACOS = (26, 2)
SETTINGS_MACOS = (27,)
"""The macOS from which System Settings has the switch; where it has not, Recovery works on all."""

_RECOVERY = (
    "Shut the Mac down, then hold its power button until “Loading startup options” appears.",
    "Choose Options, then Utilities → Terminal, and type: rdma_ctl enable",
    "Restart from the Apple menu.",
)
_SETTINGS = (
    "Open System Settings, search for “RDMA” and switch on “Enable RDMA over Thunderbolt”.",
    "Restart the Mac.",
)
_SCAN = "Scan again: the light turns green when `ibv_devices` lists the ports."


@dataclass(frozen=True)
class Readiness:
    """A verdict on one Mac: why, and the steps to take at that Mac, in order."""

    kind: Literal["ready", "off", "cannot", "unknown"]
    reasons: tuple[str, ...]
    steps: tuple[str, ...] = ()


def readiness(facts: NodeFacts) -> Readiness:
    """Judge one Mac by its facts; what was not seen makes the verdict `unknown`, never worse or better."""
    if facts.error is not None:
        return Readiness(
            "unknown", (f"It did not answer: {facts.error}",), ("Make ssh to it work, then scan again.",)
        )
    if obstacles := _obstacles(facts):
        return Readiness(
            "cannot", tuple(reason for reason, _ in obstacles), tuple(step for _, step in obstacles)
        )
    if facts.thunderbolt5 is None:
        return Readiness(
            "unknown", (_no_ports(facts),), ("Scan again, with one Thunderbolt port left empty.",)
        )
    if facts.devices:
        return _with_devices(facts, len(facts.devices))
    if facts.rdma == "disabled":
        return Readiness(
            "off", ("RDMA is switched off (`rdma_ctl status` says disabled).",), steps_to_enable(facts.macos)
        )
    if facts.rdma == "enabled" and facts.devices is not None:
        reason = "RDMA is enabled, but no RDMA device is there: the Mac has not restarted since."
        return Readiness("off", (reason,), ("Restart the Mac.", _SCAN))
    return _not_seen(facts)


def steps_to_enable(macos: str | None) -> tuple[str, ...]:
    """How to switch RDMA on under that macOS version, done at the Mac itself (ssh cannot do it)."""
    version = version_tuple(macos)
    if version is not None and version >= SETTINGS_MACOS:
        return (*_SETTINGS, "If there is no such switch, use Recovery: " + " ".join(_RECOVERY), _SCAN)
    return (*_RECOVERY, _SCAN)


def _obstacles(facts: NodeFacts) -> list[tuple[str, str]]:
    """What stands in the way for good, each with what can be done about it."""
    found = []
    if facts.arch is not None and facts.arch not in ("arm64", "arm64e"):
        found.append((f"It has no Apple silicon ({facts.arch}).", "Leave this Mac out of the cluster."))
    elif facts.thunderbolt5 is False:
        ports = (
            "no Thunderbolt port"
            if not facts.ports
            else "Thunderbolt 4 or older, and RDMA needs Thunderbolt 5"
        )
        chip = f" ({facts.chip})" if facts.chip else ""
        found.append(
            (
                f"This Mac{chip} has {ports}.",
                "Leave it out, or run over MLX's ring backend, which needs no RDMA.",
            )
        )
    version = version_tuple(facts.macos)
    if version is not None and version < OLDEST_MACOS:
        step = "Update macOS in System Settings → General → Software Update, to the build of the other Macs."
        found.append((f"macOS {facts.macos} is too old: RDMA over Thunderbolt came with 26.2.", step))
    return found


def _with_devices(facts: NodeFacts, count: int) -> Readiness:
    if facts.rdma == "disabled":
        reason = f"`rdma_ctl status` says disabled, though {count} RDMA devices are listed."
        return Readiness("off", (reason,), steps_to_enable(facts.macos))
    listed = f"{count} RDMA device{'s are' if count > 1 else ' is'} listed, and the ports are Thunderbolt 5."
    if facts.rdma == "enabled":
        return Readiness("ready", ("RDMA is enabled.", listed))
    return Readiness("ready", (listed, _told(facts, "rdma_ctl")))


def _not_seen(facts: NodeFacts) -> Readiness:
    reasons = []
    if facts.rdma is None:
        reasons.append(_told(facts, "rdma_ctl"))
    if facts.devices is None:
        reasons.append(_told(facts, "ibv_devices"))
    if facts.macos is None:
        reasons.append(_told(facts, "sw_vers"))
    if not reasons or facts.devices is not None:
        reasons.append("No RDMA device is listed.")
    return Readiness("unknown", tuple(reasons), ("Scan again.",))


def _no_ports(facts: NodeFacts) -> str:
    if facts.ports is None:
        return _told(facts, "system_profiler")
    return "All its Thunderbolt ports hold slow links, so whether they are Thunderbolt 5 cannot be seen."


def _told(facts: NodeFacts, command: str) -> str:
    """How a command failed to tell, as a sentence."""
    outcome = facts.outcomes.get(command)
    if outcome is None:
        return f"`{command}` was not asked."
    how = {
        "missing": "is not on this Mac",
        "timeout": "did not end in time",
        "empty": "printed nothing",
        "failed": "failed",
        "unreadable": "said what nobody understood",
        "ok": "told nothing of use",
    }[outcome.status]
    return f"`{command}` {how}{': ' + outcome.detail if outcome.detail else ''}."
