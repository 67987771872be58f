"""Troubleshoot: what a text means, what the last jobs' logs tell, and jobs that nobody owns any more.

`explain` knows the errors of JACCL, MLX and mlx-lm; `look` finds processes that hold a Mac's devices; `end`
ends those that it was shown, after a yes, each by its id and only while it is still that process.
"""

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import InputError, NodeError
from jaccl_kernel.jobs.diagnose import KNOWN
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.live_gates import Process, processes
from jaccl_kernel.steps.serve_detached import REBOOT, find_running
from jaccl_kernel.wire import HOST, Event

PATIENCE_S = 5  # of a process that was asked to end
END_DEADLINE_S = PATIENCE_S + 15.0
LINE_LENGTH = 300  # of a line that is shown
SHOWN_LOGS = 5

# one process a time: "PID command"; it is ended only if it is still that command
_END = r"""
patience=$1; shift
same() { [ "$(ps -ww -o command= -p "$1" 2>/dev/null)" = "$2" ]; }
while [ $# -ge 2 ]; do
    pid=$1 command=$2; shift 2
    if ! same "$pid" "$command"; then echo "gone $pid"; continue; fi
    kill -TERM "$pid" 2>/dev/null || { echo "refused $pid"; continue; }
    kill -CONT "$pid" 2>/dev/null
    left=$patience
    while [ "$left" -gt 0 ] && same "$pid" "$command"; do sleep 1; left=$((left - 1)); done
    if ! same "$pid" "$command"; then echo "ended $pid"; continue; fi
    kill -KILL "$pid" 2>/dev/null
    sleep 1
    if same "$pid" "$command"; then echo "stays $pid"; else echo "killed $pid"; fi
done
"""


@dataclass(frozen=True)
class Finding:
    """A line that is known to mean something.

    Attributes:
        line: the line, shortened.
        cause, fix: what it means and what to do.
        secondary: another rank was gone first; look for the first cause elsewhere.
    """

    line: str
    cause: str
    fix: str
    secondary: bool


@dataclass(frozen=True)
class LogFinding:
    """What one rank's log of a job tells."""

    path: Path
    job: str
    age_s: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Stuck:
    """What runs on one node; `error` is why it is not known."""

    node: str
    processes: tuple[Process, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Ended:
    """What became of a process: ended, killed, gone (before we came), refused (not ours), or stays."""

    node: str
    pid: int
    outcome: str


@dataclass(frozen=True)
class LookReport:
    """What was found."""

    nodes: tuple[Stuck, ...]
    logs: tuple[LogFinding, ...] = ()
    servers: tuple[str, ...] = ()  # what is no leftover: servers that run here, each in a sentence

    @property
    def ok(self) -> bool:
        """Whether every node told, and none runs anything of a job."""
        return not any(node.processes or node.error for node in self.nodes)


@dataclass(frozen=True)
class EndReport:
    """What was ended; `note` says what only a reboot frees."""

    ended: tuple[Ended, ...]
    errors: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether none of them is left."""
        return not self.errors and all(one.outcome in ("ended", "killed", "gone") for one in self.ended)


def explain(text: str) -> list[Finding]:
    """What is known of a text, first causes before what only follows from them; each cause once."""
    found: dict[str, Finding] = {}
    for known in sorted(KNOWN, key=lambda one: one.secondary):
        for line in text.splitlines():
            if known.cause not in found and re.search(known.pattern, line):
                found[known.cause] = Finding(
                    line.strip()[:LINE_LENGTH], known.cause, known.fix, known.secondary
                )
    return list(found.values())


def read_logs(most: int = SHOWN_LOGS) -> list[LogFinding]:
    """The newest jobs' logs on this machine that hold something known, the newest job first."""
    told = []
    folders = sorted((cache_dir() / "jobs").glob("*/"), key=lambda path: path.name, reverse=True)
    for path in (log for folder in folders for log in sorted(folder.glob("rank*.log"))):
        try:
            findings = explain(path.read_text(encoding="utf-8", errors="replace"))
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        if findings:
            told.append(LogFinding(path, path.parent.name, age, tuple(findings)))
        if len(told) == most:
            break
    return told


async def look(cluster: Cluster, *, on_event: OnEvent = ignore) -> LookReport:
    """Find the jobs' processes on every node at once, and read the last logs."""

    async def one(node: Node) -> Stuck:
        try:
            found = tuple(await processes(node, only_own=cluster.rehearsal))
        except NodeError as error:
            return Stuck(node.name, error=f"{error.what}. {error.fix}".strip())
        on_event(
            Event(HOST, "stage", {"name": "look", "text": f"{node.name}: {len(found)}", "fraction": None})
        )
        return Stuck(node.name, found)

    nodes = await asyncio.gather(*map(one, cluster.nodes))
    servers = (
        f"The server {one.id} at {one.url} runs, with ranks of these: `jaccl stop {one.id}` ends it."
        for one in find_running()
    )
    return LookReport(tuple(nodes), tuple(await asyncio.to_thread(read_logs)), tuple(servers))


async def end(
    cluster: Cluster, report: LookReport, *, yes: bool = False, on_event: OnEvent = ignore
) -> EndReport:
    """End the processes that a look has found: terminate, then kill, all nodes at once.

    Raises:
        InputError: without a yes.
    """
    if not yes:
        raise InputError("nothing is ended without a yes", fix="Look at the list, then say --yes.")

    async def one(node: Node, stuck: Stuck) -> tuple[list[Ended], str]:
        if not stuck.processes:
            return [], ""
        words = [word for process in stuck.processes for word in (str(process.pid), process.command)]
        deadline = END_DEADLINE_S + len(stuck.processes) * (PATIENCE_S + 2)
        try:
            told = await node.script(_END, str(PATIENCE_S), *words, deadline=deadline)
        except NodeError as error:
            return [], f"{node.name}: {error.what}"
        ended = [_ended(node.name, line) for line in told.stdout.splitlines() if " " in line]
        for each in ended:
            text = f"{each.node}: {each.pid} {each.outcome}"
            on_event(Event(HOST, "stage", {"name": "end", "text": text, "fraction": None}))
        return ended, ""

    results = await asyncio.gather(*map(one, cluster.nodes, report.nodes))
    ended = tuple(each for some, _ in results for each in some)
    hard = any(each.outcome in ("killed", "stays") for each in ended)
    return EndReport(ended, tuple(error for _, error in results if error), REBOOT if hard else "")


def _ended(node: str, line: str) -> Ended:
    outcome, pid = line.split()
    return Ended(node, int(pid), outcome)
