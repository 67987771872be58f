"""Faults of a simulated cluster, written as `name:arguments` and put into its description; pure.

Macs are numbered from 1 here, as in their names. `FAULTS` is the list that users see.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jaccl_kernel.cluster.commands import COMMANDS
from jaccl_kernel.errors import InputError
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec

STALE_COORDINATOR = "10.0.0.99"
"""An address that rank 0 had once: no simulated Mac has it."""

_Apply = Callable[[ClusterSpec, tuple[str, ...]], ClusterSpec]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: how it is written, what it does, and a pattern for its arguments."""

    usage: str
    meaning: str
    pattern: str
    apply: _Apply

    @property
    def name(self) -> str:
        """What stands before the first colon."""
        return self.usage.partition(":")[0]


def with_faults(spec: ClusterSpec, faults: Iterable[str]) -> ClusterSpec:
    """The cluster with all these faults in it, one after the other.

    Raises:
        InputError: a fault is unknown, is badly written, or does not fit this cluster.
    """
    for text in faults:
        spec = with_fault(spec, text)
    return spec


def with_fault(spec: ClusterSpec, text: str) -> ClusterSpec:
    """The cluster with one fault, such as `missing-cable:1-3` or `hang:2:ibv_devinfo`.

    Raises:
        InputError: the fault is unknown, is badly written, or does not fit this cluster.
    """
    name, _, arguments = text.strip().partition(":")
    fault = next((fault for fault in FAULTS if fault.name == name), None)
    if fault is None:
        known = ", ".join(fault.usage for fault in FAULTS)
        raise InputError(f"there is no fault {name!r}", where=f"fault {text!r}", fix=f"Choose from: {known}.")
    match = re.fullmatch(fault.pattern, arguments, re.ASCII)
    if match is None:
        raise InputError("the fault is badly written", where=f"fault {text!r}", fix=f"Write {fault.usage}.")
    try:
        return fault.apply(spec, tuple(group or "" for group in match.groups()))
    except InputError as error:
        raise InputError(error.what, where=f"fault {text!r}", fix=error.fix) from error


def _node(spec: ClusterSpec, number: str) -> int:
    node = int(number) - 1
    if not 0 <= node < len(spec.macs):
        raise InputError(f"there is no Mac {number}", fix=f"Macs are numbered from 1 to {len(spec.macs)}.")
    return node


def _cable(spec: ClusterSpec, a: str, b: str) -> CableSpec:
    found = spec.between(_node(spec, a), _node(spec, b))
    if not found:
        raise InputError(f"no cable joins Mac {a} and Mac {b}", fix="Name two Macs that are cabled.")
    return found[0]


def _mac(**changes: object) -> _Apply:
    """A fault that changes attributes of one Mac."""
    return lambda spec, arguments: spec.with_mac(_node(spec, arguments[0]), **changes)


def _port(attribute: str) -> _Apply:
    """A fault of one port: the one that is named, or the first that has a cable."""

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
    there = _cable(spec, *arguments).nodes
    others = [cable for cable in spec.cables if first in cable.nodes and cable.nodes != there]
    strayed = min(others, key=lambda cable: cable.nodes, default=None)
    return (spec.without(strayed) if strayed else spec).with_cable(first, _node(spec, arguments[1]))


def _swapped(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    """Two cables trade one end each: the far ends of two cables, or two cables' ends in one Mac."""
    a, b, c, d = arguments[:4]
    if not b:
        node = _node(spec, a)
        numbers = sorted(spec.cables_of(node))[:2]
        if len(numbers) < 2:
            raise InputError(f"Mac {a} has no two cables to swap", fix="Name a Mac with two cables.")
        ends = [(node, number) for number in numbers]
        cables = [spec.cables_of(node)[number] for number in numbers]
    else:
        cables = [_cable(spec, a, b), _cable(spec, c, d)]
        ends = [_end(cable, _node(spec, far)) for cable, far in zip(cables, (b, d), strict=True)]
        if cables[0] == cables[1]:
            raise InputError("a cable cannot be swapped with itself", fix="Name two cables.")
    swapped = [
        replace(cable, a=cable.far_end(mine), b=other)
        for cable, mine, other in zip(cables, ends, reversed(ends), strict=True)
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


def _hang(spec: ClusterSpec, arguments: tuple[str, ...]) -> ClusterSpec:
    node, command = _node(spec, arguments[0]), arguments[1]
    known = sorted({command.argv[0] for command in COMMANDS})
    if command not in known:
        raise InputError(f"no scan asks for {command}", fix=f"Choose from: {', '.join(known)}.")
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
    Fault("doubled-cable:A-B", "a cable of Mac A went to Mac B a second time", _PAIR, _doubled),
    Fault(
        "swapped-cable:A-B,C-D",
        "two cables ended up in each other's Mac: A-D and C-B (with one Mac: in each other's port)",
        rf"{_MAC}(?:-{_MAC},{_MAC}-{_MAC})?",
        _swapped,
    ),
    Fault("half-seen:A-B", "only Mac A sees the cable to Mac B", _PAIR, _half_seen),
    Fault("dock:N", "a dock in a Thunderbolt port of Mac N", _MAC, _dock),
    Fault("rdma-off:N", "RDMA is off on Mac N", _MAC, _mac(rdma=False)),
    Fault("thunderbolt4:N", "Mac N has Thunderbolt 4 only", _MAC, _thunderbolt4),
    Fault("old-macos:N", "macOS of Mac N is too old", _MAC, _mac(macos="26.1", build="25B78")),
    Fault("macos-skew:N", "Mac N has another macOS build", _MAC, _mac(macos="26.4", build="25E246")),
    Fault("bridged-port:N[:PORT]", "a port of Mac N is in the Thunderbolt bridge", _PORT, _port("bridged")),
    Fault("no-ipv4:N[:PORT]", "a port of Mac N has no IPv4 address", _PORT, _port("no_ipv4")),
    Fault("gid-index-2:N[:PORT]", "a port of Mac N has its IPv4 GID at index 2", _PORT, _port("late_gid")),
    Fault("hang:N:COMMAND", "a command of Mac N never ends", rf"{_MAC}:([\w.-]+)", _hang),
    Fault("version-skew:N", "Mac N has another mlx", _MAC, _mac(mlx="0.31.0")),
    Fault("stale-coordinator", "the hostfile names an address that rank 0 lost", "", _stale_coordinator),
    Fault("partial-model:N", "a file of the model is missing on Mac N", _MAC, _mac(partial_model=True)),
    Fault("ssh-fails:N", "Mac N refuses our ssh key", _MAC, _mac(reachable="ssh-fails")),
    Fault("asleep:N", "Mac N sleeps", _MAC, _mac(reachable="asleep")),
)
