"""A rehearsal as its hostfile holds it: which Macs, with which faults, and how real Macs would stand there.

mlx.launch runs only 127.0.0.1 locally, so every host of a rehearsal is called that, has a `name`, and runs
over the ring backend. What a hostfile of real Macs would have in their place is kept beside it: `lan` holds a
host's own addresses, and the top-level key `rehearsal` the rest. Nothing here touches the Macs' homes.
"""

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata

from jaccl_kernel.cluster.hostfile import LOCAL, Host, Hostfile
from jaccl_kernel.errors import HostfileError, InputError
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import MOST_MACS, ClusterSpec

KEY = "rehearsal"
LAN = "lan"
NOTE = "REHEARSAL: simulated Macs on one machine. It proves nothing about RDMA."
STALE = "stale-coordinator"
"""The one fault that is the hostfile's own: a new hostfile cures it."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")  # it becomes the name of a folder


@dataclass(frozen=True)
class Plan:
    """A rehearsal: the names of all its Macs, in the order in which faults count them, and its faults.

    `backend` is what real Macs would run on: "jaccl", "jaccl-ring", or "" while no matrix was made.
    """

    macs: tuple[str, ...]
    faults: tuple[str, ...] = ()
    backend: str = ""

    @classmethod
    def of(cls, hostfile: Hostfile) -> "Plan":
        """The rehearsal that a hostfile describes.

        Raises:
            HostfileError: it is not one, or names its Macs in a way that makes no sense.
        """
        where = str(hostfile.path or "hostfile")
        if not is_rehearsal(hostfile):
            raise HostfileError(
                "is not a rehearsal's",
                where=where,
                fix="`jaccl rehearse` writes a hostfile of simulated Macs.",
            )
        names = [host.name for host in hostfile.hosts]
        told = hostfile.extra[KEY]
        if not isinstance(told, Mapping):  # a bare note: the hosts are all there is
            told = {}
        macs = _words(told.get("macs", names), "macs", where)
        faults = _words(told.get("faults", []), "faults", where)
        for name in (*macs, *names):
            if not _NAME.fullmatch(name) or macs.count(name) != 1 or names.count(name) > 1:
                raise HostfileError(
                    f"names no simulated Mac, or one twice: {name!r}",
                    where=where,
                    fix=f'Give each host a "name" of its own out of "{KEY}"."macs": letters, digits and -.',
                )
        backend = told.get("backend", "")
        return cls(macs, faults, backend if isinstance(backend, str) else "")

    def spec(self) -> ClusterSpec:
        """The cluster as it is described: healthy Macs with this machine's Python, and the faults in them.

        Raises:
            InputError: there are too many Macs, or a fault makes no sense.
        """
        spec = ClusterSpec.healthy(len(self.macs), self.macs)
        for node in range(len(self.macs)):
            spec = spec.with_mac(node, **versions_here())
        return with_faults(spec, self.faults)

    def to_json(self) -> dict[str, object]:
        """The value of the key `rehearsal`."""
        told: dict[str, object] = {"note": NOTE, "macs": list(self.macs), "faults": list(self.faults)}
        return told | ({"backend": self.backend} if self.backend else {})


def is_rehearsal(hostfile: Hostfile) -> bool:
    """Whether a hostfile is one of simulated Macs."""
    return KEY in hostfile.extra


def make_hostfile(count: int = 4, faults: Iterable[str] = ()) -> Hostfile:
    """The hostfile of a rehearsal with `count` simulated Macs (1 to 8), not yet set up.

    Raises:
        InputError: so many Macs cannot be, or a fault makes no sense.
    """
    if not 1 <= count <= MOST_MACS:
        raise InputError(f"cannot rehearse {count} Macs", fix=f"JACCL's mesh takes 1 to {MOST_MACS}.")
    names = tuple(f"mac{number}" for number in range(1, count + 1))
    hosts = tuple(Host(ssh=LOCAL, ips=(LOCAL,), extra={"name": name}) for name in names)
    told = {KEY: Plan(names).to_json()}
    made = Hostfile(hosts, backend="ring", extra=told, order=("backend", KEY, "hosts"))
    return with_changes(made, add=faults)


def with_changes(hostfile: Hostfile, *, add: Iterable[str] = (), fix: Iterable[str] = ()) -> Hostfile:
    """The same rehearsal with some faults taken out of it and others put in; its matrix stays as it is.

    Raises:
        HostfileError: it is not a rehearsal's.
        InputError: a fault makes no sense, or one that is to be fixed is not there.
    """
    plan = Plan.of(hostfile)
    faults = list(plan.faults)
    for fault in fix:
        if fault not in faults:
            known = f"Its faults are {', '.join(faults)}." if faults else "It has none."
            raise InputError("this rehearsal has no such fault", where=f"fault {fault!r}", fix=known)
        faults.remove(fault)
    faults += [fault for fault in map(str.strip, add) if fault not in faults]
    changed = replace(plan, faults=tuple(faults))
    spec = changed.spec()  # refuses faults that make no sense
    hosts = hostfile.hosts
    if (STALE in plan.faults) != (STALE in faults):
        hosts = (replace(hosts[0], extra={**hosts[0].extra, LAN: [spec.coordinator]}), *hosts[1:])
    return replace(hostfile, hosts=hosts, extra={**hostfile.extra, KEY: changed.to_json()})


def as_if_real(hostfile: Hostfile) -> Hostfile:
    """A rehearsal's hostfile as real Macs would have it: their names, addresses, and JACCL; not to be run.

    For all that judges a hostfile against what the Macs say: the coordinator, the matrix, the backend.

    Raises:
        HostfileError: it is not a rehearsal's.
    """
    plan = Plan.of(hostfile)
    where = str(hostfile.path or "hostfile")
    hosts = tuple(
        replace(
            host,
            ssh=host.name,
            ips=_words(host.extra.get(LAN, []), LAN, where),
            extra={key: value for key, value in host.extra.items() if key not in ("name", LAN)},
            order=(),
        )
        for host in hostfile.hosts
    )
    extra = {key: value for key, value in hostfile.extra.items() if key != KEY}
    backend = plan.backend or ("jaccl" if any(host.rdma for host in hosts) else "")
    return replace(hostfile, hosts=hosts, backend=backend, extra=extra, order=())


def runnable(real: Hostfile, rehearsal: Hostfile) -> Hostfile:
    """The opposite of `as_if_real`: a hostfile made for these Macs, as this machine can run it, over ring.

    Args:
        real: hosts by the simulated Macs' names (in any order, or some of them), addresses and matrix.
        rehearsal: the hostfile whose Macs they are. If its coordinator was stale, the new one's is not.

    Raises:
        HostfileError: `rehearsal` is none, or `real` has a host that it does not know.
    """
    plan = Plan.of(rehearsal)
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
    told = replace(plan, faults=faults, backend=real.backend).to_json()
    extra, order = {**real.extra, KEY: told}, ("backend", KEY, "hosts")
    made = replace(real, hosts=hosts, backend="ring", extra=extra, order=order)
    Plan.of(made)  # refuses strangers
    return made


@cache
def versions_here() -> dict[str, str]:
    """The versions that jobs on the simulated Macs really run with, by the attributes of `MacSpec`."""
    found = {"python": platform.python_version()}
    for package in ("mlx", "mlx-lm", "transformers", "jaccl-kernel"):
        try:
            found[package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a folder that is not installed
            continue
    return found


def _words(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise HostfileError(f'"{key}" of a rehearsal is not a list of words', where=where)
    return tuple(value)
