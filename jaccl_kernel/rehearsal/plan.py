"""A rehearsal in its hostfile: its Macs, its faults, and the equivalent hostfile of real Macs.

mlx.launch runs only 127.0.0.1 locally, so every host of a rehearsal has that address, a `name`, and the ring
backend. The values for real Macs are in extra keys: `lan` has a host's addresses, and the top-level key
`rehearsal` has the rest. This module does not access the Macs' home folders.
"""

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata

from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.hostfile.hostfile import LOCAL, Host, Hostfile
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import MAX_MACS, ClusterSpec

KEY = "rehearsal"
LAN = "lan"
NOTE = "REHEARSAL: simulated Macs on one machine. It proves nothing about RDMA."
STALE = "stale-coordinator"
"""The only fault of the hostfile itself: a new hostfile fixes it."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")  # also the name of a folder


@dataclass(frozen=True)
class RehearsalPlan:
    """A rehearsal: the names of its Macs, in the order in which faults number them, and its faults.

    `backend` is the backend of the real Macs: "jaccl", "jaccl-ring", or "" while there is no matrix.
    """

    macs: tuple[str, ...]
    faults: tuple[str, ...] = ()
    backend: str = ""

    @classmethod
    def of(cls, hostfile: Hostfile) -> "RehearsalPlan":
        """Read the rehearsal from a hostfile.

        Raises:
            HostfileError: the hostfile is not a rehearsal, or its Macs have invalid names.
        """
        where = str(hostfile.path or "hostfile")
        if not is_rehearsal(hostfile):
            raise HostfileError(
                "not the hostfile of a rehearsal",
                where=where,
                fix="Run `jaccl rehearse` to write a hostfile of simulated Macs.",
            )
        names = [host.name for host in hostfile.hosts]
        entry = hostfile.extra[KEY]
        if not isinstance(entry, Mapping):  # only a note: the Macs are the hosts
            entry = {}
        macs = _strings(entry.get("macs", names), "macs", where)
        faults = _strings(entry.get("faults", []), "faults", where)
        for name in (*macs, *names):
            if not _NAME.fullmatch(name) or macs.count(name) != 1 or names.count(name) > 1:
                raise HostfileError(
                    f"unknown, invalid or duplicate name of a simulated Mac: {name!r}",
                    where=where,
                    fix=f'Give each host a unique "name" from "{KEY}"."macs": letters, digits and -.',
                )
        backend = entry.get("backend", "")
        return cls(macs, faults, backend if isinstance(backend, str) else "")

    def spec(self) -> ClusterSpec:
        """The cluster description: healthy Macs with this machine's Python versions, and the faults.

        Raises:
            InputError: there are too many Macs, or a fault is invalid.
        """
        spec = ClusterSpec.healthy(len(self.macs), self.macs)
        for node in range(len(self.macs)):
            spec = spec.with_mac(node, **local_versions())
        return with_faults(spec, self.faults)

    def to_json(self) -> dict[str, object]:
        """The value of the key `rehearsal`."""
        entry: dict[str, object] = {"note": NOTE, "macs": list(self.macs), "faults": list(self.faults)}
        return entry | ({"backend": self.backend} if self.backend else {})


def is_rehearsal(hostfile: Hostfile) -> bool:
    """Whether a hostfile describes simulated Macs."""
    return KEY in hostfile.extra


def make_hostfile(count: int = 4, faults: Iterable[str] = ()) -> Hostfile:
    """Create the hostfile of a rehearsal with `count` simulated Macs (1 to 8), without a matrix.

    Raises:
        InputError: an invalid number of Macs, or an invalid fault.
    """
    if not 1 <= count <= MAX_MACS:
        raise InputError(
            f"a rehearsal needs 1 to {MAX_MACS} Macs (got {count})", fix="Choose another number."
        )
    names = tuple(f"mac{number}" for number in range(1, count + 1))
    hosts = tuple(Host(ssh=LOCAL, ips=(LOCAL,), extra={"name": name}) for name in names)
    extra = {KEY: RehearsalPlan(names).to_json()}
    made = Hostfile(hosts, backend="ring", extra=extra, order=("backend", KEY, "hosts"))
    return with_changes(made, add=faults)


def with_changes(hostfile: Hostfile, *, add: Iterable[str] = (), fix: Iterable[str] = ()) -> Hostfile:
    """Remove and add faults of a rehearsal; its matrix does not change.

    Raises:
        HostfileError: the hostfile is not a rehearsal.
        InputError: a fault is invalid, or a fault to fix does not exist.
    """
    plan = RehearsalPlan.of(hostfile)
    faults = list(plan.faults)
    for fault in fix:
        if fault not in faults:
            known = f"Its faults are {', '.join(faults)}." if faults else "It has no faults."
            raise InputError("the rehearsal does not have this fault", where=f"fault {fault!r}", fix=known)
        faults.remove(fault)
    faults += [fault for fault in map(str.strip, add) if fault not in faults]
    changed = replace(plan, faults=tuple(faults))
    spec = changed.spec()  # raises for invalid faults
    hosts = hostfile.hosts
    if (STALE in plan.faults) != (STALE in faults):
        hosts = (replace(hosts[0], extra={**hosts[0].extra, LAN: [spec.coordinator]}), *hosts[1:])
    return replace(hostfile, hosts=hosts, extra={**hostfile.extra, KEY: changed.to_json()})


def as_if_real(hostfile: Hostfile) -> Hostfile:
    """Convert a rehearsal's hostfile to that of the equivalent real Macs: names, addresses and JACCL backend.

    The result cannot run here; it is for checks of the coordinator, the matrix and the backend against the
    Macs.

    Raises:
        HostfileError: the hostfile is not a rehearsal.
    """
    plan = RehearsalPlan.of(hostfile)
    where = str(hostfile.path or "hostfile")
    hosts = tuple(
        replace(
            host,
            ssh=host.name,
            ips=_strings(host.extra.get(LAN, []), LAN, where),
            extra={key: value for key, value in host.extra.items() if key not in ("name", LAN)},
            order=(),
        )
        for host in hostfile.hosts
    )
    extra = {key: value for key, value in hostfile.extra.items() if key != KEY}
    backend = plan.backend or ("jaccl" if any(host.rdma for host in hosts) else "")
    return replace(hostfile, hosts=hosts, backend=backend, extra=extra, order=())


def runnable(real: Hostfile, rehearsal: Hostfile) -> Hostfile:
    """The inverse of `as_if_real`: convert a hostfile for these Macs to one that runs here, over ring.

    Args:
        real: names of simulated Macs (all or some of them, in any order), addresses and matrix.
        rehearsal: the hostfile that describes these Macs. A stale coordinator is fixed in the result.

    Raises:
        HostfileError: `rehearsal` is not a rehearsal, or `real` has an unknown host.
    """
    plan = RehearsalPlan.of(rehearsal)
    hosts = tuple(
        replace(
            host,
            ssh=LOCAL,
            ips=(LOCAL,),
            extra={**host.extra, "name": host.name, LAN: list(host.ips)},
            order=(),
        )
        for host in real.hosts
    )
    faults = tuple(fault for fault in plan.faults if fault != STALE)
    entry = replace(plan, faults=faults, backend=real.backend).to_json()
    extra, order = {**real.extra, KEY: entry}, ("backend", KEY, "hosts")
    made = replace(real, hosts=hosts, backend="ring", extra=extra, order=order)
    RehearsalPlan.of(made)  # raises for unknown hosts
    return made


@cache
def local_versions() -> dict[str, str]:
    """The versions of Python and packages on this machine, by the attributes of `MacSpec`."""
    found = {"python": platform.python_version()}
    for package in ("mlx", "mlx-lm", "transformers", "jaccl-kernel"):
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:  # the package runs without being installed
            continue
    return found


def _strings(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise HostfileError(f'"{key}" of a rehearsal must be a list of strings', where=where)
    return tuple(value)
