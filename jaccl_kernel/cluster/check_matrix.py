"""What is wrong with a hostfile's rdma matrix, cell by cell, under mlx.launch and JACCL.

`matrix.verdict` says what JACCL does with a matrix as a whole; these rules name every cell that keeps it from
doing what the file means, in the order: shape, then empty and odd cells, then devices, then what is merely
strange. A later group is looked at only where the earlier ones left sense in it. Pure: no I/O.
"""

import re
from collections.abc import Iterator

from jaccl_kernel.cluster.hostfile import Cell, Hostfile
from jaccl_kernel.cluster.matrix import MESH_MAX_RANKS, RING_MAX_WIRES, neighbours
from jaccl_kernel.cluster.problem import Problem, place


def matrix_problems(hostfile: Hostfile, *, ring: bool) -> list[Problem]:
    """The problems of a matrix of 2 ranks or more, launched as a mesh or as a ring.

    If JACCL would not make that topology of it, at least one of them is an error: an empty or unequal cell is
    what keeps a matrix from being one, and a device out of queue pairs or memory regions is one that stands
    twice in a cell or in two peers' cells.
    """
    if not any(hostfile.rdma):
        return [
            Problem(
                "rdma-missing",
                "error",
                "rdma",
                "No host has an rdma row, and JACCL needs one of each.",
                "Write each host's devices in the order of the hosts, null for itself; or use backend ring.",
            )
        ]
    if shape := list(_shape_problems(hostfile)):
        return shape
    grid = _Grid(hostfile, ring=ring)
    rules = (_diagonal, _empty_cells, _size, _names, _wire_counts, _sharing)
    return [problem for rule in rules for problem in rule(grid)]


class _Grid:
    """A matrix of the right shape: every cell as a tuple of names, and which cells the topology uses."""

    def __init__(self, hostfile: Hostfile, *, ring: bool) -> None:
        self.hostfile = hostfile
        self.ring = ring
        self.size = len(hostfile)
        self.names = [[_cell_names(cell) for cell in row] for row in hostfile.rdma]

    def at(self, rank: int, column: int | None) -> str:
        """The place of a cell, or of a row."""
        return place(self.hostfile, rank, "rdma" if column is None else f"rdma[{column}]")

    def host(self, rank: int) -> str:
        """A host by rank and name."""
        return place(self.hostfile, rank)

    def peers(self, rank: int) -> list[int]:
        """The ranks that a rank must reach."""
        if self.ring:
            return sorted(set(neighbours(rank, self.size)))
        return [peer for peer in range(self.size) if peer != rank]

    def cells(self) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """All cells that the topology uses, as (rank, peer, names)."""
        for rank in range(self.size):
            for peer in self.peers(rank):
                yield rank, peer, self.names[rank][peer]


def _cell_names(cell: Cell) -> tuple[str, ...]:
    if isinstance(cell, str):
        return (cell,)
    return cell if isinstance(cell, tuple) else ()


def _shape_problems(hostfile: Hostfile) -> Iterator[Problem]:
    """Rows that are too short or too long, and cells that hold no names."""
    size = len(hostfile)
    for rank, row in enumerate(hostfile.rdma):
        if len(row) != size:
            yield Problem(
                "rdma-row-length",
                "error",
                place(hostfile, rank, "rdma"),
                f"The row has {len(row)} cells for {size} hosts: mlx.launch refuses the file.",
                "One cell per host, in the order of the hosts, null for the host itself.",
            )
        for column, cell in enumerate(row):
            names = cell if isinstance(cell, tuple) else (cell,)
            if cell is not None and not all(isinstance(name, str) for name in names):
                yield Problem(
                    "rdma-cell-type",
                    "error",
                    place(hostfile, rank, f"rdma[{column}]"),
                    "Device names should be null, a string or array of strings: JACCL refuses this cell.",
                    'Write a device name in quotes, like "rdma_en3", or null.',
                )


def _diagonal(grid: _Grid) -> Iterator[Problem]:
    for rank, row in enumerate(grid.hostfile.rdma):
        if row[rank] is not None:
            yield Problem(
                "rdma-diagonal",
                "error",
                grid.at(rank, rank),
                "A host's cell for itself must be null: mlx.launch refuses the file.",
                "Write null there; if the row is shifted by one, put every name into its peer's column.",
            )


def _empty_cells(grid: _Grid) -> Iterator[Problem]:
    """Cells without a device (mlx.launch refuses null, lets [] pass), and with "" for one (JACCL crashes)."""
    whole_ring = not grid.ring and all(
        grid.names[rank][peer] for rank in range(grid.size) for peer in neighbours(rank, grid.size)
    )
    for rank, peer, names in grid.cells():
        if not names:
            back = grid.names[peer][rank]
            answer = f", although that one names {', '.join(back)} for the way back" if any(back) else ""
            yield Problem(
                "rdma-cell-empty",
                "error",
                grid.at(rank, peer),
                f"No device leads to {grid.host(peer)}{answer}.",
                "Name the device whose cable goes there"
                + ("; or use --backend jaccl-ring, whose cells are all filled." if whole_ring else "."),
            )
        elif "" in names:
            yield Problem(
                "rdma-name-empty",
                "error",
                grid.at(rank, peer),
                'JACCL counts "" as a device name, and crashes when it opens it.',
                "Name the device, or write null if no cable goes there.",
            )


def _size(grid: _Grid) -> Iterator[Problem]:
    if not grid.ring and grid.size > MESH_MAX_RANKS:
        yield Problem(
            "mesh-size",
            "error",
            "hosts",
            f"A mesh takes {MESH_MAX_RANKS} hosts at most; here are {grid.size}.",
            "Use fewer, or a ring: --backend jaccl-ring.",
        )


def _names(grid: _Grid) -> Iterator[Problem]:
    """Names that stand twice in one cell, or do not look like a Thunderbolt RDMA device."""
    odd: set[tuple[int, str]] = set()
    for rank, peer, names in grid.cells():
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield Problem(
                "rdma-name-twice",
                "error",
                grid.at(rank, peer),
                f"{twice!r} stands there more than once: a port has one cable.",
                "Name every device once.",
            )
        for name in names:
            if name and not re.fullmatch(r"rdma_en\d+", name) and (rank, name) not in odd:
                odd.add((rank, name))
                yield Problem(
                    "rdma-name",
                    "warning",
                    grid.at(rank, peer),
                    f"{name!r} does not look like an RDMA device of a Mac (rdma_en3).",
                    "Take the name from ibv_devices on that Mac.",
                )


def _wire_counts(grid: _Grid) -> Iterator[Problem]:
    """Numbers of names per cell: equal all around a ring, and at both ends of a pair."""
    if grid.ring:
        yield from _ring_wire_counts(grid)
        return
    several = [(rank, peer) for rank, peer, names in grid.cells() if len(names) > 1]
    if several:
        yield Problem(
            "mesh-extra-names",
            "warning",
            grid.at(*several[0]),
            f"Cells of the mesh list several devices ({len(several)} of them). mlx up to 0.32.3 uses the "
            "first alone; from 0.32.4 on, it uses as many of every cell as the shortest has.",
            "Name one device per cell, or run the same mlx version on all Macs and measure.",
        )
    for rank, peer in several:
        back = len(grid.names[peer][rank])
        if back and back != len(grid.names[rank][peer]) and (rank < peer or back == 1):
            yield Problem(
                "wires-unequal",
                "warning",
                grid.at(rank, peer),
                f"The cell for {grid.host(peer)} names {len(grid.names[rank][peer])}, the one for the way "
                f"back {back}: a cable has two ends.",
                "Name the same number at both ends; the k-th here and the k-th there are one cable.",
            )


def _ring_wire_counts(grid: _Grid) -> Iterator[Problem]:
    wires = len(grid.names[0][1])
    for rank, peer, names in grid.cells():
        if wires and names and len(names) != wires:
            yield Problem(
                "ring-wires-unequal",
                "error",
                grid.at(rank, peer),
                f"The cell for {grid.host(peer)} names {len(names)}, and host 0's for host 1 names {wires}: "
                "neighbours in a ring are joined by the same number of cables everywhere.",
                "Name equally many devices in every cell between neighbours.",
            )
        elif len(names) > RING_MAX_WIRES:
            yield Problem(
                "ring-wires",
                "error",
                grid.at(rank, peer),
                f"A ring uses {RING_MAX_WIRES} wires between two neighbours at most; here are {len(names)}.",
                "Name fewer devices.",
            )
    ignored = [
        (rank, peer)
        for rank in range(grid.size)
        for peer in range(grid.size)
        if peer != rank and peer not in grid.peers(rank) and any(grid.names[rank][peer])
    ]
    if ignored:
        yield Problem(
            "ring-ignores-cells",
            "warning",
            grid.at(*ignored[0]),
            f"A ring uses the cells between neighbours alone; {len(ignored)} more are filled, and ignored.",
            "Nothing, if a ring is meant; a mesh (--backend jaccl) would use all cables.",
        )


def _sharing(grid: _Grid) -> Iterator[Problem]:
    """One device towards two peers of a host: in a mesh JACCL runs out of memory regions and crashes."""
    for rank in range(grid.size):
        owner: dict[str, int] = {}
        for peer in grid.peers(rank):
            names = list(filter(None, dict.fromkeys(grid.names[rank][peer])))
            shared = [name for name in names if owner.setdefault(name, peer) != peer]
            if shared:
                told = " and ".join(f"{name} leads to {grid.host(owner[name])}" for name in shared)
                yield Problem(
                    "device-shared",
                    "error",
                    grid.at(rank, peer),
                    f"{told} already, and a port has one cable"
                    + ("." if grid.ring else "; a second peer on a device makes JACCL crash."),
                    f"Name the device whose cable goes to {grid.host(peer)}.",
                )
