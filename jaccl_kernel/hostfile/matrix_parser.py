"""Parses the arguments of `matrix.verdict`: the matrix (as JACCL's parser does), devices and cables. Pure."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TypeGuard

Names = tuple[tuple[tuple[str, ...], ...], ...]
"""A parsed matrix: the device names of each cell, row by row."""


class MatrixError(Exception):
    """JACCL's parser refuses the matrix.

    Args:
        message: JACCL's error message, and the location.
        rank: the row, if the error concerns one.
        column: the cell in that row, if the error concerns one.
    """

    def __init__(self, message: str, rank: int | None = None, column: int | None = None) -> None:
        self.message = message
        self.rank = rank
        self.column = column
        super().__init__(message)


def parse_matrix(rdma: object) -> Names:
    """Parse the matrix as JACCL does, row by row and cell by cell; raises MatrixError at the first error."""
    if not isinstance(rdma, list | tuple):
        raise MatrixError(
            "[jaccl] The device file should start with an array: the matrix is not a list of rows."
        )
    return tuple(_parse_row(row, rank, len(rdma)) for rank, row in enumerate(rdma))


def _parse_row(row: object, rank: int, size: int) -> tuple[tuple[str, ...], ...]:
    if not isinstance(row, list | tuple):
        raise MatrixError(
            f"[jaccl] The device file should have an array of arrays: row {rank} is not a list.", rank
        )
    if len(row) != size:
        raise MatrixError(
            "[jaccl] The device file should contain the connectivity of each rank to all other ranks but "
            f"rank {rank} contains only {len(row)} entries. With {size} ranks, every row needs {size} cells.",
            rank,
        )
    return tuple(_parse_cell(cell, rank, column) for column, cell in enumerate(row))


def _parse_cell(cell: object, rank: int, column: int) -> tuple[str, ...]:
    if cell is None:
        return ()
    if isinstance(cell, str):
        return (cell,)
    if not isinstance(cell, list | tuple):
        raise MatrixError(
            "[jaccl] Device names should be null, a string or array of strings. "
            f"{describe_cell(rank, column)} is of type {_json_type(cell)}.",
            rank,
            column,
        )
    for name in cell:
        if not isinstance(name, str):
            # an exception of nlohmann::json, which JACCL does not catch
            raise MatrixError(
                f"[json.exception.type_error.302] type must be string, but is {_json_type(name)}: "
                f"{describe_cell(rank, column)} is a list with entries that are not names.",
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


def describe_cell(rank: int, column: int) -> str:
    """A cell's name for messages."""
    return f"Rank {rank}'s cell for rank {column}"


def parse_devices(devices: Sequence[Collection[str]] | None, size: int) -> tuple[Collection[str] | None, ...]:
    """The device names of every host; None if all devices exist."""
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


def parse_cables(cables: Iterable[Sequence[str]]) -> frozenset[frozenset[str]]:
    """The cables as sets of their two ends."""
    ends = set()
    for cable in cables:
        if not _is_list(cable) or len(cable) != 2 or not all(map(_is_end, cable)):
            raise ValueError(f'a cable must be a pair like ("0.rdma_en3", "1.rdma_en4") (got {cable!r})')
        ends.add(frozenset(cable))
    return frozenset(ends)


def _is_end(end: object) -> bool:
    return isinstance(end, str) and re.fullmatch(r"\d+\..+", end) is not None
