"""Configure: derive a hostfile from the Macs: scan, wiring, coordinator, matrix, and the changes.

Writes nothing by default: the report has the hostfile, the changes from the old one, the problems of the old
one, and the network changes that the ports need. `write` writes the file, and keeps a copy of the old one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import HostfileError, InputError, JacclError
from jaccl_kernel.core.files import stamp
from jaccl_kernel.hostfile.diff import Difference, difference
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import has_errors
from jaccl_kernel.hostfile.problem import Problem
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.rehearsal.plan import KEY, NOTE, is_rehearsal, runnable
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment.plan import default_python, from_home
from jaccl_kernel.steps.hostfile.propose import Proposal, explain, propose
from jaccl_kernel.steps.scan import meant, scan, tell
from jaccl_kernel.topology import addressing as network
from jaccl_kernel.topology.addressing import NetworkPlan
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.wiring import Wiring, build_wiring

__all__ = ["ConfigureReport", "Written", "configure", "explain", "hostfile_path", "write"]

FOLDER = Path("hostfiles")


@dataclass(frozen=True)
class Written:
    """The result of `write`: the file, the copy of the old one (None: there was none), whether it changed."""

    path: Path
    kept: Path | None = None
    changed: bool = True


@dataclass(frozen=True)
class ConfigureReport:
    """The result of `configure`.

    Attributes:
        facts: of every Mac, in the cluster's order.
        wiring: the cabling.
        proposal: the hostfile, or the problems that prevent one.
        old: the current hostfile, or the one that the cluster was read from; `old_error` if it is unreadable.
        difference: the changes from the old one.
        explained: the problems of the old one, given the facts.
        network: the changes that the ports need before a job can run.
        path: the path of the hostfile.
        rehearsal: whether the Macs are simulated.
        written: the result of `write`, or None.
    """

    facts: tuple[NodeFacts, ...]
    wiring: Wiring
    proposal: Proposal
    old: Hostfile | None
    old_error: str
    difference: Difference
    explained: tuple[Problem, ...]
    network: NetworkPlan
    path: Path
    rehearsal: bool = False
    written: Written | None = None

    @property
    def hostfile(self) -> Hostfile | None:
        """The proposal's hostfile."""
        return self.proposal.hostfile

    @property
    def ok(self) -> bool:
        """Whether there is a hostfile. The proposal's findings list what a job needs besides it."""
        return self.hostfile is not None

    @property
    def ready(self) -> bool:
        """Whether there is a hostfile and no finding that prevents a job."""
        return self.ok and not has_errors(self.proposal.findings)

    @property
    def unreadable(self) -> str:
        """The message about a current hostfile that cannot be read; "" if there is none."""
        message = "Cannot read the current hostfile; a copy is kept when it is replaced: "
        return f"{message}{self.old_error}" if self.old_error else ""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        proposal = self.proposal
        return {
            "ok": self.ok,
            "ready": self.ready,
            "rehearsal": self.rehearsal,
            "topology": proposal.topology,
            "order": [self.wiring.labels[node] for node in proposal.order],
            "coordinator": None if proposal.coordinator is None else proposal.coordinator.address,
            "hostfile": None if self.hostfile is None else self.hostfile.to_json(),
            "path": str(self.path),
            "changes": list(self.difference.sentences),
            "problems": [problem.to_json() for problem in proposal.problems],
            "findings": [problem.to_json() for problem in proposal.findings],
            "old_error": self.old_error,
            "old": [problem.to_json() for problem in self.explained],
            "notes": [*([NOTE] if self.rehearsal else []), *proposal.notes],
            "moves": list(proposal.moves),
            "network": [
                {"node": self.network.labels[step.node], "command": step.line, "undo": step.undo_line}
                for step in self.network.steps
            ],
            "written": None if self.written is None else str(self.written.path),
        }


async def configure(
    cluster: Cluster,
    *,
    name: str = "cluster",
    path: Path | None = None,
    backend: str | None = None,
    python: str | None = None,
    facts: Sequence[NodeFacts] | None = None,
    write_it: bool = False,
    on_event: OnEvent = ignore,
) -> ConfigureReport:
    """Scan these Macs and derive their hostfile.

    Args:
        cluster: from a hostfile, which is checked too, or from bare names.
        name: the file is `hostfiles/NAME.local.json` by default.
        path: the path of the file; by default the hostfile that the cluster was read from.
        backend: see `propose`.
        python: the interpreter to scan; None for the environment's.
        facts: of a previous scan, instead of a new one.
        write_it: write the hostfile at once.
        on_event: receives stages.

    Raises:
        InputError: the name or the backend is invalid.
        HostfileError: the rehearsal's description is invalid, or (with `write_it`) the file cannot be
            written.
    """
    target = path or cluster.hostfile.path or hostfile_path(name)
    given = cluster.hostfile if cluster.hostfile.path else None
    old, old_error = _read_old(target)
    seen = await scan(cluster, python or from_home(default_python(cluster)), on_event, facts)
    tell(on_event, "configure", "comparing cables, devices and addresses")
    base = cluster.hostfile
    if base.path is None and old is not None:
        base = _merged(base, old)
    proposal = propose(meant(base), seen, backend=backend)
    if cluster.rehearsal and proposal.hostfile:
        proposal = replace(proposal, hostfile=runnable(proposal.hostfile, base))
    old = old or given
    judged = given or (old if old is not None and _same_hosts(old, cluster.hostfile) else None)
    if judged is not None and cluster.rehearsal and not any(judged.rdma):
        judged = None  # a rehearsal without a matrix has nothing to check
    report = ConfigureReport(
        seen,
        build_wiring(seen),
        proposal,
        old,
        old_error,
        _difference(old, proposal.hostfile) if proposal.hostfile else Difference((), ()),
        tuple(explain(meant(judged), seen)) if judged else (),
        network.plan(build_wiring(seen)),
        target,
        cluster.rehearsal,
    )
    return write(report) if write_it and report.ok else report


def write(report: ConfigureReport) -> ConfigureReport:
    """Write the report's hostfile, and keep a dated copy of the one that it replaces.

    Returns the report with `written` set. An unchanged file is not rewritten.

    Raises:
        JacclError: the report has no hostfile.
        HostfileError: the file cannot be written.
    """
    if report.hostfile is None:
        first = next(iter(report.proposal.problems), None)
        raise JacclError(
            f"no hostfile to write: {first.message if first else 'no Mac was scanned'}",
            where=str(report.path),
            fix=first.fix if first else "",
        )
    if report.path.exists() and report.old is not None and not report.difference:
        return replace(report, written=Written(report.path, changed=False))
    try:
        report.path.parent.mkdir(parents=True, exist_ok=True)
        backup = _back_up(report.path) if report.path.exists() else None
    except OSError as error:
        fix = "Choose a file in a writable folder."
        raise HostfileError(
            f"cannot write the hostfile: {error.strerror}", where=str(report.path), fix=fix
        ) from error
    report.hostfile.write(report.path)
    return replace(report, written=Written(report.path, backup))


def hostfile_path(name: str) -> Path:
    """Return `hostfiles/NAME.local.json`, which git ignores.

    Raises:
        InputError: the name is empty, or has slashes or spaces.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"invalid hostfile name {name!r}", fix="Use letters, digits, dots and dashes.")
    return FOLDER / f"{name}.local.json"


def _difference(old: Hostfile | None, new: Hostfile) -> Difference:
    """Return the changes; for a rehearsal, those of the real Macs' hostfile if there are any."""
    found = difference(old, new)
    if old is None or not is_rehearsal(old) or not is_rehearsal(new):
        return found
    return replace(found, sentences=difference(meant(old), meant(new)).sentences or found.sentences)


def _back_up(path: Path) -> Path:
    """Copy a file into its own folder under an unused name ending in `.local.json`, which git ignores."""
    stem = path.name.removesuffix(".json").removesuffix(".local")
    number = 1
    while True:
        suffix = f"-{number}" if number > 1 else ""
        backup = path.with_name(f"{stem}.before-{stamp()}{suffix}.local.json")
        try:
            with backup.open("xb") as file:
                file.write(path.read_bytes())
        except FileExistsError:
            number += 1
        else:
            return backup


def _read_old(path: Path) -> tuple[Hostfile | None, str]:
    if not path.exists():
        return None, ""
    try:
        return Hostfile.read(path), ""
    except HostfileError as error:
        return None, str(error)


def _merged(base: Hostfile, old: Hostfile) -> Hostfile:
    """Return the base's hosts with the other contents of the old hostfile."""
    known = {host.ssh: host for host in old.hosts}
    extra = {key: value for key, value in old.extra.items() if key != KEY or KEY in base.extra}
    hosts = tuple(known.get(host.ssh, host) for host in base.hosts)
    return replace(old, hosts=hosts, extra=extra, path=None)


def _same_hosts(old: Hostfile, new: Hostfile) -> bool:
    return [(host.ssh, host.name) for host in old.hosts] == [(host.ssh, host.name) for host in new.hosts]
