"""The difference between two hostfiles, as sentences and as the lines of a diff. Pure."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from jaccl_kernel.hostfile.hostfile import Cell, Hostfile
from jaccl_kernel.hostfile.problem import place


@dataclass(frozen=True)
class Difference:
    """`sentences` has one sentence per change, `lines` is a unified diff; both are empty without a change."""

    sentences: tuple[str, ...]
    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.sentences)


def difference(old: Hostfile | None, new: Hostfile) -> Difference:
    """The changes from `old` to `new`; `old` is None if there is no file yet."""
    before = old.dumps() if old else ""
    lines = difflib.unified_diff(
        before.splitlines(), new.dumps().splitlines(), "current hostfile", "new hostfile", lineterm=""
    )
    sentences = tuple(_changes(old, new)) if old else (f"New hostfile with {len(new)} hosts: {_names(new)}.",)
    if not sentences and old != new:
        sentences = ("Other entries change; see the diff.",)
    return Difference(sentences, tuple(lines) if sentences else ())


def _changes(old: Hostfile, new: Hostfile) -> Iterator[str]:
    if old.backend != new.backend:
        yield f"Backend: set to {new.backend or 'none'} (was {old.backend or 'none'})."
    keys_old, keys_new = _keys(old), _keys(new)
    if keys_old != keys_new:
        yield f"Hosts in rank order: {_names(new)} (were {_names(old)})."
    if old.coordinator != new.coordinator:
        before, after = old.coordinator or "none", new.coordinator or "none"
        yield f"Coordinator address: set to {after} (was {before})."
    kept = {key: keys_old.index(key) for key in keys_new if key in keys_old}
    for rank, key in enumerate(keys_new):
        if key not in kept:
            continue
        if rank and old.hosts[kept[key]].ips != new.hosts[rank].ips:
            yield f"{place(new, rank, 'ips')}: set to {', '.join(new.hosts[rank].ips) or 'none'}."
        if old.hosts[kept[key]].extra != new.hosts[rank].extra:
            yield f"{place(new, rank)}: entries that mlx.launch ignores change."
        for peer, other in enumerate(keys_new):
            if other in kept and peer != rank:
                yield from _cell_change(old, new, (kept[key], kept[other]), (rank, peer))
    if old.envs != new.envs:
        yield f"envs: set to {', '.join(new.envs) or 'none'} (were {', '.join(old.envs) or 'none'})."
    if old.extra != new.extra:
        yield "Top-level entries that mlx.launch ignores change."


def _cell_change(
    old: Hostfile, new: Hostfile, at_old: tuple[int, int], at_new: tuple[int, int]
) -> Iterator[str]:
    before, after = _cell(old, *at_old), _cell(new, *at_new)
    if before != after:
        rank, peer = (new.hosts[number].name for number in at_new)
        was = f" (was {', '.join(map(str, before))})" if before else ""
        becomes = f"set to {', '.join(map(str, after))}" if after else "cleared"
        yield f"{rank} → {peer}: {becomes}{was}."


def _keys(hostfile: Hostfile) -> list[tuple[str, str]]:
    return [(host.ssh, host.name) for host in hostfile.hosts]


def _names(hostfile: Hostfile) -> str:
    return ", ".join(host.name for host in hostfile.hosts)


def _cell(hostfile: Hostfile, rank: int, peer: int) -> tuple[object, ...]:
    """The device names of a cell: "x" and ["x"] are equal."""
    row = hostfile.hosts[rank].rdma
    cell: Cell = row[peer] if peer < len(row) else None
    if cell is None:
        return ()
    return cell if isinstance(cell, tuple) else (cell,)
