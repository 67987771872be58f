"""Configure: from the Macs as they are to a hostfile: scan, wiring, coordinator, matrix, and what changes.

Nothing is written unless asked: the report holds the hostfile, what changes from the old one, what is wrong
with that one, and the network set-up that the ports need. `write` then writes, and keeps what it replaces.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaccl_kernel.cluster import network
from jaccl_kernel.cluster.check import has_errors
from jaccl_kernel.cluster.difference import Difference, difference
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.network import NetworkPlan
from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.cluster.wiring import Wiring, wire
from jaccl_kernel.errors import HostfileError, InputError, JacclError
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.rehearsal.plan import KEY, NOTE, is_rehearsal, runnable
from jaccl_kernel.saved import stamp
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment_plan import default_python, from_home
from jaccl_kernel.steps.propose import Proposal, explain, propose
from jaccl_kernel.steps.scan import meant, scan, tell

__all__ = ["ConfigureReport", "Written", "configure", "explain", "hostfile_path", "write"]

FOLDER = Path("hostfiles")


@dataclass(frozen=True)
class Written:
    """What `write` did: the file, where the old one went (None: there was none), and whether it changed."""

    path: Path
    kept: Path | None = None
    changed: bool = True


@dataclass(frozen=True)
class ConfigureReport:
    """What the scan led to.

    Attributes:
        facts: of every Mac, in the cluster's order.
        wiring: the cabling.
        proposal: the hostfile, or what stands in its way.
        old: the hostfile that is there now, or that the cluster came from; `old_error` if it cannot be read.
        difference: what changes from it.
        explained: what is wrong with the old one, against the Macs as they are.
        network: what the ports need before a job can run.
        path: where the hostfile belongs.
        rehearsal: whether the Macs are simulated.
        written: what was written, or None.
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
        """Whether there is a hostfile. What else a job needs is in the proposal's findings."""
        return self.hostfile is not None

    @property
    def ready(self) -> bool:
        """Whether nothing that was seen would keep a job from running on it."""
        return self.ok and not has_errors(self.proposal.findings)

    @property
    def unreadable(self) -> str:
        """What to say of a hostfile that is there and cannot be read; "" for none."""
        before = "The hostfile that is there cannot be read, and is kept when it is replaced: "
        return f"{before}{self.old_error}" if self.old_error else ""

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
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
            "changes": list(self.difference.words),
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
    """Scan, and work out the hostfile of these Macs.

    Args:
        cluster: from a hostfile, which is then judged too, or from bare names.
        name: the file is `hostfiles/NAME.local.json`, unless `path` says another.
        path: where it belongs; by default the cluster's own hostfile, if it was read from one.
        backend: see `propose`.
        python: the interpreter whose versions the scan asks for; None for the environment's.
        facts: a scan that was just made, to be taken instead of another.
        write_it: write the hostfile at once, without a look at what changes.
        on_event: hears stages.

    Raises:
        InputError: a name that is no file's, or an unknown backend.
        HostfileError: a rehearsal's hostfile makes no sense, or (with `write_it`) it cannot be written.
    """
    target = path or cluster.hostfile.path or hostfile_path(name)
    given = cluster.hostfile if cluster.hostfile.path else None
    old, old_error = _read_old(target)
    seen = await scan(cluster, python or from_home(default_python(cluster)), on_event, facts)
    tell(on_event, "configure", "comparing cables, devices and addresses")
    base = cluster.hostfile
    if base.path is None and old is not None:
        base = _keeping(base, old)
    proposal = propose(meant(base), seen, backend=backend)
    if cluster.rehearsal and proposal.hostfile:
        proposal = replace(proposal, hostfile=runnable(proposal.hostfile, base))
    old = old or given
    judged = given or (old if old is not None and _same_hosts(old, cluster.hostfile) else None)
    if judged is not None and cluster.rehearsal and not any(judged.rdma):
        judged = None  # a rehearsal that has no matrix yet: nothing in it to be wrong
    report = ConfigureReport(
        seen,
        wire(seen),
        proposal,
        old,
        old_error,
        _difference(old, proposal.hostfile) if proposal.hostfile else Difference((), ()),
        tuple(explain(meant(judged), seen)) if judged else (),
        network.plan(wire(seen)),
        target,
        cluster.rehearsal,
    )
    return write(report) if write_it and report.ok else report


def write(report: ConfigureReport) -> ConfigureReport:
    """Write the report's hostfile; one that it replaces is kept beside it, under a name with the date.

    Returns the report with `written` set. A file that would not change is left alone.

    Raises:
        JacclError: the report has no hostfile.
        HostfileError: it cannot be written there.
    """
    if report.hostfile is None:
        first = next(iter(report.proposal.problems), None)
        raise JacclError(
            f"there is no hostfile to write: {first.message if first else 'no Mac was scanned'}",
            where=str(report.path),
            fix=first.fix if first else "",
        )
    if report.path.exists() and report.old is not None and not report.difference:
        return replace(report, written=Written(report.path, changed=False))
    try:
        report.path.parent.mkdir(parents=True, exist_ok=True)
        kept = _keep(report.path) if report.path.exists() else None
    except OSError as error:
        fix = "Choose a file in a folder that you may write to."
        raise HostfileError(
            f"cannot be written: {error.strerror}", where=str(report.path), fix=fix
        ) from error
    report.hostfile.write(report.path)
    return replace(report, written=Written(report.path, kept))


def hostfile_path(name: str) -> Path:
    """`hostfiles/NAME.local.json`, which git ignores.

    Raises:
        InputError: a name with slashes or spaces, or none.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} is no name for a hostfile", fix="Use letters, digits, dots and dashes.")
    return FOLDER / f"{name}.local.json"


def _difference(old: Hostfile | None, new: Hostfile) -> Difference:
    """What changes; of a rehearsal in the words of real Macs, of whom the file says the rest."""
    found = difference(old, new)
    if old is None or not is_rehearsal(old) or not is_rehearsal(new):
        return found
    return replace(found, words=difference(meant(old), meant(new)).words or found.words)


def _keep(path: Path) -> Path:
    """Copy a file beside itself, over no other; it ends in `.local.json`, so that git ignores it too."""
    stem = path.name.removesuffix(".json").removesuffix(".local")
    number = 1
    while True:
        again = f"-{number}" if number > 1 else ""
        kept = path.with_name(f"{stem}.before-{stamp()}{again}.local.json")
        try:
            with kept.open("xb") as file:
                file.write(path.read_bytes())
        except FileExistsError:
            number += 1
        else:
            return kept


def _read_old(path: Path) -> tuple[Hostfile | None, str]:
    if not path.exists():
        return None, ""
    try:
        return Hostfile.read(path), ""
    except HostfileError as error:
        return None, str(error)


def _keeping(base: Hostfile, old: Hostfile) -> Hostfile:
    """The base's hosts, with all else that an old hostfile at that place says."""
    known = {host.ssh: host for host in old.hosts}
    extra = {key: value for key, value in old.extra.items() if key != KEY or KEY in base.extra}
    hosts = tuple(known.get(host.ssh, host) for host in base.hosts)
    return replace(old, hosts=hosts, extra=extra, path=None)


def _same_hosts(old: Hostfile, new: Hostfile) -> bool:
    return [(host.ssh, host.name) for host in old.hosts] == [(host.ssh, host.name) for host in new.hosts]
