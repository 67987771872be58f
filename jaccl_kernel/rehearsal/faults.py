"""Faults of a simulated cluster, in the form `name:arguments`, applied to its description. Pure.

Macs are numbered from 1 here, as in their names. `FAULTS` is the list of all faults.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.topology.tools.commands import COMMANDS

STALE_COORDINATOR = "10.0.0.99"
"""A former address of rank 0, which no simulated Mac has."""

_Apply = Callable[[ClusterSpec, tuple[str, ...]], ClusterSpec]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its syntax, its meaning, and a pattern for its arguments."""

    usage: str
    meaning: str
    pattern: str
    apply: _Apply

    @property
    def name(self) -> str:
        """The part before the first colon."""
        return self.usage.partition(":")[0]


def with_faults(spec: ClusterSpec, faults: Iterable[str]) -> ClusterSpec:
    """Apply these faults to the cluster, one after the other.

    Raises:
        InputError: a fault is unknown, has a wrong syntax, or does not fit this cluster.
    """
    for text in faults:
        spec = with_fault(spec, text)
    return spec


def with_fault(spec: ClusterSpec, text: str) -> ClusterSpec:
    """Apply one fault to the cluster, such as `missing-cable:1-3` or `hang:2:ibv_devinfo`.

    Raises:
        InputError: the fault is unknown, has a wrong syntax, or does not fit this cluster.
    """
    name, _, arguments = text.strip().partition(":")
    fault = next((fault for fault in FAULTS if fault.name == name), None)
    if fault is None:
        known = ", ".join(fault.usage for fault in FAULTS)
        raise InputError(f"unknown fault {name!r}", where=f"fault {text!r}", fix=f"Choose from: {known}.")
    match = re.fullmatch(fault.pattern, arguments, re.ASCII)
    if match is None:
        raise InputError("invalid fault", where=f"fault {text!r}", fix=f"Use {fault.usage}.")
    try:
        return fault.apply(spec, tuple(group or "" for group in match.groups()))
    except InputError as error:
        raise InputError(error.what, where=f"fault {text!r}", fix=error.fix) from error


def _node(spec: ClusterSpec, number: str) -> int:
    node = int(number) - 1
    if not 0 <= node < len(spec.macs):
        raise InputError(f"Mac {number} does not exist", fix=f"Macs are numbered from 1 to {len(spec.macs)}.")
    return node


def _cable(spec: ClusterSpec, a: str, b: str) -> CableSpec:
    found = spec.between(_node(spec, a), _node(spec, b))
    if not found:
        raise InputError(f"no cable connects Mac {a} and Mac {b}", fix="Choose two connected Macs.")
    return found[0]


def _mac(**changes: object) -> _Apply:
    """A fault that changes attributes of one Mac."""
    return lambda spec, arguments: spec.with_mac(_node(spec, arguments[0]), **changes)


def _port(attribute: str) -> _Apply:
    """A fault of one port: the given one, or the first with a cable."""

    def apply(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
        node = _node(spec, arguments[0])
        number = int(arguments[1]) if arguments[1] else min(spec.cables_of(node), default=1)
        if number not in spec.macs[node].interfaces:
            ports = ", ".join(map(str, sorted(spec.macs[node].interfaces)))
            raise InputError(f"{spec.macs[node].name} has no port {number}", fix=f"Its ports are {ports}.")
        return spec.with_mac(node, **{attribute: getattr(spec.macs[node], attribute) | {number}})

    return apply


def _missing(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    cable = _cable(spec, *arguments)
    return spec.without(*spec.between(*cable.nodes))


def _doubled(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    first = _node(spec, arguments[0])
    target = _cable(spec, *arguments).nodes
    others = [cable for cable in spec.cables if first in cable.nodes and cable.nodes != target]
    moved = min(others, key=lambda cable: cable.nodes, default=None)
    return (spec.without(moved) if moved else spec).with_cable(first, _node(spec, arguments[1]))


def _swapped(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    """Swap one end of two cables: their remote ends, or their ends in the same Mac."""
    a, b, c, d = arguments[:4]
    if not b:
        node = _node(spec, a)
        numbers = sorted(spec.cables_of(node))[:2]
        if len(numbers) < 2:
            raise InputError(f"Mac {a} has fewer than two cables", fix="Choose a Mac with two cables.")
        ends = [(node, number) for number in numbers]
        cables = [spec.cables_of(node)[number] for number in numbers]
    else:
        cables = [_cable(spec, a, b), _cable(spec, c, d)]
        ends = [_end(cable, _node(spec, mac)) for cable, mac in zip(cables, (b, d), strict=True)]
        if cables[0] == cables[1]:
            raise InputError("cannot swap a cable with itself", fix="Choose two different cables.")
    swapped = [
        replace(cable, a=cable.other_end(end), b=other)
        for cable, end, other in zip(cables, ends, reversed(ends), strict=True)
    ]
    return replace(spec, cables=(*spec.without(*cables).cables, *swapped))


def _end(cable: CableSpec, node: int) -> tuple[int, int]:
    return cable.a if cable.a[0] == node else cable.b


def _thunderbolt4(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    node = _node(spec, arguments[0])
    cables = tuple(replace(cable, gbps=40) if node in cable.nodes else cable for cable in spec.cables)
    slower = replace(spec, cables=cables)
    return slower.with_mac(
        node, thunderbolt=4, chip="Apple M4", model="Mac16,10", product="Mac mini", memory_gb=32
    )


def _half_seen(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    cable = _cable(spec, *arguments)
    unseen = replace(cable, unseen_by=_node(spec, arguments[1]))
    return replace(spec, cables=(*spec.without(cable).cables, unseen))


def _hub(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    cable = _cable(spec, *arguments)
    return replace(spec, cables=(*spec.without(cable).cables, replace(cable, hub="Thunderbolt 5 hub")))


def _beside_ethernet(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    """Move one end of a cable to the port beside Ethernet."""
    node = _node(spec, arguments[0])
    number, port = min(spec.cables_of(node), default=None), spec.macs[node].port_beside_ethernet
    if number is None or port is None or port in spec.cables_of(node):
        raise InputError(f"Mac {arguments[0]} has no cable to move there", fix="Choose another Mac Studio.")
    cable = spec.cables_of(node)[number]
    moved = replace(cable, a=(node, port), b=cable.other_end((node, number)))
    return replace(spec, cables=(*spec.without(cable).cables, moved))


def _hang(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    node, command = _node(spec, arguments[0]), arguments[1]
    known = sorted({command.argv[0] for command in COMMANDS})
    if command not in known:
        raise InputError(f"a scan does not run {command}", fix=f"Choose from: {', '.join(known)}.")
    return spec.with_mac(node, hangs=spec.macs[node].hangs | {command})


def _dock(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    node = _node(spec, arguments[0])
    devices = {**spec.macs[node].devices, spec.free_port(node): "TS5 Plus"}
    return spec.with_mac(node, devices=devices)


def _stale_coordinator(spec: ClusterSpec, _arguments: tuple[str, ...]) -> ClusterSpec:
    return replace(spec, coordinator=STALE_COORDINATOR)


_MAC = r"(\d{1,2})"
_PAIR = rf"{_MAC}-{_MAC}"
_PORT = rf"{_MAC}(?::(\d{{1,2}}))?"

FAULTS = (
    Fault("missing-cable:A-B", "no cable between Mac A and Mac B", _PAIR, _missing),
    Fault("doubled-cable:A-B", "two cables connect Mac A and Mac B", _PAIR, _doubled),
    Fault(
        "swapped-cable:A-B,C-D",
        "two cables are swapped: A-D and C-B (with one Mac: the ports of two cables are swapped)",
        rf"{_MAC}(?:-{_MAC},{_MAC}-{_MAC})?",
        _swapped,
    ),
    Fault("half-seen:A-B", "only Mac A detects the cable to Mac B", _PAIR, _half_seen),
    Fault("hub:A-B", "a hub is between Mac A and Mac B", _PAIR, _hub),
    Fault("beside-ethernet:N", "a cable is in Mac N's port without RDMA", _MAC, _beside_ethernet),
    Fault("dock:N", "a dock in a Thunderbolt port of Mac N", _MAC, _dock),
    Fault("rdma-off:N", "RDMA is off on Mac N", _MAC, _mac(rdma=False)),
    Fault("thunderbolt4:N", "Mac N has only Thunderbolt 4", _MAC, _thunderbolt4),
    Fault("old-macos:N", "macOS of Mac N is too old", _MAC, _mac(macos="26.1", build="25B78")),
    Fault("macos-skew:N", "Mac N has another macOS build", _MAC, _mac(macos="26.4", build="25E246")),
    Fault("bridged-port:N[:PORT]", "a port of Mac N is a bridge member", _PORT, _port("bridged")),
    Fault("no-ipv4:N[:PORT]", "a port of Mac N has no IPv4 address", _PORT, _port("no_ipv4")),
    Fault("gid-index-2:N[:PORT]", "a port of Mac N has its IPv4 GID at index 2", _PORT, _port("late_gid")),
    Fault("hang:N:COMMAND", "a command of Mac N never ends", rf"{_MAC}:([\w.-]+)", _hang),
    Fault("version-skew:N", "Mac N has another mlx version", _MAC, _mac(mlx="0.31.0")),
    Fault("stale-coordinator", "the hostfile has a former address of rank 0", "", _stale_coordinator),
    Fault("partial-model:N", "a file of the model is missing on Mac N", _MAC, _mac(partial_model=True)),
    Fault("ssh-fails:N", "Mac N rejects our ssh key", _MAC, _mac(reachable="ssh-fails")),
    Fault("asleep:N", "Mac N is asleep", _MAC, _mac(reachable="asleep")),
)
