"""Checks a hostfile's rdma matrix cell by cell, for mlx.launch and JACCL. Pure.

`matrix.verdict` predicts what JACCL does with the whole matrix. These rules report every cell that prevents
the intended topology, in the order: shape, empty and odd cells, devices, then unusual values. A wrong shape
hides all later rules.
"""

import re
from collections.abc import Iterator

from jaccl_kernel.hostfile.hostfile import Cell, Hostfile
from jaccl_kernel.hostfile.matrix import MESH_MAX_RANKS, RING_MAX_WIRES, hamiltonian_cycle, neighbours
from jaccl_kernel.hostfile.problem import Problem, place


def matrix_problems(hostfile: Hostfile, *, ring: bool) -> list[Problem]:
    """Return the problems of a matrix of at least 2 ranks, launched as a mesh or as a ring.

    If JACCL does not form that topology, at least one problem is an error: the cause is an empty cell,
    unequal cells, or a device that is listed twice and so runs out of queue pairs or memory regions.
    """
    if not any(hostfile.rdma):
        return [
            Problem(
                "rdma-missing",
                "error",
                "rdma",
                "No host has an rdma row, but JACCL needs one for each host.",
                "Write each host's devices in host order, null for itself; or use the ring backend.",
            )
        ]
    if shape := list(_shape_problems(hostfile)):
        return shape
    grid = _Grid(hostfile, ring=ring)
    if ring and (disorder := _ring_order(grid)):  # the rules for single cells would report each of its cells
        return [disorder, *_diagonal(grid), *_names(grid)]
    rules = (_diagonal, _empty_cells, _size, _names, _wire_counts, _sharing)
    return [problem for rule in rules for problem in rule(grid)]


class _Grid:
    """A matrix of the right shape: every cell as a tuple of names, and the cells that the topology uses."""

    def __init__(self, hostfile: Hostfile, *, ring: bool) -> None:
        self.hostfile = hostfile
        self.ring = ring
        self.size = len(hostfile)
        self.names = [[_cell_names(cell) for cell in row] for row in hostfile.rdma]

    def at(self, rank: int, column: int | None) -> str:
        """The location of a cell or a row."""
        return place(self.hostfile, rank, "rdma" if column is None else f"rdma[{column}]")

    def host(self, rank: int) -> str:
        """A host's rank and name as text."""
        return place(self.hostfile, rank)

    def peers(self, rank: int) -> list[int]:
        """The ranks to which a rank must connect."""
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
    """Rows of a wrong length, and cells of a wrong type."""
    size = len(hostfile)
    for rank, row in enumerate(hostfile.rdma):
        if len(row) != size:
            yield Problem(
                "rdma-row-length",
                "error",
                place(hostfile, rank, "rdma"),
                f"The row has {len(row)} cells, but there are {size} hosts: mlx.launch refuses the file.",
                "Write one cell per host, in the order of the hosts, null for the host itself.",
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
                "Write null; if the row is shifted by one, move every name to its peer's column.",
            )


def _empty_cells(grid: _Grid) -> Iterator[Problem]:
    """Cells without a device (mlx.launch refuses null but accepts []), and cells with "" (JACCL crashes)."""
    ring_is_complete = not grid.ring and all(
        grid.names[rank][peer] for rank in range(grid.size) for peer in neighbours(rank, grid.size)
    )
    for rank, peer, names in grid.cells():
        if not names:
            back = grid.names[peer][rank]
            reverse = (
                f", although its cell for the reverse direction is {', '.join(back)}" if any(back) else ""
            )
            yield Problem(
                "rdma-cell-empty",
                "error",
                grid.at(rank, peer),
                f"The cell for {grid.host(peer)} has no device{reverse}.",
                "Write the device whose cable connects to that host"
                + ("; or use --backend jaccl-ring, whose cells are all filled." if ring_is_complete else "."),
            )
        elif "" in names:
            yield Problem(
                "rdma-name-empty",
                "error",
                grid.at(rank, peer),
                'JACCL accepts "" as a device name, then crashes.',
                "Write the device, or null if there is no cable.",
            )


def _ring_order(grid: _Grid) -> Problem | None:
    """A ring whose hosts are in another order, or hosts whose cables form no ring, such as a part of one."""
    ranks = range(grid.size)
    joined = {(i, j) for i in ranks for j in ranks if i < j and grid.names[i][j] and grid.names[j][i]}
    gaps = [
        (rank, following)
        for rank in ranks
        for following in [neighbours(rank, grid.size)[1]]
        if not grid.names[rank][following] and not grid.names[following][rank]
    ]
    if not gaps or not joined:
        return None
    first, second = gaps[0]
    text = f"{grid.host(first)} and {grid.host(second)} are neighbours in the ring, but no device joins them"
    order = hamiltonian_cycle(grid.size, joined)
    if order is None:
        return Problem(
            "ring-none",
            "error",
            grid.at(first, second),
            f"{text}: the devices of these {grid.size} hosts form no ring, in any order.",
            "Use all hosts of the ring, or 2 neighbours, or connect these two hosts with a cable. If one "
            "connects them, write its devices into both cells.",
        )
    names = ", ".join(grid.hostfile.hosts[rank].name for rank in order)
    return Problem(
        "ring-order",
        "error",
        grid.at(first, second),
        f"{text}: the order of the hosts is not the order of the ring.",
        f"Reorder the hosts, and the columns of every row, to: {names}.",
    )


def _size(grid: _Grid) -> Iterator[Problem]:
    if not grid.ring and grid.size > MESH_MAX_RANKS:
        yield Problem(
            "mesh-size",
            "error",
            "hosts",
            f"A mesh supports at most {MESH_MAX_RANKS} hosts (got {grid.size}).",
            "Use fewer hosts, or a ring: --backend jaccl-ring.",
        )


def _names(grid: _Grid) -> Iterator[Problem]:
    """Duplicate names in a cell, and names that do not look like a Thunderbolt RDMA device."""
    odd: set[tuple[int, str]] = set()
    for rank, peer, names in grid.cells():
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield Problem(
                "rdma-name-twice",
                "error",
                grid.at(rank, peer),
                f"{twice!r} is listed more than once, but a port has one cable.",
                "List every device once.",
            )
        for name in names:
            if name and not re.fullmatch(r"rdma_en\d+", name) and (rank, name) not in odd:
                odd.add((rank, name))
                yield Problem(
                    "rdma-name",
                    "error",
                    grid.at(rank, peer),
                    f"{name!r} is not a name of a Mac's RDMA device, such as rdma_en3, so JACCL finds none.",
                    "Copy the name from `ibv_devices` on that Mac, or let `jaccl hostfile write` fill it in.",
                )


def _wire_counts(grid: _Grid) -> Iterator[Problem]:
    """The number of names per cell, which must be equal around a ring and at both ends of a pair."""
    if grid.ring:
        yield from _ring_wire_counts(grid)
        return
    counts = {(rank, peer): len(names) for rank, peer, names in grid.cells()}
    several = [cell for cell, count in counts.items() if count > 1]
    if len(set(counts.values())) > 1 and several:
        yield Problem(
            "mesh-extra-names",
            "warning",
            grid.at(*several[0]),
            f"{len(several)} cells of the mesh list several devices, but others list fewer: mlx uses as many "
            f"devices of every cell as the shortest has ({min(counts.values())}; before mlx 0.32.4, one).",
            "No change is needed; equally many cables between all pairs are faster.",
        )
    for rank, peer in several:
        back = len(grid.names[peer][rank])
        if back and back != len(grid.names[rank][peer]) and (rank < peer or back == 1):
            yield Problem(
                "wires-unequal",
                "warning",
                grid.at(rank, peer),
                f"The cell for {grid.host(peer)} has {len(grid.names[rank][peer])} devices, but the cell "
                f"for the reverse direction has {back}.",
                "Write the same number of devices at both ends; the k-th of both cells share a cable.",
            )


def _ring_wire_counts(grid: _Grid) -> Iterator[Problem]:
    wires = len(grid.names[0][1])
    for rank, peer, names in grid.cells():
        if wires and names and len(names) != wires:
            yield Problem(
                "ring-wires-unequal",
                "error",
                grid.at(rank, peer),
                f"The cell for {grid.host(peer)} has {len(names)} devices, but host 0's cell for host 1 "
                f"has {wires}: a ring needs the same number of cables between all neighbours.",
                "Write the same number of devices in every cell between neighbours.",
            )
        elif len(names) > RING_MAX_WIRES:
            yield Problem(
                "ring-wires",
                "error",
                grid.at(rank, peer),
                f"A ring supports at most {RING_MAX_WIRES} wires between two neighbours (got {len(names)}).",
                "Write fewer devices.",
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
            f"A ring uses only the cells between neighbours; {len(ignored)} other cells are ignored.",
            "No change is needed for a ring; a mesh (--backend jaccl) uses all cables.",
        )


def _sharing(grid: _Grid) -> Iterator[Problem]:
    """One device for two peers of a host: in a mesh, JACCL runs out of memory regions and crashes."""
    for rank in range(grid.size):
        owner: dict[str, int] = {}
        for peer in grid.peers(rank):
            names = list(filter(None, dict.fromkeys(grid.names[rank][peer])))
            shared = [name for name in names if owner.setdefault(name, peer) != peer]
            if shared:
                uses = " and ".join(f"{name} already connects to {grid.host(owner[name])}" for name in shared)
                yield Problem(
                    "device-shared",
                    "error",
                    grid.at(rank, peer),
                    f"{uses}, but a port has one cable"
                    + ("." if grid.ring else "; a second peer on a device makes JACCL crash."),
                    f"Write the device whose cable connects to {grid.host(peer)}.",
                )
