"""Compares a hostfile with the Macs: cables, devices, port states and addresses. Pure.

`lint.py` checks the file alone. Here every cell is compared with the cabling that both ends confirm, and each
mismatch is a problem. A check without facts is a warning with the code `untested`, never a pass.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.matrix import neighbours
from jaccl_kernel.hostfile.problem import Problem, place
from jaccl_kernel.topology import coordinator
from jaccl_kernel.topology.facts import JACCL_GID_INDEX, DeviceFacts, NodeFacts
from jaccl_kernel.topology.issues import BESIDE_ETHERNET, describe
from jaccl_kernel.topology.wiring import Cable, End, Wiring

UNTESTED = "untested"
"""The code of a check that could not be made."""


_STATUS_TEXT = {
    "timeout": "timed out",
    "missing": "is missing",
    "failed": "failed",
    "empty": "printed nothing",
    "unreadable": "printed unreadable output",
}


@dataclass(frozen=True)
class DeviceUse:
    """One device that a job would use: its rank, the peer that it connects to, and its cell or port."""

    rank: int
    peer: int
    device: str
    where: str


def device_uses(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> tuple[DeviceUse, ...]:
    """The devices that a job would use: those of the matrix or, without a matrix, those of the cables.

    Args:
        hostfile: may have no matrix; a matrix must have the size of the cluster.
        wiring: of the same Macs, in the same order.
        ring: whether JACCL uses the matrix as a ring (neighbours' cells only, all their names) or as a mesh.
    """
    if any(hostfile.rdma):
        return tuple(_cells(hostfile, ring=ring))
    found = []
    for cable in wiring.cables:
        for end, other in ((cable.a, cable.b), (cable.b, cable.a)):
            if not cable.is_loop and (device := wiring.port(end).rdma_device):
                found.append(DeviceUse(end.node, other.node, device, f"{wiring.place(end)} ({device})"))
    return tuple(found)


def cell_problems(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> list[Problem]:
    """Cells whose device does not connect to their peer, and pairs of cells that name different cables."""
    uses = list(_cells(hostfile, ring=ring))
    named = {(use.rank, use.peer, use.device) for use in uses}
    found = [_check_cell(use, hostfile, wiring, named) for use in uses]
    crossed = _crossed(hostfile, wiring, ring=ring)
    return [*filter(None, found), *crossed, *(note for use in uses for note in _cable_notes(use, wiring))]


def port_problems(found: Sequence[DeviceUse], wiring: Wiring) -> list[Problem]:
    """Devices that are missing or not active, with the likely cause at the other end."""
    problems = []
    for use, device in _with_devices(found, wiring):
        node = wiring.nodes[use.rank]
        if device is None and node.devices is not None:
            problems.append(Problem("device-missing", "error", use.where, *_no_device(use.device, node)))
        elif device is None or device.active is None:
            text = f"The state of {use.device} is unknown{_reason(wiring.nodes[use.rank], 'ibv_devinfo')}."
            problems.append(_untested(use, text, node))
        elif not device.active:
            cause, fix = _why_down(use, wiring)
            text = f"{use.device} is {device.state}: {cause}."
            problems.append(Problem("port-down", "error", use.where, text, fix))
    return problems


def gid_problems(found: Sequence[DeviceUse], wiring: Wiring) -> list[Problem]:
    """Ports without an IPv4 GID at the index that JACCL sends with, and the cause."""
    problems = []
    for use, device in _with_devices(found, wiring):
        if device is None or device.gid_ready is None:
            node = wiring.nodes[use.rank]
            missing = device is None and node.devices is not None
            why = ": the device does not exist" if missing else _reason(node, "ibv_devinfo")
            text = f"The GIDs of {use.device} are unknown{why}."
            problems.append(_untested(use, text, wiring.nodes[use.rank]))
        elif not device.gid_ready:
            problems.append(_gid_problem(use, device, wiring))
    return problems


def coordinator_problem(address: str, nodes: Sequence[NodeFacts], labels: Sequence[str]) -> Problem | None:
    """The problem with the coordinator address, or None if the address belongs to rank 0."""
    where = f"host 0 ({labels[0]}), ips[0]"
    why = coordinator.stale(address, nodes, labels)
    if why is None:
        text = f"The addresses of {labels[0]} are unknown, so {address} is not tested."
        return Problem(UNTESTED, "warning", where, text, "Scan the Macs again.")
    best = coordinator.choose(nodes)
    fix = f"Write {best.reason}." if best else "Connect that Mac to the LAN."
    if not why:
        if (port := coordinator.thunderbolt(address, nodes[0])) is None:
            return None
        text = f"{address} is on {port} of {labels[0]}, and not all Macs are connected to that port."
        return Problem("coordinator-thunderbolt", "warning", where, text, fix)
    return Problem("coordinator-stale", "error", where, f"{why}.", fix)


def _cells(hostfile: Hostfile, *, ring: bool) -> Iterator[DeviceUse]:
    """The devices that the topology uses, cell by cell; rows of a wrong length are skipped."""
    size = len(hostfile)
    for rank, row in enumerate(hostfile.rdma):
        if len(row) != size:
            continue
        peers = sorted(set(neighbours(rank, size))) if ring else [j for j in range(size) if j != rank]
        for peer in peers:
            cell = row[peer]
            names = (cell,) if isinstance(cell, str) else cell if isinstance(cell, tuple) else ()
            for name in names:
                if isinstance(name, str) and name:
                    yield DeviceUse(rank, peer, name, place(hostfile, rank, f"rdma[{peer}]"))


def _cable_notes(use: DeviceUse, wiring: Wiring) -> Iterator[Problem]:
    """Warnings about a cell whose cable exists: a hub in between, or the port beside Ethernet."""
    cable = next(
        (cable for cable, name in _cables_to(wiring, use.rank, use.peer) if name == use.device), None
    )
    if cable is None:
        return
    if cable.hub and use.rank < use.peer:
        text = f"{cable.hub} is between {wiring.place(cable.a)} and {wiring.place(cable.b)}."
        yield Problem("cell-hub", "warning", use.where, text, "A direct cable is faster and better tested.")
    end = cable.end_at(use.rank)
    if wiring.port(end).beside_ethernet:
        text = f"{use.device} is {wiring.place(end)}. {BESIDE_ETHERNET}"
        fix = "Move the cable to another port, then write the hostfile again."
        yield Problem("cell-beside-ethernet", "warning", use.where, text, fix)


def _check_cell(
    use: DeviceUse, hostfile: Hostfile, wiring: Wiring, named: Collection[tuple[int, int, str]]
) -> Problem | None:
    mac, other = wiring.labels[use.rank], wiring.labels[use.peer]
    node = wiring.nodes[use.rank]
    right = {device: cable for cable, device in _cables_to(wiring, use.rank, use.peer)}
    if use.device in right:
        if right[use.device].seen == "both":
            return None
        text = f"set to {use.device}, but only one end detects that cable between {mac} and {other}."
        return Problem(
            "cell-half", "error", use.where, text, "Reseat both ends of the cable, and wake both Macs."
        )
    if node.ports is None:
        return _untested(use, f"The Thunderbolt ports of {mac} are unknown, so {use.device} is not tested.")
    better = next(
        (
            device
            for device, cable in right.items()
            if cable.seen == "both" and (use.rank, use.peer, device) not in named
        ),
        None,
    )
    if node.devices and node.device(use.device) is None and _port_of(use, wiring) is None:
        text, fix = _no_device(use.device, node)
        if better:
            fix = f"Set the cell to {better}."
        return Problem("cell-no-device", "error", use.where, text, fix)
    if better:
        text = f"the cable to {other} is on {better}"
        fix = f"Set the cell to {better}, or move the cable."
    elif wiring.nodes[use.peer].ports is None:
        return _untested(use, f"The Thunderbolt ports of {other} are unknown, so {use.device} is not tested.")
    else:
        text = f"no cable connects {mac} and {other}"
        fix = f"Connect {mac} and {other} with a cable, then write the hostfile again."
    return Problem(
        "cell-wrong",
        "error",
        use.where,
        f"set to {use.device}, but {_destination(use, wiring)}; {text}.",
        fix,
    )


def _destination(use: DeviceUse, wiring: Wiring) -> str:
    """What the device's port is connected to, as a clause."""
    end = _port_of(use, wiring)
    if end is None:
        return f"no known Thunderbolt port of {wiring.labels[use.rank]} has this device"
    for cable in wiring.cables:
        if end in (cable.a, cable.b):
            other = cable.b if end == cable.a else cable.a
            return f"the cable in that port connects to {wiring.labels[other.node]}"
    device = next((one for one in wiring.foreign_devices if one.end == end), None)
    if device:
        return describe(wiring, device).rstrip(".")
    return f"nothing is connected to {wiring.place(end)}"


def _crossed(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> Iterator[Problem]:
    """Pairs whose two cells are each valid but name the ends of two different cables."""
    names: dict[tuple[int, int], list[str]] = {}
    for use in _cells(hostfile, ring=ring):
        names.setdefault((use.rank, use.peer), []).append(use.device)
    for (rank, peer), mine in names.items():
        theirs = names.get((peer, rank), [])
        if rank > peer:
            continue
        here = {device: cable for cable, device in _cables_to(wiring, rank, peer)}
        there = {device: cable for cable, device in _cables_to(wiring, peer, rank)}
        for a, b in zip(mine, theirs, strict=False):
            if a in here and b in there and here[a] != there[b]:
                where = place(hostfile, rank, f"rdma[{peer}]")
                text = (
                    f"set to {a}, but host {peer}'s cell for the reverse direction is {b}: they are ends of "
                    "two different cables between the same two Macs."
                )
                other_end = next((device for device, cable in there.items() if cable == here[a]), b)
                yield Problem(
                    "cell-crossed", "error", where, text, f"Write {other_end} in {place(hostfile, peer)}."
                )


def _cables_to(wiring: Wiring, rank: int, peer: int) -> Iterator[tuple[Cable, str]]:
    """The cables from one node to another, each with its device on the first node; the best first."""
    for cable in wiring.between((min(rank, peer), max(rank, peer))):
        if device := wiring.port(cable.end_at(rank)).rdma_device:
            yield cable, device


def _port_of(use: DeviceUse, wiring: Wiring) -> End | None:
    ports = wiring.nodes[use.rank].ports or ()
    index = next((i for i, port in enumerate(ports) if port.rdma_device == use.device), None)
    return None if index is None else End(use.rank, index)


def _with_devices(
    found: Sequence[DeviceUse], wiring: Wiring
) -> Iterator[tuple[DeviceUse, DeviceFacts | None]]:
    """The uses, each device once, with its facts; None if the device is missing or unknown."""
    seen = set()
    for use in found:
        if (use.rank, use.device) not in seen:
            seen.add((use.rank, use.device))
            yield use, wiring.nodes[use.rank].device(use.device)


def _no_device(name: str, node: NodeFacts) -> tuple[str, str]:
    """The text and fix for a missing device."""
    devices = sorted(device.name for device in node.devices or ())
    if not devices:
        return (
            f"set to {name}, but {node.name} lists no RDMA device: RDMA is off or not supported.",
            "Enable RDMA over Thunderbolt on that Mac.",
        )
    return (
        f"set to {name}, which {node.name} does not have; its devices are {', '.join(devices)}.",
        "Write the hostfile again: device names can change after a reboot or re-cabling.",
    )


def _why_down(use: DeviceUse, wiring: Wiring) -> tuple[str, str]:
    """The likely cause of a port that is down, from the facts of the other Macs, and the fix."""
    peer, other = wiring.nodes[use.peer], wiring.labels[use.peer]
    if peer.error is not None:
        return (
            f"{other} at the other end does not answer and may be asleep",
            f"Wake {other}; `caffeinate -s` keeps it awake.",
        )
    end = _port_of(use, wiring)
    if end is not None and not any(end in (cable.a, cable.b) for cable in wiring.cables):
        return f"no cable of this cluster is in {wiring.place(end)}", "Plug in the cable at both ends."
    if peer.rdma == "disabled" or peer.devices == () or _announces_no_rdma(use, wiring):
        return f"RDMA is off on {other} at the other end", f"Enable RDMA over Thunderbolt on {other}."
    return (
        "the cable is loose or faulty, or the Mac at the other end is asleep or has RDMA off",
        f"Reseat the cable, and wake {other} (`caffeinate -s` keeps it awake).",
    )


def _announces_no_rdma(use: DeviceUse, wiring: Wiring) -> bool:
    """Whether the peer does not announce its RDMA service on the cable in the device's port."""
    end = _port_of(use, wiring)
    cables = wiring.between((min(use.rank, use.peer), max(use.rank, use.peer)))
    return any(
        wiring.offers_no_rdma(end, cable.end_at(use.peer))
        for cable in cables
        if end is not None and end in (cable.a, cable.b)
    )


def _gid_problem(use: DeviceUse, device: DeviceFacts, wiring: Wiring) -> Problem:
    """The problem that makes a port's GID unusable."""
    node, end = wiring.nodes[use.rank], _port_of(use, wiring)
    port = f"{wiring.place(end)} ({device.name})" if end else device.name
    interface = node.interface(device.name.removeprefix("rdma_"))
    if device.ipv4_gid is not None:
        return Problem("gid-index", "error", use.where, *_wrong_index(port, *device.ipv4_gid))
    if interface is not None and interface.bridge:
        text = f"{port} is a member of {interface.bridge}, so it has no usable GID."
        return Problem(
            "gid-bridge",
            "error",
            use.where,
            text,
            "Remove the port from the bridge (notebook 03, network set-up).",
        )
    if interface is not None and interface.ipv4:
        text = f"{port} has the address {interface.ipv4[0].ip}, but its GID does not exist yet."
        fix = f"Wait a minute and scan again; else: sudo ifconfig {interface.name} down, wait 15 s, then up."
        return Problem("gid-late", "error", use.where, text, fix)
    text = f"{port} has no IPv4 address, so JACCL finds no usable GID."
    return Problem(
        "gid-no-ipv4",
        "error",
        use.where,
        text,
        "Give the port an IPv4 address (notebook 03, network set-up).",
    )


def _wrong_index(port: str, index: int, ip: str) -> tuple[str, str]:
    """The text and fix for an IPv4 GID at an index that JACCL does not send with."""
    text = f"{port} has its IPv4 GID ({ip}) at index {index}, but JACCL sends with index {JACCL_GID_INDEX}: "
    if index < JACCL_GID_INDEX:
        return (
            f"{text}the port's link-local IPv6 address, which should be at index 0, is missing.",
            "Set the port's IPv6 to link-local only instead of off (System Settings → Network).",
        )
    return (
        f"{text}another address precedes it.",
        "Set the port's IPv6 to link-local only (System Settings → Network), or restart that Mac.",
    )


def _reason(node: NodeFacts, command: str) -> str:
    """Why a command has no result, as the end of a sentence."""
    if node.error is not None:
        return ": the Mac did not answer"
    outcome = node.outcomes.get(command)
    how = _STATUS_TEXT.get(outcome.status, "") if outcome else ""
    return f": {command} on {node.name} {how}" if how else ""


def _untested(use: DeviceUse, text: str, node: NodeFacts | None = None) -> Problem:
    fix, outcome = (
        "Make sure that the Mac answers, then scan again.",
        node and node.outcomes.get("ibv_devinfo"),
    )
    if (
        node and outcome and outcome.status == "timeout"
    ):  # exo#1711: ibv_devinfo hangs while jobs fail at random
        text += f" The RDMA stack of {node.name} is stuck."
        fix = f"Plug the Thunderbolt cables of {node.name} in again; otherwise restart it. Then scan again."
    return Problem(UNTESTED, "warning", use.where, text, fix)
