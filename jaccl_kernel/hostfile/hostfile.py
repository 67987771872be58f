"""The hostfile: the Macs in rank order and how to reach them, in exactly mlx.launch's JSON format.

Reads and writes the file, and selects a subset of ranks. Only the structure is checked
here; `lint.py` and `matrix.py` check what the file means for JACCL. Unknown keys are preserved.
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
from typing import NoReturn, Self, TypeGuard

from jaccl_kernel.core.errors import HostfileError, InputError

Cell = object
"""One cell of the rdma matrix: None, a device name, or a tuple of names. Any other value in a file is
preserved, so that `check` can report its location."""

LOCAL = "127.0.0.1"
"""The only host name that mlx.launch runs locally; it uses ssh for all others, also for `localhost`."""

PLACEHOLDER = "<rank0_lan_ip>"
"""The placeholder for rank 0's address in a template."""

_SHAPE_FIX = (
    'A hostfile is {"backend": "jaccl", "hosts": [{"ssh": …, "ips": […], "rdma": […]}, …]} or only the list '
    "of hosts. `jaccl hostfile new` writes a template."
)


@dataclass(frozen=True)
class Host:
    """One rank's Mac.

    Attributes:
        ssh: the ssh host name; the literal 127.0.0.1 means this machine.
        ips: its addresses. JACCL needs the first one of rank 0 (the coordinator); the ring backend needs one
            of every host.
        rdma: its row of the matrix: `rdma[j]` is its device for rank j. Empty if the file has no row.
        extra: unknown keys, unchanged.
        order: the order of the keys in the file, which `write` preserves.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[Cell, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """The display name: the extra key "name" if present, else the ssh name."""
        name = self.extra.get("name")
        return name if isinstance(name, str) and name else self.ssh

    def to_json(self) -> dict[str, object]:
        """The host as a JSON object of the file."""
        entries = {"ssh": self.ssh, "ips": list(self.ips), "rdma": list(self.rdma), **self.extra}
        return _in_order(entries, self.order, optional=("rdma",))


@dataclass(frozen=True)
class Hostfile:
    """All ranks in order, and the launch settings of the file.

    Attributes:
        hosts: one Host per rank, at least one.
        backend: mlx.launch's backend, or "" if the file has none.
        envs: `KEY=VALUE` entries that mlx.launch exports on every rank.
        extra: unknown top-level keys.
        bare: whether the file is only a list of hosts.
        path: the file that it was read from, if any; ignored by `==`.
        order: the order of the top-level keys in the file, which `write` preserves.
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
        """The matrix as in the file: one row per rank (rows may be short or empty)."""
        return tuple(host.rdma for host in self.hosts)

    @property
    def coordinator(self) -> str | None:
        """The coordinator address, on which rank 0 listens during initialisation: the first of its ips."""
        return self.hosts[0].ips[0] if self.hosts[0].ips else None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            HostfileError: the file cannot be read, is not JSON, or does not have the structure of a hostfile.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise HostfileError(
                f"cannot read the file: {error.strerror or error}",
                where=str(path),
                fix=_read_fix(error, path),
            ) from error
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise HostfileError(
                f"the file is not UTF-8 text (byte {error.start}, line {line})",
                where=str(path),
                fix="Save the file as plain UTF-8 text.",
            ) from error
        return cls.loads(text, path)

    @classmethod
    def loads(cls, text: str, path: Path | None = None) -> Self:
        """Parse the text of a hostfile; `path` is only stored and used in errors.

        Raises:
            HostfileError: with line and column for invalid JSON, with the host's number and key for a wrong
                structure.
        """
        where = str(path) if path else "hostfile"
        data = _parse_json(text, where)
        _check_characters(data, text, where)
        if _is_device_file(data):
            raise HostfileError(
                "this is JACCL's device file, the rdma matrix alone (MLX_IBV_DEVICES; exo writes it as "
                f"hosts_….json), not a hostfile: it has no hosts and no addresses for its {len(data)} ranks",
                where=where,
                fix=f"Convert it: jaccl hostfile new --hosts A,B,… --devices {path or 'FILE'} -o hosts.json",
            )
        if isinstance(data, list):
            return cls(_hosts(data, where), bare=True, path=path)
        if not isinstance(data, dict):
            _invalid(f"the top level must be an object or a list of hosts (got {_kind(data)})", where)
        if "hosts" not in data:
            _invalid('the key "hosts" is missing', where)
        backend, envs = data.get("backend"), data.get("envs", [])
        if backend is None:  # mlx.launch treats null like ""
            backend = ""
        if not isinstance(backend, str):
            _invalid(f'"backend" must be text (got {_kind(backend)})', where)
        return cls(
            _hosts(data["hosts"], where),
            backend,
            _strings(envs, "envs", where),
            _without(data, "backend", "envs", "hosts"),
            path=path,
            order=tuple(data),
        )

    def to_json(self) -> dict[str, object]:
        """The file as a JSON object, also for a bare list."""
        hosts = [host.to_json() for host in self.hosts]
        entries = {"backend": self.backend, "envs": list(self.envs), "hosts": hosts, **self.extra}
        return _in_order(entries, self.order, optional=("backend", "envs"))

    def dumps(self) -> str:
        """The text of the file, with one host per line, so that the matrix is readable."""
        # ASCII only: mlx.launch opens the file with its locale's encoding
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
        """Write the file atomically: a reader sees either the old or the new content.

        Raises:
            HostfileError: the file cannot be written.
        """
        target = Path(path).resolve()  # keep a symlink and replace its target
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
                f"cannot write the file: {error.strerror or error}",
                where=str(path),
                fix="Choose a file in an existing, writable folder.",
            ) from error

    def subset(self, ranks: Sequence[int]) -> Self:
        """The hostfile of these ranks only, in this order, with the matching columns of the matrix.

        Raises:
            InputError: no rank, a duplicate rank, or a rank that the file does not have.
            HostfileError: a row of the matrix does not have one cell per host.
        """
        chosen = tuple(ranks)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(len(self))):
            raise InputError(
                f"invalid ranks: {', '.join(map(str, chosen)) or '(none)'}",
                where=str(self.path or "hostfile"),
                fix=f"Choose one or more of 0 to {len(self) - 1}, each once.",
            )
        hosts = []
        for rank in chosen:
            row = self.hosts[rank].rdma
            if row and len(row) != len(self):
                raise HostfileError(
                    f"the rdma row has {len(row)} cells, but the hostfile has {len(self)} hosts",
                    where=f"{self.path or 'hostfile'}: hosts[{rank}]",
                    fix="Write one cell per host, in the order of the hosts.",
                )
            hosts.append(replace(self.hosts[rank], rdma=tuple(row[peer] for peer in chosen) if row else ()))
        return replace(self, hosts=tuple(hosts), path=None)

    def digest(self) -> str:
        """The SHA-256 (hex) of the content, independent of layout, key order and empty optional keys."""
        bare = replace(self, order=(), hosts=tuple(replace(host, order=()) for host in self.hosts))
        canonical = json.dumps(bare.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def read_device_file(path: Path) -> tuple[tuple[Cell, ...], ...]:
    """The rdma matrix of a JACCL device file (MLX_IBV_DEVICES), which exo writes too, with an empty diagonal.

    Raises:
        HostfileError: the file cannot be read, or is not a square matrix.
    """
    try:
        rows = _parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise HostfileError(f"cannot read the device file: {error}", where=str(path)) from error
    if not _is_device_file(rows) or any(len(row) != len(rows) for row in rows):
        _invalid("the file is not a square matrix of device names", str(path))
    return tuple(
        tuple(
            None if i == j else tuple(cell) if isinstance(cell, list) else cell for j, cell in enumerate(row)
        )
        for i, row in enumerate(rows)
    )


def is_ssh_name(name: str) -> bool:
    """Whether ssh accepts it as a destination: not empty, no spaces, not an option."""
    return bool(name) and name.isprintable() and " " not in name and not name.startswith("-")


def ssh_host(name: str) -> str:
    """The host of an ssh name in a form for comparison: lower case, without user and final dot."""
    return name.rpartition("@")[2].casefold().rstrip(".")


def _in_order(
    entries: Mapping[str, object], order: Sequence[str], optional: Sequence[str]
) -> dict[str, object]:
    """The entries in the order of the file, new ones last, without new empty optional ones."""
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
                f"the file starts with a byte order mark ({at}), which mlx.launch does not accept",
                where=where,
                fix="Save the file as UTF-8 without BOM.",
            ) from error
        lines = text.splitlines()
        shown = lines[error.lineno - 1].strip()[:60] if error.lineno <= len(lines) else ""
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        raise HostfileError(
            f"invalid JSON: {reason} at {at}" + (f": {shown}" if shown else ""),
            where=where,
            fix="Check this and the previous line for a missing or extra comma, an open quote or bracket, "
            "or a comment (JSON has no comments).",
        ) from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; deep nesting
        raise HostfileError(f"cannot parse the JSON: {error}", where=where, fix=_SHAPE_FIX) from error


def _check_characters(data: object, text: str, where: str) -> None:
    """Refuse unpaired surrogates, which terminals, logs and ssh cannot encode."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        escape = f"\\u{ord(error.object[error.start]):04x}"
        line = text[: max(0, text.lower().find(escape))].count("\n") + 1
        raise HostfileError(
            f"unpaired surrogate {escape} at line {line}",
            where=where,
            fix="Write the character itself, or both surrogates of its escape sequence.",
        ) from error


def _is_device_file(data: object) -> TypeGuard[list[list[object]]]:
    """Whether it is a list of rows, as JACCL's device file."""
    return isinstance(data, list) and bool(data) and all(isinstance(row, list) for row in data)


def _hosts(data: object, where: str) -> tuple[Host, ...]:
    if not isinstance(data, list):
        _invalid(f'"hosts" must be a list (got {_kind(data)})', where)
    if not data:
        _invalid("the list of hosts is empty", where)
    return tuple(_host(entry, f"{where}: hosts[{rank}]") for rank, entry in enumerate(data))


def _host(entry: object, where: str) -> Host:
    if not isinstance(entry, dict):
        _invalid(f"a host must be an object (got {_kind(entry)})", where)
    # mlx.launch accepts null in keys that its backend does not use
    ssh, ips, rdma = entry.get("ssh"), _or_empty(entry.get("ips")), _or_empty(entry.get("rdma"))
    if not isinstance(ssh, str):
        _invalid(f'"ssh" must be text (got {_kind(ssh)})' if "ssh" in entry else '"ssh" is missing', where)
    if not isinstance(rdma, list):
        _invalid(f'"rdma" must be a list of cells (got {_kind(rdma)})', where)
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
        _invalid(f'"{key}" must be a list (got {_kind(data)})', where)
    for position, entry in enumerate(data):
        if not isinstance(entry, str):
            _invalid(f"{key}[{position}] must be text (got {_kind(entry)})", where)
    return tuple(data)


def _invalid(what: str, where: str) -> NoReturn:
    raise HostfileError(what, where=where, fix=_SHAPE_FIX)


def _kind(value: object) -> str:
    """The type of a JSON value, with its article."""
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
        return "Pass the path of the hostfile, not of its folder."
    if isinstance(error, FileNotFoundError):
        return f"Check the path, or write a new one: jaccl hostfile new --hosts a,b -o {path}"
    return "Check the path and the file's permissions."
