"""A hostfile against the Macs as they are: the cables, the devices, the ports' states, their addresses; pure.

`check.py` judges the file alone; here every cell is held against the cabling that both ends told, and each
wrong one is named. What nobody could see is a problem of the code `untested`, a warning, never a pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaccl_kernel.cluster import coordinator
from jaccl_kernel.cluster.facts import JACCL_GID_INDEX, DeviceFacts, NodeFacts
from jaccl_kernel.cluster.flaws import describe
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.matrix import neighbours
from jaccl_kernel.cluster.problem import Problem, place
from jaccl_kernel.cluster.wiring import Cable, End, Wiring

UNTESTED = "untested"
"""The code of what could not be seen."""


_WENT = {
    "timeout": "did not end in time",
    "missing": "is missing",
    "failed": "failed",
    "empty": "said nothing",
    "unreadable": "said what nobody can read",
}


@dataclass(frozen=True)
class Use:
    """One device that a job would use: on which rank, towards which, and the cell that says so ("": none)."""

    rank: int
    peer: int
    device: str
    where: str


def uses(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> tuple[Use, ...]:
    """The devices that a job would use: the matrix's, or, without a matrix, those of the cables.

    Args:
        hostfile: its matrix may be absent, but not of another size than the cluster.
        wiring: of the same Macs, in the same order.
        ring: whether JACCL makes a ring of it (neighbours' cells only, all their names) or a mesh.
    """
    if any(hostfile.rdma):
        return tuple(_cells(hostfile, ring=ring))
    found = []
    for cable in wiring.cables:
        for end, far in ((cable.a, cable.b), (cable.b, cable.a)):
            if not cable.is_loop and (device := wiring.port(end).rdma_device):
                found.append(Use(end.node, far.node, device, f"{wiring.place(end)} ({device})"))
    return tuple(found)


def cell_problems(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> list[Problem]:
    """Every cell that does not lead where it says, and every cable end that is named by the wrong cell."""
    found = [_judge_cell(use, hostfile, wiring) for use in _cells(hostfile, ring=ring)]
    return [problem for problem in found if problem] + list(_crossed(hostfile, wiring, ring=ring))


def port_problems(found: Sequence[Use], wiring: Wiring) -> list[Problem]:
    """Devices that are not there or not active, with what is known of the Mac at the other end."""
    problems = []
    for use, device in _with_devices(found, wiring):
        node = wiring.nodes[use.rank]
        if device is None and node.devices is not None:
            problems.append(Problem("device-missing", "error", use.where, *_no_device(use.device, node)))
        elif device is None or device.active is None:
            text = f"The state of {use.device} is not known{_because(wiring.nodes[use.rank], 'ibv_devinfo')}."
            problems.append(_untested(use, text))
        elif not device.active:
            cause, fix = _why_down(use, wiring)
            text = f"{use.device} says {device.state}: {cause}."
            problems.append(Problem("port-down", "error", use.where, text, fix))
    return problems


def gid_problems(found: Sequence[Use], wiring: Wiring) -> list[Problem]:
    """Ports without an IPv4 GID, or with one at another index than JACCL sends with; the cause by name."""
    problems = []
    for use, device in _with_devices(found, wiring):
        if device is None or device.gid_ready is None:
            node = wiring.nodes[use.rank]
            missing = device is None and node.devices is not None
            why = ": there is no such device" if missing else _because(node, "ibv_devinfo")
            text = f"The GIDs of {use.device} are not known{why}."
            problems.append(_untested(use, text))
        elif not device.gid_ready:
            problems.append(_gid_problem(use, device, wiring))
    return problems


def coordinator_problem(address: str, nodes: Sequence[NodeFacts], labels: Sequence[str]) -> Problem | None:
    """The problem with rank 0's address, or None if it is one of rank 0's."""
    where = f"host 0 ({labels[0]}), ips[0]"
    why = coordinator.stale(address, nodes, labels)
    if why is None:
        text = f"{labels[0]} did not tell its addresses, so {address} could not be looked for among them."
        return Problem(UNTESTED, "warning", where, text, "Scan again.")
    best = coordinator.choose(nodes)
    fix = f"Write {best.reason}." if best else "Connect that Mac to the LAN."
    if not why:
        if (port := coordinator.thunderbolt(address, nodes[0])) is None:
            return None
        text = f"{address} is on {port} of {labels[0]}: it goes with that cable, and not all Macs are on it."
        return Problem("coordinator-thunderbolt", "warning", where, text, fix)
    return Problem("coordinator-stale", "error", where, f"{why}.", fix)


def _cells(hostfile: Hostfile, *, ring: bool) -> Iterator[Use]:
    """The names that the topology uses, cell by cell; rows of another length have no meaning, and none."""
    size = len(hostfile)
    for rank, row in enumerate(hostfile.rdma):
        if len(row) != size:
            continue
        peers = sorted(set(neighbours(rank, size))) if ring else [j for j in range(size) if j != rank]
        for peer in peers:
            cell = row[peer]
            names = (cell,) if isinstance(cell, str) else cell if isinstance(cell, tuple) else ()
            for name in names if ring else names[:1]:
                if isinstance(name, str) and name:
                    yield Use(rank, peer, name, place(hostfile, rank, f"rdma[{peer}]"))


def _judge_cell(use: Use, hostfile: Hostfile, wiring: Wiring) -> Problem | None:
    mac, other = wiring.labels[use.rank], wiring.labels[use.peer]
    node = wiring.nodes[use.rank]
    right = {device: cable for cable, device in _ways(wiring, use.rank, use.peer)}
    if use.device in right:
        if right[use.device].seen == "both":
            return None
        text = f"says {use.device}, but only one end sees that cable between {mac} and {other}."
        return Problem("cell-half", "error", use.where, text, "Reseat both its ends, and wake both Macs.")
    if node.ports is None:
        return _untested(use, f"{mac} did not tell where its cables lead, so {use.device} is not tested.")
    better = next((device for device, cable in right.items() if cable.seen == "both"), None)
    if node.devices and node.device(use.device) is None and _port_of(use, wiring) is None:
        text, fix = _no_device(use.device, node)
        if better:
            fix = f"Write {better} there."
        return Problem("cell-no-device", "error", use.where, text, fix)
    if better:
        text = f"the cable to {other} is on {better}"
        fix = f"Write {better} there, or move the cable."
    elif wiring.nodes[use.peer].ports is None:
        return _untested(use, f"{other} did not tell where its cables lead, so {use.device} is not tested.")
    else:
        text = f"no cable leads from {mac} to {other}"
        fix = f"Plug a cable between {mac} and {other}, then write the hostfile again."
    return Problem(
        "cell-wrong", "error", use.where, f"says {use.device}, but {_leads(use, wiring)}; {text}.", fix
    )


def _leads(use: Use, wiring: Wiring) -> str:
    """Where a device's port leads, as half a sentence."""
    end = _port_of(use, wiring)
    if end is None:
        return f"no Thunderbolt port of {wiring.labels[use.rank]} is known to have it"
    for cable in wiring.cables:
        if end in (cable.a, cable.b):
            far = cable.b if end == cable.a else cable.a
            return f"that port's cable leads to {wiring.labels[far.node]}"
    stranger = next((one for one in wiring.strangers if one.end == end), None)
    if stranger:
        return describe(wiring, stranger).rstrip(".")
    return f"nothing is plugged into that port ({wiring.place(end)})"


def _crossed(hostfile: Hostfile, wiring: Wiring, *, ring: bool) -> Iterator[Problem]:
    """Pairs whose two cells are right alone, but name the ends of two different cables."""
    names: dict[tuple[int, int], list[str]] = {}
    for use in _cells(hostfile, ring=ring):
        names.setdefault((use.rank, use.peer), []).append(use.device)
    for (rank, peer), mine in names.items():
        theirs = names.get((peer, rank), [])
        if rank > peer:
            continue
        here = {device: cable for cable, device in _ways(wiring, rank, peer)}
        there = {device: cable for cable, device in _ways(wiring, peer, rank)}
        for a, b in zip(mine, theirs, strict=False):
            if a in here and b in there and here[a] != there[b]:
                where = place(hostfile, rank, f"rdma[{peer}]")
                text = (
                    f"says {a}, and host {peer}'s cell for the way back {b}: each leads to the other Mac, "
                    "but they are the ends of two different cables."
                )
                far = next((device for device, cable in there.items() if cable == here[a]), b)
                yield Problem(
                    "cell-crossed", "error", where, text, f"Write {far} in {place(hostfile, peer)}."
                )


def _ways(wiring: Wiring, rank: int, peer: int) -> Iterator[tuple[Cable, str]]:
    """The cables from one node to another, each with its device at the first; the best first."""
    for cable in wiring.between((min(rank, peer), max(rank, peer))):
        if device := wiring.port(cable.end_at(rank)).rdma_device:
            yield cable, device


def _port_of(use: Use, wiring: Wiring) -> End | None:
    ports = wiring.nodes[use.rank].ports or ()
    index = next((i for i, port in enumerate(ports) if port.rdma_device == use.device), None)
    return None if index is None else End(use.rank, index)


def _with_devices(found: Sequence[Use], wiring: Wiring) -> Iterator[tuple[Use, DeviceFacts | None]]:
    """The uses, each device once, with its facts; None if it is not there, or nobody told."""
    told = set()
    for use in found:
        if (use.rank, use.device) not in told:
            told.add((use.rank, use.device))
            yield use, wiring.nodes[use.rank].device(use.device)


def _no_device(name: str, node: NodeFacts) -> tuple[str, str]:
    """What to say of a device that is not there, and what to do."""
    there = sorted(device.name for device in node.devices or ())
    if not there:
        return (
            f"says {name}, but {node.name} lists no RDMA device at all: RDMA is off, or it cannot do it.",
            "Enable RDMA over Thunderbolt on that Mac.",
        )
    return (
        f"says {name}, which {node.name} does not have: it has {', '.join(there)}.",
        "Write the one whose cable goes there; names can change after a reboot or re-cabling.",
    )


def _why_down(use: Use, wiring: Wiring) -> tuple[str, str]:
    """Why a port is down, as far as the other Macs tell, and what to do."""
    peer, other = wiring.nodes[use.peer], wiring.labels[use.peer]
    if peer.error is not None:
        return (
            f"{other}, at the other end, does not answer: it may sleep",
            f"Wake {other}; caffeinate -s keeps it.",
        )
    end = _port_of(use, wiring)
    if end is not None and not any(end in (cable.a, cable.b) for cable in wiring.cables):
        return f"no cable of this cluster is in {wiring.place(end)}", "Plug the cable in, at both ends."
    if peer.rdma == "disabled" or peer.devices == ():
        return f"{other}, at the other end, has RDMA off", f"Enable RDMA over Thunderbolt on {other}."
    return (
        "the cable is loose or bad, or the Mac at the other end sleeps or has RDMA off",
        f"Reseat the cable, and wake {other} (caffeinate -s keeps it awake).",
    )


def _gid_problem(use: Use, device: DeviceFacts, wiring: Wiring) -> Problem:
    """The first cause of an unusable GID."""
    node, end = wiring.nodes[use.rank], _port_of(use, wiring)
    port = f"{wiring.place(end)} ({device.name})" if end else device.name
    interface = node.interface(device.name.removeprefix("rdma_"))
    if device.ipv4_gid is not None:
        return Problem("gid-index", "error", use.where, *_wrong_index(port, *device.ipv4_gid))
    if interface is not None and interface.bridge:
        text = f"{port} is a member of {interface.bridge}, and so has no usable GID of its own."
        return Problem(
            "gid-bridge",
            "error",
            use.where,
            text,
            "Take the port out of the bridge (notebook 03, network set-up).",
        )
    if interface is not None and interface.ipv4:
        text = f"{port} has the address {interface.ipv4[0].ip}, but no GID of it (yet): it can come late."
        fix = f"Wait a minute and scan again; else: sudo ifconfig {interface.name} down, 15 s, up."
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
    """What to say of an IPv4 GID that is not where JACCL sends from, and what to do."""
    text = f"{port} has its IPv4 GID ({ip}) at index {index}, and JACCL sends with index {JACCL_GID_INDEX}: "
    if index < JACCL_GID_INDEX:
        return (
            f"{text}the port's link-local IPv6 address, which belongs before it, is missing.",
            "Set the port's IPv6 to link-local only, not off (System Settings → Network).",
        )
    return (
        f"{text}another address stands before it.",
        "Set the port's IPv6 to link-local only (System Settings → Network), or restart that Mac.",
    )


def _because(node: NodeFacts, command: str) -> str:
    """Why a command told nothing, to put behind a sentence."""
    if node.error is not None:
        return ": the Mac did not answer"
    outcome = node.outcomes.get(command)
    how = _WENT.get(outcome.status, "") if outcome else ""
    return f": {command} on {node.name} {how}" if how else ""


def _untested(use: Use, text: str) -> Problem:
    return Problem(UNTESTED, "warning", use.where, text, "Make that Mac answer, then scan again.")
