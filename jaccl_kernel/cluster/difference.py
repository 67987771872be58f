"""What changes from one hostfile to the next: in words for people, and as the lines of a diff; pure."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from jaccl_kernel.cluster.hostfile import Cell, Hostfile
from jaccl_kernel.cluster.problem import place


@dataclass(frozen=True)
class Difference:
    """`words` is one sentence a change, `lines` a unified diff of the files' text; both empty if equal."""

    words: tuple[str, ...]
    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.words)


def difference(old: Hostfile | None, new: Hostfile) -> Difference:
    """What is new in `new`; all of it when there is no old one."""
    before = old.dumps() if old else ""
    lines = difflib.unified_diff(
        before.splitlines(), new.dumps().splitlines(), "the hostfile as it is", "the new one", lineterm=""
    )
    words = tuple(_changes(old, new)) if old else (f"A new hostfile of {len(new)} hosts: {_names(new)}.",)
    if not words and old != new:  # something that we have no words for
        words = ("Other entries change: see the lines.",)
    return Difference(words, tuple(lines) if words else ())


def _changes(old: Hostfile, new: Hostfile) -> Iterator[str]:
    if old.backend != new.backend:
        yield f"The backend becomes {new.backend or 'unnamed'} (was {old.backend or 'unnamed'})."
    keys_old, keys_new = _keys(old), _keys(new)
    if keys_old != keys_new:
        yield f"The hosts, in rank order, become {_names(new)} (were {_names(old)})."
    if old.coordinator != new.coordinator:
        was, becomes = old.coordinator or "no address", new.coordinator or "no address"
        yield f"{place(new, 0, 'ips[0]')}: the ranks meet at {becomes} instead of {was}."
    kept = {key: keys_old.index(key) for key in keys_new if key in keys_old}
    for rank, key in enumerate(keys_new):
        if key not in kept:
            continue
        if rank and old.hosts[kept[key]].ips != new.hosts[rank].ips:
            yield f"{place(new, rank, 'ips')}: becomes {', '.join(new.hosts[rank].ips) or 'empty'}."
        if old.hosts[kept[key]].extra != new.hosts[rank].extra:
            yield f"{place(new, rank)}: entries that mlx.launch does not read change."
        for peer, other in enumerate(keys_new):
            if other in kept and peer != rank:
                yield from _cell_change(old, new, (kept[key], kept[other]), (rank, peer))
    if old.envs != new.envs:
        yield f"envs become {', '.join(new.envs) or 'empty'} (were {', '.join(old.envs) or 'empty'})."
    if old.extra != new.extra:
        yield "Top-level entries that mlx.launch does not read change."


def _cell_change(
    old: Hostfile, new: Hostfile, at_old: tuple[int, int], at_new: tuple[int, int]
) -> Iterator[str]:
    before, after = _cell(old, *at_old), _cell(new, *at_new)
    if before != after:
        where = place(new, at_new[0], f"rdma[{at_new[1]}]")
        yield f"{where}, towards {new.hosts[at_new[1]].name}: {_shown(before)} becomes {_shown(after)}."


def _keys(hostfile: Hostfile) -> list[tuple[str, str]]:
    return [(host.ssh, host.name) for host in hostfile.hosts]


def _names(hostfile: Hostfile) -> str:
    return ", ".join(host.name for host in hostfile.hosts)


def _cell(hostfile: Hostfile, rank: int, peer: int) -> tuple[object, ...]:
    """A cell as the names in it: "x" and ["x"] mean the same."""
    row = hostfile.hosts[rank].rdma
    cell: Cell = row[peer] if peer < len(row) else None
    if cell is None:
        return ()
    return cell if isinstance(cell, tuple) else (cell,)


def _shown(cell: tuple[object, ...]) -> str:
    return ", ".join(map(str, cell)) or "nothing"
