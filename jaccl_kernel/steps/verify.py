"""Verify: the gates between loose Macs and a proven group, in order, each with its proof, cause and fix.

ssh, environment, RDMA, ports, GIDs, matrix, coordinator, other jobs; then, only if none of these failed, a
small job on the ranks themselves. What was not tested says so, and is no pass. On a rehearsal the RDMA gates
judge simulated facts and the ranks run over TCP: it proves nothing about RDMA, and every line of it says so.
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
from jaccl_kernel.cluster import compare
from jaccl_kernel.cluster.check import effective_backend
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.wiring import wire
from jaccl_kernel.errors import HostfileError, InputError
from jaccl_kernel.jobs.run import Deadlines, OnEvent, Outcome, ignore
from jaccl_kernel.jobs.spec import BACKENDS, JobSpec
from jaccl_kernel.rehearsal.plan import NOTE
from jaccl_kernel.saved import save_json
from jaccl_kernel.steps import gates, live_gates
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.gates import TITLES, Gate
from jaccl_kernel.steps.scan import meant, scan, tell
from jaccl_kernel.wire import HOST, Event

SCHEMA = 1
_RDMA = ("rdma", "ports", "gid", "wiring")
_RANKS = ("group", "sums", "latency")
_ALONE = ("ssh", "environment", "stale", "group")


@dataclass(frozen=True)
class VerifyReport:
    """What verify found.

    Attributes:
        gates: in the order of `gates.TITLES`; those that make no sense here are left out, and a note says so.
        rehearsal: whether the Macs are simulated.
        backend: what the hostfile is meant for.
        hosts: the Macs' names, in rank order.
        digest: of the hostfile.
        hostfile: its path, if it has one.
        date: when, ISO 8601.
        notes: what the lights do not say.
        command: the plain mlx.launch that runs the same job; "" if none ran.
        path: where the record was saved.
    """

    gates: tuple[Gate, ...]
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
        """Whether every gate passed; what was not tested did not."""
        return all(gate.verdict == "passed" for gate in self.gates)

    @property
    def summary(self) -> str:
        """The outcome in one sentence."""
        failed = [gate for gate in self.gates if gate.verdict == "failed"]
        untested = [gate for gate in self.gates if gate.verdict == "not tested"]
        prefix = "REHEARSAL, proves nothing about RDMA: " if self.rehearsal else ""
        if failed:
            return f"{prefix}failed at “{failed[0].title}”. {failed[0].cause}"
        if untested:
            return f"{prefix}not proven: {len(untested)} gates were not tested. {untested[0].proof}"
        return f"{prefix}all {len(self.gates)} gates passed."

    def to_json(self) -> dict[str, Any]:
        """The record."""
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
            "gates": [gate.to_json() for gate in self.gates],
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
    """Try all gates.

    Stages and the job's events go to `on_event`, each gate as an event `gate` of the host (rank -1).

    Args:
        cluster: from a hostfile; from bare names too, but then some gates cannot be tested.
        backend: mlx.launch's; None for the hostfile's own.
        python: the interpreter on every node; None for this one.
        facts: a scan that was just made, to be taken instead of another.
        deadlines: of the job on the ranks.
        save: whether to leave a record in the results folder.

    Raises:
        HostfileError: the file names Macs in a way that leaves nothing to ask.
        InputError: an unknown backend.
        JacclError: the record cannot be saved.
    """
    judged = meant(cluster.hostfile)
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}", fix=f"Use one of {', '.join(BACKENDS)}.")
    chosen = effective_backend(judged, None if cluster.rehearsal else backend)
    if not any(host.rdma or host.ips for host in judged.hosts) and not (backend or judged.backend):
        chosen = "jaccl"  # bare names: mlx.launch would take TCP, but it is RDMA that is to be verified
    if problem := gates.blocking(judged, backend=chosen):
        raise HostfileError(problem.message, where=problem.where, fix=problem.fix)
    walk = _Walk(cluster, judged, chosen, python, on_event)
    await walk.all(facts, deadlines)
    report = VerifyReport(
        tuple(walk.done),
        cluster.rehearsal,
        chosen,
        cluster.names,
        cluster.hostfile.digest(),
        str(cluster.hostfile.path) if cluster.hostfile.path else None,
        dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        tuple(walk.notes()),
        walk.outcome.command if walk.outcome else "",
    )
    if not save:
        return report
    return replace(report, path=await asyncio.to_thread(save_json, "verify", report.to_json()))


class _Walk:
    """One walk through the gates, with what has been passed so far."""

    def __init__(
        self, cluster: Cluster, judged: Hostfile, backend: str, python: str | None, on_event: OnEvent
    ) -> None:
        self.cluster = cluster
        self.judged = judged
        self.backend = backend
        # a simulated Mac's python3 tells its own versions, and runs as this one
        self.scan_python = python or ("python3" if cluster.rehearsal else sys.executable)
        self.rank_python = python or sys.executable
        self.on_event = on_event
        self.done: list[Gate] = []
        self.outcome: Outcome | None = None
        self.names = _applicable(len(cluster.nodes), backend)

    async def all(self, facts: Sequence[NodeFacts] | None, deadlines: Deadlines | None) -> None:
        """Try every gate that makes sense here, in order."""
        began = time.perf_counter()
        self._tell("ssh")
        cluster = self.cluster
        seen = await scan(cluster, self.scan_python, self.on_event, facts)
        wiring = wire(seen)
        self._add(gates.ssh(wiring), began)
        self._tell("environment")
        began = time.perf_counter()
        imports = await live_gates.import_problems(cluster.nodes, wiring, self.scan_python)
        self._add(gates.environment(wiring, imports, backend=self.backend), began)
        if "rdma" in self.names:
            used = compare.uses(self.judged, wiring, ring=self.backend == "jaccl-ring")
            await self._try("rdma", lambda: _at_once(gates.rdma(wiring)))
            await self._try("ports", lambda: _at_once(gates.ports(used, wiring)))
            await self._try("gid", lambda: _at_once(gates.gid(used, wiring)))
            await self._try(
                "wiring", lambda: _at_once(gates.wiring_gate(self.judged, wiring, backend=self.backend))
            )
        if "coordinator" in self.names:
            await self._try(
                "coordinator",
                lambda: live_gates.coordinator(
                    cluster, self.judged, wiring, backend=self.backend, python=self.scan_python
                ),
            )
        await self._try("stale", lambda: live_gates.stale(cluster, wiring))
        await self._ranks(deadlines)

    def notes(self) -> list[str]:
        """What the lights do not say."""
        found = [NOTE] if self.cluster.rehearsal else []
        if self.cluster.rehearsal and self.outcome:
            found.append("The ranks ran over MLX's TCP ring on this machine, not over JACCL.")
        left = [TITLES[name] for name in TITLES if name not in self.names]
        if left:
            why = "there is one Mac" if len(self.cluster.nodes) == 1 else "the TCP ring uses no RDMA"
            found.append(f"Not looked at, since {why}: {'; '.join(left)}.")
        return found

    async def _try(self, name: str, gate: Callable[[], Awaitable[Gate]]) -> None:
        self._tell(name)
        began = time.perf_counter()
        self._add(await gate(), began)

    def _add(self, gate: Gate, began: float) -> None:
        gate = replace(gate, seconds=time.perf_counter() - began)
        if self.cluster.rehearsal and gate.name in _RDMA:
            gate = gates.simulated(gate)
        self.done.append(gate)
        self.on_event(Event(HOST, "gate", gate.to_json()))

    def _tell(self, name: str) -> None:
        # one stage for all: a stage that has ended looks like a gate that has passed
        text = f"{len(self.done) + 1} of {len(self.names)}: is it so that {TITLES[name]}?"
        tell(self.on_event, "gates", text, len(self.done) / len(self.names))

    async def _ranks(self, deadlines: Deadlines | None) -> None:
        """The last gates: a job on the ranks, if nothing speaks against it."""
        names = [name for name in _RANKS if name in self.names]
        if why := self._obstacle():
            for name in names:
                self._add(gates.not_tested(name, why), time.perf_counter())
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
        found, self.outcome = await live_gates.ranks(spec, self.on_event, deadlines)
        for gate in found:
            self._add(gate, began)
            began = time.perf_counter()

    def _obstacle(self) -> str:
        """Why no ranks should be started, or ""."""
        failed = next((gate for gate in self.done if gate.verdict == "failed"), None)
        if failed:
            return f"Not started, since an earlier gate failed: {failed.title}."
        # unknown states of ports are no obstacle: the ranks themselves are the better proof
        needed = ("ssh", "environment", "wiring", "coordinator")
        unsure = next((g for g in self.done if g.verdict == "not tested" and g.name in needed), None)
        return f"Not started, since an earlier gate was not tested: {unsure.title}." if unsure else ""


def _applicable(size: int, backend: str) -> tuple[str, ...]:
    """The gates that make sense: one Mac has no cables, the TCP ring no RDMA."""
    if size == 1:
        return _ALONE
    return tuple(name for name in TITLES if backend != "ring" or name not in _RDMA)


async def _at_once(gate: Gate) -> Gate:
    return gate
