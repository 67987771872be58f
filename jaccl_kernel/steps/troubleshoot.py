"""Troubleshoot: explain error texts and the last jobs' logs, and end leftover processes.

`explain` knows the errors of JACCL, MLX and mlx-lm; `look` finds processes that hold a Mac's devices; `end`
ends the listed ones after confirmation, each by its pid and only if its command line is unchanged.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from jaccl_kernel.core.errors import InputError, NodeError
from jaccl_kernel.core.events import HOST, Event, Stage
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.launch import diagnose
from jaccl_kernel.launch.diagnose import Explanation
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.serve.detached import REBOOT, find_running
from jaccl_kernel.steps.verify.live_checks import Process, processes

PATIENCE_S = 5  # between SIGTERM and SIGKILL
END_DEADLINE_S = PATIENCE_S + 15.0
LINE_LENGTH = 300  # a longer line is cut
SHOWN_LOGS = 5

# One process at a time: "PID command". A process with another command line is left alone.
_END = r"""
patience=$1; shift
command_of() {
    if command -v ps >/dev/null 2>&1; then ps -ww -o command= -p "$1"; return; fi
    command=$(tr '\0\n' '  ' <"/proc/$1/cmdline") && printf '%s\n' "${command% }"
}
same() { [ "$(command_of "$1" 2>/dev/null)" = "$2" ]; }
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
class LogFinding:
    """The findings in one rank's log of a job."""

    path: Path
    job: str
    age_s: float
    findings: tuple[Explanation, ...]


@dataclass(frozen=True)
class Stuck:
    """The jobs' processes on one node; `error` says why they are unknown."""

    node: str
    processes: tuple[Process, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Ended:
    """The outcome for a process: ended, killed, gone (before the signal), refused (not ours), or stays."""

    node: str
    pid: int
    outcome: str


@dataclass(frozen=True)
class LookReport:
    """The result of `look`."""

    nodes: tuple[Stuck, ...]
    logs: tuple[LogFinding, ...] = ()
    servers: tuple[str, ...] = ()  # running servers, which are not leftovers: one sentence each

    @property
    def ok(self) -> bool:
        """Whether every node answered, and none runs a process of a job."""
        return not any(node.processes or node.error for node in self.nodes)


@dataclass(frozen=True)
class EndReport:
    """The result of `end`; `note` says what needs a reboot."""

    ended: tuple[Ended, ...]
    errors: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every process has ended."""
        return not self.errors and all(one.outcome in ("ended", "killed", "gone") for one in self.ended)


def explain(text: str, hostfile: str = "FILE") -> list[Explanation]:
    """The known errors in a text, each with every possible cause; primary errors first.

    `hostfile` is its path, for the commands.
    """
    found = diagnose.explain(text, hostfile=hostfile)
    return [replace(one, line=one.line[:LINE_LENGTH]) for one in found]


def read_logs(most: int = SHOWN_LOGS) -> list[LogFinding]:
    """Return the findings in the newest jobs' logs on this machine, the newest job first."""
    found = []
    folders = sorted((cache_dir() / "jobs").glob("*/"), key=lambda path: path.name, reverse=True)
    for path in (log for folder in folders for log in sorted(folder.glob("rank*.log"))):
        try:
            findings = explain(path.read_text(encoding="utf-8", errors="replace"))
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        if findings:
            found.append(LogFinding(path, path.parent.name, age, tuple(findings)))
        if len(found) == most:
            break
    return found


async def look(cluster: Cluster, *, on_event: OnEvent = ignore) -> LookReport:
    """Find the jobs' processes on all nodes at once, and read the last logs."""

    async def one(node: Node) -> Stuck:
        try:
            running = await processes(node, only_own=cluster.rehearsal)
            found = tuple(process for process in running if process.blocks)
        except NodeError as error:
            return Stuck(node.name, error=f"{error.what}. {error.fix}".strip())
        on_event(Event(HOST, Stage("look", f"{node.name}: {len(found)}")))
        return Stuck(node.name, found)

    nodes = await asyncio.gather(*map(one, cluster.nodes))
    servers = (
        f"Server {one.id} is running at {one.url} with ranks of these: `jaccl stop {one.id}` ends it."
        for one in find_running()
    )
    return LookReport(tuple(nodes), tuple(await asyncio.to_thread(read_logs)), tuple(servers))


async def end(
    cluster: Cluster, report: LookReport, *, yes: bool = False, on_event: OnEvent = ignore
) -> EndReport:
    """End the jobs' processes that `look` found, not other programs: SIGTERM, then SIGKILL, on all nodes.

    Raises:
        InputError: it was not confirmed.
    """
    if not yes:
        raise InputError("not confirmed: no process was ended", fix="Check the list, then pass --yes.")

    async def one(node: Node, stuck: Stuck) -> tuple[list[Ended], str]:
        leftover = [process for process in stuck.processes if process.ours]
        if not leftover:
            return [], ""
        words = [word for process in leftover for word in (str(process.pid), process.command)]
        deadline = END_DEADLINE_S + len(leftover) * (PATIENCE_S + 2)
        try:
            done = await node.script(_END, str(PATIENCE_S), *words, deadline=deadline)
        except NodeError as error:
            return [], f"{node.name}: {error.what}"
        ended = [_ended(node.name, line) for line in done.stdout.splitlines() if " " in line]
        for each in ended:
            text = f"{each.node}: {each.pid} {each.outcome}"
            on_event(Event(HOST, Stage("end", text)))
        return ended, ""

    results = await asyncio.gather(*map(one, cluster.nodes, report.nodes))
    ended = tuple(each for some, _ in results for each in some)
    hard = any(each.outcome in ("killed", "stays") for each in ended)
    return EndReport(ended, tuple(error for _, error in results if error), REBOOT if hard else "")


def _ended(node: str, line: str) -> Ended:
    outcome, pid = line.split()
    return Ended(node, int(pid), outcome)
