"""The hostfile: which Macs, in which rank order, reached how. mlx.launch's own JSON format, to the letter.

Reads, writes, cuts down to a subset of ranks, and makes a template. What a file means for JACCL is judged in
`check.py` and `matrix.py`; here a file is only asked to have the format's shape. Keys that neither mlx.launch
nor we know are kept.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn, Self

from jaccl_kernel.cluster.matrix import MESH_MAX_RANKS
from jaccl_kernel.errors import HostfileError, InputError

Cell = object
"""One cell of the rdma matrix: None, a device name, or a tuple of names. A file may hold anything else too:
reading keeps it, so that `check` can say where it stands."""

LOCAL = "127.0.0.1"
"""The one name that mlx.launch runs on this machine; it goes to all others by ssh, `localhost` too."""

PLACEHOLDER = "<rank0_lan_ip>"
"""What a template has in the place of rank 0's address."""

_SHAPE_FIX = (
    'A hostfile is {"backend": "jaccl", "hosts": [{"ssh": …, "ips": […], "rdma": […]}, …]} or the bare list '
    "of hosts; `jaccl hostfile new` writes one to edit."
)


@dataclass(frozen=True)
class Host:
    """One rank's Mac.

    Attributes:
        ssh: the name that ssh takes; the literal 127.0.0.1 means this machine.
        ips: its addresses. JACCL needs the first of rank 0 (the coordinator), the TCP ring one of every host.
        rdma: its row of the matrix: `rdma[j]` is what it uses to reach rank j. Empty if the file has none.
        extra: keys that the format does not know, as they were.
        order: the keys as they stood in the file; writing keeps it.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[Cell, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """What to call it: its extra key "name" if it has one, else the ssh name."""
        name = self.extra.get("name")
        return name if isinstance(name, str) and name else self.ssh

    def to_json(self) -> dict[str, object]:
        """The host as the file holds it."""
        entries = {"ssh": self.ssh, "ips": list(self.ips), "rdma": list(self.rdma), **self.extra}
        return _in_order(entries, self.order, optional=("rdma",))


@dataclass(frozen=True)
class Hostfile:
    """All ranks in order, and what the file says about the launch.

    Attributes:
        hosts: one Host per rank, at least one.
        backend: mlx.launch's backend, or "" if the file names none.
        envs: `KEY=VALUE` entries that mlx.launch exports on every rank.
        extra: top-level keys that the format does not know.
        bare: whether the file is a bare list of hosts.
        path: the file that it was read from, if any; no part of equality.
        order: the top-level keys as they stood in the file; writing keeps it.
    """

    hosts: tuple[Host, ...]
    backend: str = ""
    envs: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    bare: bool = False
    path: Path | None = field(default=None, compare=False)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.hosts)

    @property
    def rdma(self) -> tuple[tuple[Cell, ...], ...]:
        """The matrix: one row per rank, as the file has it (rows may be short, or empty)."""
        return tuple(host.rdma for host in self.hosts)

    @property
    def coordinator(self) -> str | None:
        """The address that rank 0 listens on while the ranks meet: the first of its ips."""
        return self.hosts[0].ips[0] if self.hosts[0].ips else None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            HostfileError: it cannot be read, is not JSON, or has not the shape of a hostfile.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise HostfileError(
                f"cannot be read: {error.strerror or error}", where=str(path), fix=_read_fix(error, path)
            ) from error
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise HostfileError(
                f"is not UTF-8 text (byte {error.start}, line {line})",
                where=str(path),
                fix="Save it as plain UTF-8 text.",
            ) from error
        return cls.loads(text, path)

    @classmethod
    def loads(cls, text: str, path: Path | None = None) -> Self:
        """Parse the text of a hostfile; `path` is only named in errors and kept.

        Raises:
            HostfileError: with line and column where it is not JSON, with the host's number and key where the
                shape is wrong.
        """
        where = str(path) if path else "hostfile"
        data = _parse_json(text, where)
        _check_characters(data, text, where)
        if isinstance(data, list):
            return cls(_hosts(data, where), bare=True, path=path)
        if not isinstance(data, dict):
            _misshapen(f"holds {_kind(data)} where an object or a list of hosts should be", where)
        if "hosts" not in data:
            _misshapen('has no "hosts"', where)
        backend, envs = data.get("backend"), data.get("envs", [])
        if backend is None:  # mlx.launch then chooses itself, as for ""
            backend = ""
        if not isinstance(backend, str):
            _misshapen(f'"backend" is {_kind(backend)}, not a name', where)
        return cls(
            _hosts(data["hosts"], where),
            backend,
            _strings(envs, "envs", where),
            _without(data, "backend", "envs", "hosts"),
            path=path,
            order=tuple(data),
        )

    def to_json(self) -> dict[str, object]:
        """The object form of the file, also of a bare one."""
        hosts = [host.to_json() for host in self.hosts]
        entries = {"backend": self.backend, "envs": list(self.envs), "hosts": hosts, **self.extra}
        return _in_order(entries, self.order, optional=("backend", "envs"))

    def dumps(self) -> str:
        """The text of the file, one host per line so that the matrix can be read as one."""
        # ASCII only: mlx.launch opens the file in whatever encoding its locale has
        hosts = ",\n".join(f"    {json.dumps(host.to_json())}" for host in self.hosts)
        entries = self.to_json()
        if self.bare and entries.keys() == {"hosts"}:
            return f"[\n{hosts}\n]\n"
        lines = [
            f"  {json.dumps(key)}: " + (f"[\n{hosts}\n  ]" if key == "hosts" else json.dumps(value))
            for key, value in entries.items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all: a reader sees the old one or the new one.

        Raises:
            HostfileError: it cannot be written there.
        """
        target = Path(path).resolve()  # a symlink stays one; what it points to is replaced
        scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            try:
                with scratch.open("x", encoding="utf-8") as stream:
                    stream.write(self.dumps())
                    stream.flush()
                    os.fsync(stream.fileno())
                with contextlib.suppress(FileNotFoundError):
                    shutil.copymode(target, scratch)
                scratch.replace(target)
            except BaseException:
                scratch.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise HostfileError(
                f"cannot be written: {error.strerror or error}",
                where=str(path),
                fix="Choose a file in a folder that exists and that you may write to.",
            ) from error

    def subset(self, ranks: Sequence[int]) -> Self:
        """The hostfile of these ranks alone, in this order, with the matching columns of the matrix.

        Raises:
            InputError: no rank, a rank twice, or one that the file does not have.
            HostfileError: a row of the matrix has not one cell per host, so that its columns have no meaning.
        """
        chosen = tuple(ranks)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(len(self))):
            raise InputError(
                f"ranks {', '.join(map(str, chosen)) or '(none)'} are no choice of this hostfile's hosts",
                where=str(self.path or "hostfile"),
                fix=f"Name one or more of 0 to {len(self) - 1}, each once.",
            )
        hosts = []
        for rank in chosen:
            row = self.hosts[rank].rdma
            if row and len(row) != len(self):
                raise HostfileError(
                    f"its rdma row has {len(row)} cells for {len(self)} hosts",
                    where=f"{self.path or 'hostfile'}: hosts[{rank}]",
                    fix="Give every host one cell per host, in the order of the file.",
                )
            hosts.append(replace(self.hosts[rank], rdma=tuple(row[peer] for peer in chosen) if row else ()))
        return replace(self, hosts=tuple(hosts), path=None)

    def digest(self) -> str:
        """The SHA-256 (hex) of the content; layout, the order of keys, and empty or absent do not count."""
        bare = replace(self, order=(), hosts=tuple(replace(host, order=()) for host in self.hosts))
        canonical = json.dumps(bare.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def template(names: Sequence[str]) -> Hostfile:
    """A JACCL hostfile to edit, for these ssh names in rank order.

    Rank 0's address is a placeholder that `check` refuses. The matrix is a full mesh and a guess: every Mac
    reaches its peers, in rank order, by rdma_en2, rdma_en3 and so on. Compare it with the cabling, cell by
    cell: the devices' numbers follow neither the ports' nor the order in which cables were plugged.

    Raises:
        InputError: no name, more than a mesh takes, an empty name, or one twice (127.0.0.1 may repeat).
    """
    if not 1 <= len(names) <= MESH_MAX_RANKS:
        raise InputError(
            f"{len(names)} hosts do not make a mesh", fix=f"Name 1 to {MESH_MAX_RANKS} hosts, in rank order."
        )
    for rank, name in enumerate(names):
        if not is_ssh_name(name):
            raise InputError(
                f"host {rank} has no usable name: {name!r}",
                fix="Write names that ssh takes, without spaces: macstudio1.local,macstudio2.local",
            )
        if name != LOCAL and ssh_host(name) in map(ssh_host, names[:rank]):
            raise InputError(f"{name} is named twice", fix="Name every Mac once: it is one rank.")
    size = len(names)
    hosts = []
    for rank, name in enumerate(names):
        devices = iter(f"rdma_en{number}" for number in range(2, size + 1))
        row = tuple(None if peer == rank else next(devices) for peer in range(size))
        hosts.append(Host(name, (PLACEHOLDER,) if rank == 0 and size > 1 else (), row if size > 1 else ()))
    return Hostfile(tuple(hosts), backend="jaccl" if size > 1 else "")


def is_ssh_name(name: str) -> bool:
    """Whether ssh can take it as a destination: something, without spaces, and no option."""
    return bool(name) and name.isprintable() and " " not in name and not name.startswith("-")


def ssh_host(name: str) -> str:
    """The machine that an ssh name means, for comparison: without user, case and final dot."""
    return name.rpartition("@")[2].casefold().rstrip(".")


def _in_order(
    entries: Mapping[str, object], order: Sequence[str], optional: Sequence[str]
) -> dict[str, object]:
    """The entries in the order of the file, new ones last, without empty ones that the file did not have."""
    kept = {key for key, value in entries.items() if value or key in order or key not in optional}
    return {key: entries[key] for key in (*order, *entries) if key in kept}


def _without(data: Mapping[str, object], *known: str) -> dict[str, object]:
    return {key: value for key, value in data.items() if key not in known}


def _parse_json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        if text.startswith("\ufeff"):
            raise HostfileError(
                f"starts with a byte order mark ({at}), which mlx.launch does not read",
                where=where,
                fix="Save it as UTF-8 without BOM.",
            ) from error
        lines = text.splitlines()
        shown = lines[error.lineno - 1].strip()[:60] if error.lineno <= len(lines) else ""
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        raise HostfileError(
            f"is not JSON: {reason} at {at}" + (f": {shown}" if shown else ""),
            where=where,
            fix="Look there and just before: a comma too many or missing, a quote or a bracket left open, "
            "a comment (JSON has none).",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise HostfileError(f"is not JSON that can be read: {error}", where=where, fix=_SHAPE_FIX) from error


def _check_characters(data: object, text: str, where: str) -> None:
    """Refuse half a character, as only an escape can leave it: no terminal, log or ssh could take it."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        escape = f"\\u{ord(error.object[error.start]):04x}"
        line = text[: max(0, text.lower().find(escape))].count("\n") + 1
        raise HostfileError(
            f"holds half a character, {escape}, at line {line}",
            where=where,
            fix="Write the character itself, or both halves of its escape.",
        ) from error


def _hosts(data: object, where: str) -> tuple[Host, ...]:
    if not isinstance(data, list):
        _misshapen(f'"hosts" is {_kind(data)}, not a list', where)
    if not data:
        _misshapen("has no hosts", where)
    return tuple(_host(entry, f"{where}: hosts[{rank}]") for rank, entry in enumerate(data))


def _host(entry: object, where: str) -> Host:
    if not isinstance(entry, dict):
        _misshapen(f"is {_kind(entry)}, not an object", where)
    # mlx.launch does not mind a null in what its backend does not look at
    ssh, ips, rdma = entry.get("ssh"), _or_empty(entry.get("ips")), _or_empty(entry.get("rdma"))
    if not isinstance(ssh, str):
        _misshapen(f'"ssh" is {_kind(ssh)}, not a name' if "ssh" in entry else 'has no "ssh"', where)
    if not isinstance(rdma, list):
        _misshapen(f'"rdma" is {_kind(rdma)}, not a list of cells', where)
    return Host(
        ssh,
        _strings(ips, "ips", where),
        tuple(tuple(cell) if isinstance(cell, list) else cell for cell in rdma),
        _without(entry, "ssh", "ips", "rdma"),
        tuple(entry),
    )


def _or_empty(value: object) -> object:
    return [] if value is None else value


def _strings(data: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(data, list):
        _misshapen(f"{key} is {_kind(data)}, not a list", where)
    for position, entry in enumerate(data):
        if not isinstance(entry, str):
            _misshapen(f"{key}[{position}] is {_kind(entry)}, not text", where)
    return tuple(data)


def _misshapen(what: str, where: str) -> NoReturn:
    raise HostfileError(what, where=where, fix=_SHAPE_FIX)


def _kind(value: object) -> str:
    """What a JSON value is, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def _read_fix(error: OSError, path: Path) -> str:
    if isinstance(error, IsADirectoryError):
        return "Name the hostfile itself, not its folder."
    if isinstance(error, FileNotFoundError):
        return f"Check the path, or write a new one: jaccl hostfile new --hosts a,b -o {path}"
    return "Check the path, and that you may read the file."
