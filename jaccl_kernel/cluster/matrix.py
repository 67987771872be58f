"""What JACCL will make of an rdma matrix: a mesh, a ring, no group at all, or a refusal, and why.

A model of JACCL's own start-up (mlx 0.32.3: jaccl.cpp, rdma.cpp, mesh.cpp, ring.cpp), step by step and rank
by rank, so that a hostfile can be judged where no RDMA device exists. It knows nothing of hostfiles, of
mlx.launch's stricter rules (`check.py` adds those) or of port states. Pure: no I/O.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

Kind = Literal["mesh", "ring", "singleton", "crash", "error"]
Topology = Literal["mesh", "ring"]
Names = tuple[tuple[tuple[str, ...], ...], ...]

MESH_MAX_RANKS = 8
RING_MAX_WIRES = 4
MAX_QUEUE_PAIRS = 10  # per device, on Thunderbolt
MAX_MEMORY_REGIONS = 100  # per device; the driver fails at about this many
# Each connection registers buffers of 8 sizes, 2 of each: in a ring one to send and one to receive, in a
# mesh these and as many again to scatter.
REGIONS_PER_WIRE: dict[Topology, int] = {"mesh": 64, "ring": 32}


@dataclass(frozen=True)
class Verdict:
    """What JACCL does with one matrix.

    Attributes:
        kind: "mesh" or "ring" (a group of all ranks), "singleton" (a non-strict init gives each rank a group
            of one, a strict one fails), "error" (ranks refuse, with a message), "crash" (a rank segfaults).
        message: one or two sentences; a refusal starts with JACCL's own words.
        rank: the row that it concerns, where there is one.
        column: the cell of that row.
    """

    kind: Kind
    message: str
    rank: int | None = None
    column: int | None = None

    @property
    def joins(self) -> bool:
        """Whether all ranks end up in one group."""
        return self.kind in ("mesh", "ring")


@dataclass(frozen=True)
class _Wire:
    """One queue pair as one rank sees it: its device, and the device that answers at the other end."""

    rank: int
    peer: int
    device: str
    far_device: str

    @property
    def ends(self) -> frozenset[str]:
        """The two `rank.device` ends of the cable that this wire needs."""
        return frozenset((f"{self.rank}.{self.device}", f"{self.peer}.{self.far_device}"))


class _ParseError(Exception):
    """JACCL's parser gave up; carries the verdict out of the nested parsing."""

    def __init__(self, message: str, rank: int | None = None, column: int | None = None) -> None:
        self.verdict = Verdict("error", message, rank, column)
        super().__init__(message)


def verdict(
    rdma: object,
    *,
    prefer_ring: bool = False,
    devices: Sequence[Collection[str]] | None = None,
    cables: Iterable[Sequence[str]] | None = None,
    mesh_wires: Literal["first", "all"] = "first",
) -> Verdict:
    """Say what JACCL does with an n x n matrix of device names.

    If ranks fail differently, a crash counts before an error, and the lowest rank before others.

    Args:
        rdma: `rdma[i][j]` is what rank i uses to reach rank j: None, a name, or a list of names. Any other
            value is judged as JACCL's parser would judge it; none raises.
        prefer_ring: whether MLX_JACCL_RING (or JACCL_RING) is set, as `--backend jaccl-ring` does.
        devices: `devices[i]` are the RDMA devices present on host i; one flat list of names means the same
            on every host; None means that all devices exist.
        cables: the real cables as pairs like `("0.rdma_en3", "1.rdma_en4")`; None means that every two
            devices reach each other.
        mesh_wires: how many names of a cell a mesh uses: the "first" (mlx up to 0.32.3), or "all" of them,
            that is as many as the shortest cell has (from mlx 0.32.4).

    Raises:
        ValueError: `devices` is no list, or has another length than `rdma`, or a cable is no pair of ends.
    """
    try:
        names = _parse(rdma)
    except _ParseError as error:
        return error.verdict
    present = _present(devices, len(names))
    plugged = None if cables is None else _plugged(cables)

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
    if plugged is not None and (unplugged := _unplugged(wires, plugged)):
        return unplugged
    count = len(wires[0]) // (2 if topology == "ring" else len(names) - 1)
    per_pair = f", {count} wires to each {'neighbour' if topology == 'ring' else 'peer'}" if count > 1 else ""
    return Verdict(topology, f"JACCL joins all {len(names)} ranks in a {topology}{per_pair}.")


def neighbours(rank: int, size: int) -> tuple[int, int]:
    """The left and the right neighbour of a rank in a ring of `size` (the same rank twice if size is 2)."""
    return (rank - 1) % size, (rank + 1) % size


def _parse(rdma: object) -> Names:
    """Read the matrix as JACCL's parser does, row by row and cell by cell, the first fault first."""
    if not isinstance(rdma, list | tuple):
        raise _ParseError(
            "[jaccl] The device file should start with an array: the matrix is not a list of rows."
        )
    return tuple(_parse_row(row, rank, len(rdma)) for rank, row in enumerate(rdma))


def _parse_row(row: object, rank: int, size: int) -> tuple[tuple[str, ...], ...]:
    if not isinstance(row, list | tuple):
        raise _ParseError(
            f"[jaccl] The device file should have an array of arrays: row {rank} is not a list.", rank
        )
    if len(row) != size:
        raise _ParseError(
            "[jaccl] The device file should contain the connectivity of each rank to all other ranks but "
            f"rank {rank} contains only {len(row)} entries. With {size} ranks every row has {size} cells.",
            rank,
        )
    return tuple(_parse_cell(cell, rank, column) for column, cell in enumerate(row))


def _parse_cell(cell: object, rank: int, column: int) -> tuple[str, ...]:
    if cell is None:
        return ()
    if isinstance(cell, str):
        return (cell,)
    if not isinstance(cell, list | tuple):
        raise _ParseError(
            "[jaccl] Device names should be null, a string or array of strings. "
            f"{_cell(rank, column)} is of type {_json_type(cell)}.",
            rank,
            column,
        )
    for name in cell:
        if not isinstance(name, str):
            # nlohmann::json's own exception, which JACCL does not catch
            raise _ParseError(
                f"[json.exception.type_error.302] type must be string, but is {_json_type(name)}: "
                f"{_cell(rank, column)} holds a list in which not every entry is a name.",
                rank,
                column,
            )
    return tuple(cell)


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list | tuple) else "object"


def _cell(rank: int, column: int) -> str:
    return f"Rank {rank}'s cell for rank {column}"


def _present(devices: Sequence[Collection[str]] | None, size: int) -> tuple[Collection[str] | None, ...]:
    """The device names of every host; None for "whatever the matrix names"."""
    if devices is None:
        return (None,) * size
    listed = tuple(devices) if _is_list(devices) else None
    if listed and _is_names(listed):
        return (listed,) * size
    if listed is None or not all(map(_is_names, listed)):
        raise ValueError("devices must be a list of names for each rank, or one list for all of them")
    if len(listed) != size:
        raise ValueError(f"devices has {len(listed)} entries, but the matrix has {size} ranks")
    return listed


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_names(entry: object) -> TypeGuard[Collection[str]]:
    return (
        isinstance(entry, Collection)
        and not isinstance(entry, str)
        and all(isinstance(name, str) for name in entry)
    )


def _plugged(cables: Iterable[Sequence[str]]) -> frozenset[frozenset[str]]:
    ends = set()
    for cable in cables:
        if not _is_list(cable) or len(cable) != 2 or not all(map(_is_end, cable)):
            raise ValueError(f'a cable is a pair like ("0.rdma_en3", "1.rdma_en4"), not {cable!r}')
        ends.add(frozenset(cable))
    return frozenset(ends)


def _is_end(end: object) -> bool:
    return isinstance(end, str) and re.fullmatch(r"\d+\..+", end) is not None


def _choose(names: Names, *, prefer_ring: bool) -> Topology | Verdict:
    """The topology that JACCL builds, or the verdict when it builds none."""
    if len(names) < 2:
        return Verdict("singleton", f"JACCL joins 2 ranks or more; this matrix has {len(names)}.")
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
        f"JACCL forms no group: not a mesh ({no_mesh.message}), nor a ring ({no_ring.message}). "
        "A strict init says: [jaccl] You need to provide via environment variables a rank…",
        first.rank,
        first.column,
    )


@dataclass(frozen=True)
class _Fault:
    message: str
    rank: int
    column: int


def _mesh_fault(names: Names) -> _Fault | None:
    """The first cell that keeps the matrix from being a mesh: empty, or filled on the diagonal."""
    for rank, row in enumerate(names):
        for column, cell in enumerate(row):
            if rank == column and cell:
                return _Fault(f"rank {rank} names a device to reach itself", rank, column)
            if rank != column and not cell:
                return _Fault(f"rank {rank} names no device to reach rank {column}", rank, column)
    return None


def _ring_fault(names: Names) -> _Fault | None:
    """The first neighbour cell with another number of names than rank 0 has for rank 1.

    That number may be 0: JACCL takes a ring without wires for valid, and crashes in it.
    """
    wires = len(names[0][1])
    for rank, row in enumerate(names):
        for column in neighbours(rank, len(names)):
            if len(row[column]) != wires:
                return _Fault(
                    f"rank {rank} names {len(row[column])} for its neighbour rank {column}, "
                    f"rank 0 names {wires} for rank 1",
                    rank,
                    column,
                )
    return None


def _wires(names: Names, topology: Topology, mesh_wires: str) -> list[list[_Wire]]:
    """Every rank's wires, in the order in which JACCL opens them.

    The k-th name of `names[i][j]` is joined to the k-th of `names[j][i]`; in a ring of 2 both directions use
    the same cell, so each of its wires appears twice.
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
    """What stops one rank before it exchanges anything with the others, the first obstacle first."""
    if topology == "mesh" and size > MESH_MAX_RANKS:
        return Verdict(
            "error",
            f"[jaccl] The JACCL mesh supports up to {MESH_MAX_RANKS} peers but {size} were provided. "
            "Only a ring joins more.",
        )
    for wire in wires:
        if wire.device and present is not None and wire.device not in present:
            return Verdict(
                "error",
                f"[jaccl] Could not find device {wire.device} ({len(present)} available). "
                f"{_cell(rank, wire.peer)} names a device that its host does not have.",
                rank,
                wire.peer,
            )
    if topology == "ring" and (each_way := len(wires) // 2) > RING_MAX_WIRES:
        return Verdict(
            "error",
            f"[jaccl] Up to {RING_MAX_WIRES} per direction supported but {each_way} were provided. "
            "A ring's cells name at most that many devices.",
            rank,
            neighbours(rank, size)[0],
        )
    return _queue_pairs_exhausted(wires, rank) or _crash(topology, wires, rank)


def _queue_pairs_exhausted(wires: list[_Wire], rank: int) -> Verdict | None:
    """More queue pairs than a device has: in a mesh of many wires only, a ring has 8 at most."""
    for device, pairs in Counter(wire.device for wire in wires if wire.device).items():
        if pairs > MAX_QUEUE_PAIRS:
            return Verdict(
                "error",
                "[jaccl] Creating the queue pair failed with 'Device or resource busy (16)'. "
                f"Rank {rank} asks {device} for {pairs} of them; a device has {MAX_QUEUE_PAIRS}.",
                rank,
            )
    return None


def _crash(topology: Topology, wires: list[_Wire], rank: int) -> Verdict | None:
    """What makes one rank segfault while it sets its wires up."""
    if not wires:
        return Verdict(
            "crash",
            "JACCL takes empty neighbour cells for a ring without wires, and crashes in it: "
            f"rank {rank} names no device at all.",
            rank,
        )
    for wire in wires:
        if not wire.device:
            return Verdict(
                "crash",
                f'{_cell(rank, wire.peer)} holds "", which JACCL counts as a name and opens as no device: '
                "it crashes.",
                rank,
                wire.peer,
            )
    per_wire = REGIONS_PER_WIRE[topology]
    for device, count in Counter(wire.device for wire in wires).items():
        if count * per_wire > MAX_MEMORY_REGIONS:
            peers = sorted({wire.peer for wire in wires if wire.device == device})
            return Verdict(
                "crash",
                f"[jaccl] Register memory region failed, then a crash: on rank {rank}, {device} carries "
                f"{count} wires of the {topology} (to rank {' and '.join(map(str, peers))}), which need "
                f"{count * per_wire} memory regions; a device has about {MAX_MEMORY_REGIONS}.",
                rank,
                peers[-1],
            )
    return None


def _unplugged(wires: list[list[_Wire]], plugged: frozenset[frozenset[str]]) -> Verdict | None:
    """The first wire whose two ends are not the two ends of one cable."""
    used = {end for cable in plugged for end in cable}
    for own in wires:
        for wire in own:
            if wire.ends in plugged:
                continue
            here = f"{wire.rank}.{wire.device}"
            # seen with the real code: 107 on a port without any cable, 60 when the peer is elsewhere
            errno = 60 if here in used else 107
            return Verdict(
                "error",
                f"[jaccl] Changing queue pair to RTR failed with errno {errno}. "
                f"{_cell(wire.rank, wire.peer)} is {wire.device}, but no cable leads from there to "
                f"{wire.far_device} of rank {wire.peer}, which answers.",
                wire.rank,
                wire.peer,
            )
    return None
