"""Predicts what JACCL does with an rdma matrix: form a mesh, a ring or no group, or fail, and why. Pure.

A model of JACCL's start-up (mlx 0.32.3: jaccl.cpp, rdma.cpp, mesh.cpp, ring.cpp), step by step and rank by
rank, so that a hostfile can be checked without RDMA devices. It does not cover mlx.launch's stricter rules
(`lint.py` does) or port states.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jaccl_kernel.hostfile.matrix_parser import (
    MatrixError,
    Names,
    describe_cell,
    parse_cables,
    parse_devices,
    parse_matrix,
)

Kind = Literal["mesh", "ring", "singleton", "crash", "error"]
Topology = Literal["mesh", "ring"]

MESH_MAX_RANKS = 8
RING_MAX_WIRES = 4
MAX_QUEUE_PAIRS = 10  # per device, on Thunderbolt
MAX_MEMORY_REGIONS = 100  # per device, approximately, before the driver fails
# Each connection registers buffers of 8 sizes: in a ring one to send and one to receive per size, in a mesh
# as many again for the scatter operation.
REGIONS_PER_WIRE: dict[Topology, int] = {"mesh": 64, "ring": 32}


RING_SEARCH_LIMIT = 12
"""The maximum number of nodes for the ring search, whose cost doubles with each node."""


@dataclass(frozen=True)
class Verdict:
    """The result of JACCL's start-up with one matrix.

    Attributes:
        kind: "mesh" or "ring" (a group of all ranks), "singleton" (a non-strict init gives each rank a group
            of one, a strict init fails), "error" (ranks fail with a message), "crash" (a rank segfaults).
        message: one or two sentences; an error starts with JACCL's own message.
        rank: the row that the message concerns, if any.
        column: the cell of that row, if any.
    """

    kind: Kind
    message: str
    rank: int | None = None
    column: int | None = None

    @property
    def joins(self) -> bool:
        """Whether all ranks join one group."""
        return self.kind in ("mesh", "ring")


@dataclass(frozen=True)
class _Wire:
    """One queue pair of one rank: its device, and the device at the other end."""

    rank: int
    peer: int
    device: str
    peer_device: str

    @property
    def ends(self) -> frozenset[str]:
        """The two ends (`rank.device`) of the cable that this wire needs."""
        return frozenset((f"{self.rank}.{self.device}", f"{self.peer}.{self.peer_device}"))


def verdict(
    rdma: object,
    *,
    prefer_ring: bool = False,
    devices: Sequence[Collection[str]] | None = None,
    cables: Iterable[Sequence[str]] | None = None,
    mesh_wires: Literal["first", "all"] = "first",
) -> Verdict:
    """Predict what JACCL does with an n x n matrix of device names.

    If several ranks fail, a crash takes precedence over an error, then the lowest rank.

    Args:
        rdma: `rdma[i][j]` is the device of rank i for rank j: None, a name, or a list of names. Any other
            value gives the verdict of JACCL's parser; none raises.
        prefer_ring: whether MLX_JACCL_RING (or JACCL_RING) is set, as `--backend jaccl-ring` does.
        devices: `devices[i]` are the RDMA devices of host i; one flat list of names means the same devices on
            every host; None means that all devices exist.
        cables: the cables as pairs like `("0.rdma_en3", "1.rdma_en4")`; None means that any two devices are
            connected.
        mesh_wires: how many names of a cell a mesh uses: the "first" (mlx up to 0.32.3), or "all", which
            means as many as the shortest cell has (from mlx 0.32.4).

    Raises:
        ValueError: `devices` is not a list or has a wrong length, or a cable is not a pair of ends.
    """
    try:
        names = parse_matrix(rdma)
    except MatrixError as error:
        return Verdict("error", error.message, error.rank, error.column)
    present = parse_devices(devices, len(names))
    plugged = None if cables is None else parse_cables(cables)

    topology = _choose(names, prefer_ring=prefer_ring)
    if isinstance(topology, Verdict):
        return topology
    wires = _wires(names, topology, mesh_wires)
    failures = [
        failure
        for rank, own in enumerate(wires)
        if (failure := _rank_failure(topology, own, rank, len(names), present[rank]))
    ]
    if failures:
        return min(failures, key=lambda failure: failure.kind != "crash")
    if plugged is not None and (mismatch := _find_mismatch(wires, plugged)):
        return mismatch
    count = len(wires[0]) // (2 if topology == "ring" else len(names) - 1)
    per_pair = f", {count} wires to each {'neighbour' if topology == 'ring' else 'peer'}" if count > 1 else ""
    return Verdict(topology, f"JACCL joins all {len(names)} ranks in a {topology}{per_pair}.")


def neighbours(rank: int, size: int) -> tuple[int, int]:
    """The left and the right neighbour of a rank in a ring of `size` (the same rank twice if size is 2)."""
    return (rank - 1) % size, (rank + 1) % size


def hamiltonian_cycle(size: int, joined: set[tuple[int, int]]) -> tuple[int, ...] | None:
    """A cycle that starts at node 0 and visits every node once, along joined pairs only, or None.

    Args:
        size: number of nodes; the result is None outside 2 to `RING_SEARCH_LIMIT`.
        joined: pairs of nodes, smaller first.
    """
    neighbours = [[j for j in range(size) if (min(i, j), max(i, j)) in joined] for i in range(size)]
    all_nodes = (1 << size) - 1

    @cache
    def extend(visited: int, node: int) -> tuple[int, ...] | None:
        if visited == all_nodes:
            return () if 0 in neighbours[node] else None
        for following in neighbours[node]:
            if (
                not visited & 1 << following
                and (rest := extend(visited | 1 << following, following)) is not None
            ):
                return following, *rest
        return None

    rest = extend(1, 0) if 2 <= size <= RING_SEARCH_LIMIT else None
    return None if rest is None else (0, *rest)


def _choose(names: Names, *, prefer_ring: bool) -> Topology | Verdict:
    """The topology that JACCL builds, or the verdict if it builds none."""
    if len(names) < 2:
        return Verdict("singleton", f"JACCL needs at least 2 ranks (got {len(names)}).")
    no_mesh, no_ring = _mesh_fault(names), _ring_fault(names)
    if prefer_ring and not no_ring:
        return "ring"
    if not no_mesh:
        return "mesh"
    if not no_ring:
        return "ring"
    first = no_ring if prefer_ring else no_mesh
    return Verdict(
        "singleton",
        f"JACCL forms no group: neither a mesh ({no_mesh.message}) nor a ring ({no_ring.message}). "
        "A strict init fails with: [jaccl] You need to provide via environment variables a rank…",
        first.rank,
        first.column,
    )


@dataclass(frozen=True)
class _Fault:
    message: str
    rank: int
    column: int


def _mesh_fault(names: Names) -> _Fault | None:
    """The first cell that prevents a mesh: empty, or not empty on the diagonal."""
    for rank, row in enumerate(names):
        for column, cell in enumerate(row):
            if rank == column and cell:
                return _Fault(f"rank {rank} has a device for itself", rank, column)
            if rank != column and not cell:
                return _Fault(f"rank {rank} has no device for rank {column}", rank, column)
    return None


def _ring_fault(names: Names) -> _Fault | None:
    """The first neighbour cell whose number of names differs from that of rank 0's cell for rank 1.

    That number may be 0: JACCL accepts a ring without wires, then crashes.
    """
    wires = len(names[0][1])
    for rank, row in enumerate(names):
        for column in neighbours(rank, len(names)):
            if len(row[column]) != wires:
                return _Fault(
                    f"rank {rank} has {len(row[column])} devices for its neighbour rank {column}, but "
                    f"rank 0 has {wires} for rank 1",
                    rank,
                    column,
                )
    return None


def _wires(names: Names, topology: Topology, mesh_wires: str) -> list[list[_Wire]]:
    """Every rank's wires, in the order in which JACCL opens them.

    JACCL connects the k-th name of `names[i][j]` to the k-th of `names[j][i]`. In a ring of 2 ranks, both
    directions use the same cell, so each wire appears twice.
    """
    size = len(names)
    ranks = range(size)
    if topology == "ring":
        order = [
            [(peer, k) for peer in neighbours(rank, size) for k in range(len(names[rank][peer]))]
            for rank in ranks
        ]
    else:
        shortest = min(len(names[i][j]) for i in ranks for j in ranks if i != j)
        used = shortest if mesh_wires == "all" else 1
        order = [[(peer, k) for k in range(used) for peer in ranks if peer != rank] for rank in ranks]
    return [
        [_Wire(rank, peer, names[rank][peer][k], names[peer][rank][k]) for peer, k in order[rank]]
        for rank in ranks
    ]


def _rank_failure(
    topology: Topology, wires: list[_Wire], rank: int, size: int, present: Collection[str] | None
) -> Verdict | None:
    """The first error of one rank before it communicates with the others, or None."""
    if topology == "mesh" and size > MESH_MAX_RANKS:
        return Verdict(
            "error",
            f"[jaccl] The JACCL mesh supports up to {MESH_MAX_RANKS} peers but {size} were provided. "
            "Only a ring supports more.",
        )
    for wire in wires:
        if wire.device and present is not None and wire.device not in present:
            return Verdict(
                "error",
                f"[jaccl] Could not find device {wire.device} ({len(present)} available). "
                f"{describe_cell(rank, wire.peer)} has a device that does not exist on its host.",
                rank,
                wire.peer,
            )
    if topology == "ring" and (each_way := len(wires) // 2) > RING_MAX_WIRES:
        return Verdict(
            "error",
            f"[jaccl] Up to {RING_MAX_WIRES} per direction supported but {each_way} were provided. "
            "A cell of a ring has at most that many devices.",
            rank,
            neighbours(rank, size)[0],
        )
    return _queue_pairs_exhausted(wires, rank) or _crash(topology, wires, rank)


def _queue_pairs_exhausted(wires: list[_Wire], rank: int) -> Verdict | None:
    """More queue pairs than a device supports: only in a mesh of many wires, as a ring needs at most 8."""
    for device, pairs in Counter(wire.device for wire in wires if wire.device).items():
        if pairs > MAX_QUEUE_PAIRS:
            return Verdict(
                "error",
                "[jaccl] Creating the queue pair failed with 'Device or resource busy (16)'. "
                f"Rank {rank} needs {pairs} queue pairs on {device}; a device has {MAX_QUEUE_PAIRS}.",
                rank,
            )
    return None


def _crash(topology: Topology, wires: list[_Wire], rank: int) -> Verdict | None:
    """The cause of a segmentation fault of one rank during set-up, or None."""
    if not wires:
        return Verdict(
            "crash",
            "JACCL accepts empty neighbour cells as a ring without wires, then crashes: "
            f"rank {rank} has no device.",
            rank,
        )
    for wire in wires:
        if not wire.device:
            return Verdict(
                "crash",
                f'{describe_cell(rank, wire.peer)} contains "", which JACCL accepts before it crashes.',
                rank,
                wire.peer,
            )
    per_wire = REGIONS_PER_WIRE[topology]
    for device, count in Counter(wire.device for wire in wires).items():
        if count * per_wire > MAX_MEMORY_REGIONS:
            peers = sorted({wire.peer for wire in wires if wire.device == device})
            return Verdict(
                "crash",
                f"[jaccl] Register memory region failed, then a crash: on rank {rank}, {device} has "
                f"{count} wires of the {topology} (to rank {' and '.join(map(str, peers))}), which need "
                f"{count * per_wire} memory regions; a device has about {MAX_MEMORY_REGIONS}.",
                rank,
                peers[-1],
            )
    return None


def _find_mismatch(wires: list[list[_Wire]], plugged: frozenset[frozenset[str]]) -> Verdict | None:
    """The first wire whose two ends are not connected by a cable."""
    used = {end for cable in plugged for end in cable}
    for own in wires:
        for wire in own:
            if wire.ends in plugged:
                continue
            here = f"{wire.rank}.{wire.device}"
            # observed with the real code: 107 on a port without a cable, 60 if the cable goes to another peer
            errno = 60 if here in used else 107
            return Verdict(
                "error",
                f"[jaccl] Changing queue pair to RTR failed with errno {errno}. "
                f"{describe_cell(wire.rank, wire.peer)} is {wire.device}, but no cable connects it to "
                f"{wire.peer_device} of rank {wire.peer}.",
                wire.rank,
                wire.peer,
            )
    return None
