"""Verify: checks that the Macs form one group, in order, each with its evidence, cause and fix.

ssh, environment, RDMA, ports, GIDs, matrix, coordinator, other jobs; then, if none of these failed, a small
job on the ranks. "not tested" does not count as ok. In a rehearsal the RDMA checks use simulated facts and
the ranks run over TCP: the result proves nothing about RDMA, and each line says so.
"""

import asyncio
import datetime as dt
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.core.events import HOST, Body, Event
from jaccl_kernel.core.files import save_json
from jaccl_kernel.core.options import BACKENDS
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import effective_backend
from jaccl_kernel.launch.run import Deadlines, OnEvent, Outcome, ignore
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.rehearsal.plan import NOTE
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.scan import meant, scan, tell
from jaccl_kernel.steps.verify import checks, live_checks
from jaccl_kernel.steps.verify.checks import TITLES, Check
from jaccl_kernel.topology import compare
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.wiring import build_wiring

SCHEMA = 2
_RDMA = ("rdma", "ports", "gid", "wiring")
_RANKS = ("group", "sums", "latency")
_ALONE = ("ssh", "environment", "stale", "group")


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        checks: in the order of `checks.TITLES`; a note lists the checks that do not apply.
        rehearsal: whether the Macs are simulated.
        backend: the hostfile's backend.
        hosts: the Macs' names, in rank order.
        digest: of the hostfile.
        hostfile: its path, if it has one.
        date: ISO 8601.
        notes: further notes.
        command: the plain mlx.launch command that runs the same job; "" if none ran.
        path: the path of the record.
    """

    checks: tuple[Check, ...]
    rehearsal: bool
    backend: str
    hosts: tuple[str, ...]
    digest: str
    hostfile: str | None
    date: str
    notes: tuple[str, ...] = ()
    command: str = ""
    path: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every check is ok; "not tested" is not."""
        return all(check.verdict == "ok" for check in self.checks)

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        failed = [check for check in self.checks if check.verdict == "failed"]
        untested = [check for check in self.checks if check.verdict == "not tested"]
        prefix = "REHEARSAL, proves nothing about RDMA: " if self.rehearsal else ""
        if failed:
            return f"{prefix}failed at “{failed[0].title}”. {failed[0].cause}"
        if untested:
            count = f"{len(untested)} check{'s' * (len(untested) > 1)}"
            return f"{prefix}{count} not tested. {untested[0].proof}"
        return f"{prefix}all {len(self.checks)} checks are ok."

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "summary": self.summary,
            "rehearsal": self.rehearsal,
            "date": self.date,
            "workbench": __version__,
            "backend": self.backend,
            "hosts": list(self.hosts),
            "hostfile": {"path": self.hostfile, "digest": self.digest},
            "checks": [check.to_json() for check in self.checks],
            "notes": list(self.notes),
            "command": self.command,
        }


async def verify(
    cluster: Cluster,
    *,
    backend: str | None = None,
    python: str | None = None,
    facts: Sequence[NodeFacts] | None = None,
    deadlines: Deadlines | None = None,
    on_event: OnEvent = ignore,
    save: bool = True,
) -> VerifyReport:
    """Run all checks.

    Sends stages and the job's events to `on_event`, and each check as a CheckDone of the host.

    Args:
        cluster: from a hostfile, or from bare names (then some checks are not tested).
        backend: mlx.launch's backend; None for the hostfile's own.
        python: the interpreter on every node; None for this one.
        facts: of a previous scan, instead of a new one.
        deadlines: of the job on the ranks.
        save: whether to save a record in the results folder.

    Raises:
        HostfileError: an error in the hostfile prevents a scan.
        InputError: the backend is unknown.
        JacclError: the record cannot be saved.
    """
    judged = meant(cluster.hostfile)
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
    chosen = effective_backend(judged, None if cluster.rehearsal else backend)
    if not any(host.rdma or host.ips for host in judged.hosts) and not (backend or judged.backend):
        chosen = "jaccl"  # bare names: mlx.launch would use TCP, but this step verifies RDMA
    if problem := checks.blocking(judged, backend=chosen):
        raise HostfileError(problem.message, where=problem.where, fix=problem.fix)
    run = _Run(cluster, judged, chosen, python, on_event)
    await run.all(facts, deadlines)
    report = VerifyReport(
        tuple(run.done),
        cluster.rehearsal,
        chosen,
        cluster.names,
        cluster.hostfile.digest(),
        str(cluster.hostfile.path) if cluster.hostfile.path else None,
        dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        tuple(run.notes()),
        run.outcome.command if run.outcome else "",
    )
    if not save:
        return report
    return replace(report, path=await asyncio.to_thread(save_json, "verify", report.to_json()))


@dataclass(frozen=True)
class CheckDone(Body):
    """A check has run. Never crosses a process boundary."""

    check: Check


class _Run:
    """One run of the checks, with the results so far."""

    def __init__(
        self, cluster: Cluster, judged: Hostfile, backend: str, python: str | None, on_event: OnEvent
    ) -> None:
        self.cluster = cluster
        self.judged = judged
        self.backend = backend
        # a simulated Mac's python3 reports simulated versions, and runs this interpreter
        self.scan_python = python or ("python3" if cluster.rehearsal else sys.executable)
        self.rank_python = python or sys.executable
        self.on_event = on_event
        self.done: list[Check] = []
        self.outcome: Outcome | None = None
        self.names = _applicable(len(cluster.nodes), backend)

    async def all(self, facts: Sequence[NodeFacts] | None, deadlines: Deadlines | None) -> None:
        """Run every applicable check, in order."""
        began = time.perf_counter()
        self._tell("ssh")
        cluster = self.cluster
        seen = await scan(cluster, self.scan_python, self.on_event, facts)
        wiring = build_wiring(seen)
        self._add(checks.ssh(wiring), began)
        self._tell("environment")
        began = time.perf_counter()
        imports = await live_checks.import_problems(cluster.nodes, wiring, self.scan_python)
        self._add(checks.environment(wiring, imports, backend=self.backend), began)
        if "rdma" in self.names:
            used = compare.device_uses(self.judged, wiring, ring=self.backend == "jaccl-ring")
            await self._try("rdma", lambda: _at_once(checks.rdma(wiring)))
            await self._try("ports", lambda: _at_once(checks.ports(used, wiring)))
            await self._try("gid", lambda: _at_once(checks.gid(used, wiring)))
            await self._try(
                "wiring", lambda: _at_once(checks.wiring_check(self.judged, wiring, backend=self.backend))
            )
        if "coordinator" in self.names:
            await self._try(
                "coordinator",
                lambda: live_checks.coordinator(
                    cluster, self.judged, wiring, backend=self.backend, python=self.scan_python
                ),
            )
        await self._try("stale", lambda: live_checks.stale(cluster, wiring))
        await self._ranks(deadlines)

    def notes(self) -> list[str]:
        """Return further notes."""
        found = [NOTE] if self.cluster.rehearsal else []
        if self.cluster.rehearsal and self.outcome:
            found.append("The ranks ran over MLX's TCP ring on this machine, not over JACCL.")
        left = [TITLES[name] for name in TITLES if name not in self.names]
        if left:
            why = "the cluster is one Mac" if len(self.cluster.nodes) == 1 else "the TCP ring uses no RDMA"
            found.append(f"Skipped, because {why}: {'; '.join(left)}.")
        return found

    async def _try(self, name: str, check: Callable[[], Awaitable[Check]]) -> None:
        self._tell(name)
        began = time.perf_counter()
        self._add(await check(), began)

    def _add(self, check: Check, began: float) -> None:
        check = replace(check, seconds=time.perf_counter() - began)
        if self.cluster.rehearsal and check.name in _RDMA:
            check = checks.simulated(check)
        self.done.append(check)
        self.on_event(Event(HOST, CheckDone(check)))

    def _tell(self, name: str) -> None:
        # one stage for all: a stage that has ended looks like a check that is ok
        text = f"Check {len(self.done) + 1}/{len(self.names)}: {TITLES[name]}"
        tell(self.on_event, "checks", text, len(self.done) / len(self.names))

    async def _ranks(self, deadlines: Deadlines | None) -> None:
        """Run the last checks, a job on the ranks, if the previous checks allow it."""
        names = [name for name in _RANKS if name in self.names]
        if why := self._obstacle():
            for name in names:
                self._add(checks.not_tested(name, why), time.perf_counter())
            return
        self._tell(names[0])
        began = time.perf_counter()
        spec = JobSpec(
            self.cluster.hostfile,
            ("smoke",),
            "ring" if self.cluster.rehearsal else self.backend,
            self.rank_python,
            rank_env=self.cluster.rank_env,
        )
        found, self.outcome = await live_checks.ranks(spec, self.on_event, deadlines)
        for check in found:
            self._add(check, began)
            began = time.perf_counter()

    def _obstacle(self) -> str:
        """Return why the job on the ranks must not start, or ""."""
        failed = next((check for check in self.done if check.verdict == "failed"), None)
        if failed:
            return f"Skipped, because an earlier check failed: {failed.title}."
        # unknown port states do not matter: the job itself is the better proof
        needed = ("ssh", "environment", "wiring", "coordinator")
        unsure = next((g for g in self.done if g.verdict == "not tested" and g.name in needed), None)
        return f"Skipped, because an earlier check was not tested: {unsure.title}." if unsure else ""


def _applicable(size: int, backend: str) -> tuple[str, ...]:
    """Return the applicable checks: one Mac has no cables, the TCP ring no RDMA."""
    if size == 1:
        return _ALONE
    return tuple(name for name in TITLES if backend != "ring" or name not in _RDMA)


async def _at_once(check: Check) -> Check:
    return check
