"""Verify's gates that touch the Macs: imports, the meeting at rank 0, other jobs, and the ranks themselves.

Nothing is changed and nobody else's process is ended; what is started here is gone when a gate returns.
"""

import asyncio
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.cluster.check import check
from jaccl_kernel.cluster.compare import UNTESTED
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.problem import Problem
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.cluster.wiring import Wiring
from jaccl_kernel.errors import CommandFailed, JobError, NodeError
from jaccl_kernel.jobs.run import Deadlines, OnEvent, Outcome, run
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.gates import Gate, address_problems, judge, not_tested
from jaccl_kernel.steps.meeting import Meeting, meet

SLOWEST_RDMA_S = 1e-3
"""A 4 KB all_sum over JACCL takes tens of microseconds (field guide: 25); a millisecond is TCP's pace."""

IMPORT_DEADLINE_S = 45.0
PS_DEADLINE_S = 20.0

_IMPORT = "import jaccl_kernel.ranks.smoke"
_JOBS = (
    (r"\bjaccl_kernel\.ranks\b", "a rank of a job"),
    (r"\bjaccl_kernel\.jobs\.launcher\b", "a job's launcher"),
    (r"\bmlx\.launch\b|\bmlx[./]_distributed_utils\b", "mlx.launch"),
    (r"[Pp]ython[\d.]*\s(.*\s)?(-m\s*|\S*/)mlx_lm([./]|\s|$)", "a program of mlx_lm"),
)
_LAUNCHED = "a rank by its environment (MLX_RANK)"
# What only carries or reads such a command line: shells and ssh around a rank, and people who look for it.
_CARRIERS = ("sh", "bash", "zsh", "dash", "fish", "ssh", "sshd", "env", "sudo", "tee", "script", "timeout")
_READERS = ("grep", "egrep", "rg", "less", "more", "tail", "vi", "vim", "nano", "ps", "watch", "pgrep")
# All processes; then, as `launched PID`, those that were started as a rank, whatever they run. Only this
# user's own tell their environment.
_PS = r"""
ps -axww -o pid= -o etime= -o command= || exit
if [ -r /proc/self/environ ]; then
    grep -lszE '^(MLX|JACCL)_RANK=' /proc/[0-9]*/environ | sed 's,^/proc/\([0-9]*\)/.*,launched \1,'
else
    export LC_ALL=C  # its sed refuses bytes that are no text elsewhere
    ps -axwwE -o pid= -o command= | sed -n -E 's/^ *([0-9]+) .* (MLX|JACCL)_RANK=.*/launched \1/p'
fi 2>/dev/null
exit 0
"""
# Simulated Macs share this machine's processes: one belongs to the Mac whose home is its HOME.
_OWN = r"""
for pid; do
    if [ -r "/proc/$pid/environ" ]; then
        around=$(tr '\0' ' ' <"/proc/$pid/environ")
    else
        around=$(ps -E -ww -o command= -p "$pid")
    fi
    case " $around " in *" HOME=$HOME "*) echo "$pid";; esac
done 2>/dev/null
"""


@dataclass(frozen=True)
class Process:
    """A process on a node: its id, how long it has run as `ps` writes it, its command line, what it is."""

    pid: int
    age: str
    command: str
    what: str


async def import_problems(nodes: Sequence[Node], wiring: Wiring, python: str) -> list[Problem]:
    """The nodes whose Python does not import this package; those that gave no facts are passed over."""

    async def one(number: int) -> Problem | None:
        try:
            await nodes[number].run([python, "-c", _IMPORT], deadline=IMPORT_DEADLINE_S)
        except CommandFailed as error:
            text = f"jaccl_kernel does not import there: {error.output or error.what}."
            fix = "Make the same environment on that Mac (notebook 02), or name another with --python."
            return Problem("no-import", "error", wiring.labels[number], text, fix)
        except NodeError as error:
            return Problem(UNTESTED, "warning", wiring.labels[number], error.what, error.fix)
        return None

    found = await asyncio.gather(*(one(number) for number in _answering(wiring)))
    return [problem for problem in found if problem]


async def coordinator(
    cluster: Cluster, hostfile: Hostfile, wiring: Wiring, *, backend: str, python: str
) -> Gate:
    """Whether rank 0's address is its own, and answers the others; over TCP, each neighbour's.

    Args:
        cluster: its own hostfile holds the addresses that the ranks will really use.
        hostfile: what real Macs would have: the same, but for a rehearsal.
        wiring: the facts, by which the address is judged.
        backend: what `hostfile` is meant for.
        python: what listens and calls.
    """
    if not hostfile.coordinator and not any(hostfile.rdma) and backend != "ring":
        fix = "Write the hostfile: notebook 03, or `jaccl hostfile write`."
        return not_tested("coordinator", "The hostfile has no address of rank 0 yet.", fix)
    problems = address_problems(hostfile, wiring, backend=backend)
    if cluster.rehearsal:
        problems += [p for p in check(cluster.hostfile, environ={}) if p.code.startswith("ips-")]
    if any(problem.severity == "error" for problem in problems):
        return judge("coordinator", problems, "")
    answering = _answering(wiring)
    problems += [
        Problem(UNTESTED, "warning", label, "It did not answer, so its way to rank 0 is not tested.", "")
        for number, label in enumerate(wiring.labels)
        if number not in answering
    ]
    meetings = _meetings(cluster.hostfile, everyone=backend == "ring")
    for meeting in meetings:
        callers = tuple(caller for caller in meeting.callers if caller in answering)
        if meeting.host in answering:
            asked = Meeting(meeting.host, meeting.address, callers)
            problems += await meet(asked, cluster.nodes, wiring.labels, python)
    at = f"{meetings[0].address}" if len(meetings) == 1 else "every address"
    named = f" (for the simulated {hostfile.coordinator})" if cluster.rehearsal else ""
    heard = "the other Mac" if len(wiring.nodes) == 2 else f"all {len(wiring.nodes) - 1} others"
    who = heard if len(meetings) == 1 else "its neighbour"
    proof = f"A listener at {at}{named} on {wiring.labels[0]} was reached by {who}, on a port of its own."
    return judge("coordinator", problems, proof)


async def stale(cluster: Cluster, wiring: Wiring) -> Gate:
    """Whether any Mac runs ranks or launchers already: two jobs share neither devices nor addresses."""
    problems: list[Problem] = []

    async def one(number: int) -> None:
        node, label = cluster.nodes[number], wiring.labels[number]
        try:
            found = await processes(node, only_own=cluster.rehearsal)
        except NodeError as error:
            problems.append(Problem(UNTESTED, "warning", label, error.what, error.fix))
            return
        for process in found:
            text = f"process {process.pid} is {process.what}, up for {process.age}: {process.command[:160]}"
            fix = (
                "If it is a job that you want, wait for it. If nobody owns it any more, end it on "
                f"{label}: kill {process.pid}"
            )
            problems.append(Problem("stale-job", "error", label, text, fix))

    answering = _answering(wiring)
    await asyncio.gather(*(one(number) for number in answering))
    problems += [
        Problem(UNTESTED, "warning", label, "It did not answer, so its processes are not known.", "")
        for number, label in enumerate(wiring.labels)
        if number not in answering
    ]
    looked = (
        "jaccl_kernel's ranks and launchers, mlx.launch, mlx_lm, and what has MLX_RANK in its environment"
    )
    who = "the last among this user's processes only"
    return judge("stale", problems, f"On no Mac runs any of: {looked} ({who}).")


async def processes(node: Node, *, only_own: bool = False) -> list[Process]:
    """The jobs' processes on a node, of whatever user.

    Args:
        node: where to look.
        only_own: only those whose home is the node's, as for simulated Macs.

    Raises:
        NodeError: the node did not tell.
    """
    listed = (await node.script(_PS, deadline=PS_DEADLINE_S)).stdout.splitlines()
    launched = {line.removeprefix("launched ") for line in listed if line.startswith("launched ")}
    found = [process for line in listed if (process := _process(line, launched))]
    if found and only_own:
        pids = [str(process.pid) for process in found]
        own = (await node.script(_OWN, *pids, deadline=PS_DEADLINE_S, check=False)).stdout.split()
        found = [process for process in found if str(process.pid) in own]
    return found


async def ranks(
    spec: JobSpec, on_event: OnEvent, deadlines: Deadlines | None
) -> tuple[list[Gate], Outcome | None]:
    """Run the smallest job on all ranks, and say what it proves: the group, its sums, a first latency."""
    try:
        outcome = await run(spec, what="verify", on_event=on_event, deadlines=deadlines)
    except JobError as error:
        return after_failure(error), None
    return judge_outcome(spec, outcome.results), outcome


def judge_outcome(spec: JobSpec, results: Sequence[dict[str, Any]]) -> list[Gate]:
    """The gates of a job that ended well: every rank checked the size and the sums before it went on."""
    size = spec.size
    if size == 1:
        return [judge("group", [], "One rank ran alone: there is no group to join, and none is needed.")]
    told = [Problem("group-size", "error", spec.names()[rank], f"It joined a group of {one.get('size')}.", "")
            for rank, one in enumerate(results) if one.get("size") != size]  # fmt: skip
    over = f"over {spec.backend}, on {', '.join(spec.names())}"
    return [
        judge("group", told, f"{size} ranks joined one group of {size}, {over}; each checked its size."),
        judge(
            "sums", [], f"all_sum and all_gather of 1024 values that differ by rank were right on all {size}."
        ),
        latency(spec, [one.get("latency_s") for one in results]),
    ]


def latency(spec: JobSpec, figures: Sequence[object]) -> Gate:
    """The gate of the median 4 KB all_sum of each rank, in seconds."""
    missing = [name for name, one in zip(spec.names(), figures, strict=True) if not isinstance(one, float)]
    if missing:
        problems = [
            Problem("no-latency", "error", name, "It told no latency.", "Run it again.") for name in missing
        ]
        return judge("latency", problems, "")
    slowest = max(one for one in figures if isinstance(one, float))
    if spec.backend != "ring" and slowest > SLOWEST_RDMA_S:
        text = f"A 4 KB all_sum takes {_shown(slowest)}: RDMA takes tens of us, this is the pace of TCP."
        fix = "Look at the link speeds (80 Gb/s), the power mode, and what else runs on the Macs."
        return judge("latency", [Problem("slow", "error", spec.backend, text, fix)], "")
    told = f"A 4 KB all_sum takes {_shown(slowest)} (median on the slowest rank) over {spec.backend}."
    return judge("latency", [], told)


def after_failure(error: JobError) -> list[Gate]:
    """The gates of a job that failed: what its error tells, and what was not reached."""
    fix = error.fix or "Read the ranks' logs; their folder was told when the job started."
    problem = Problem("job-failed", "error", error.where or "ranks", f"{error.what}.", fix)
    if re.search(r"all_(sum|gather) over \d+ ranks gave wrong", error.what):
        group = judge("group", [], "The ranks joined one group of the right size.")
        late = not_tested("latency", "The sums are wrong: a latency would mean nothing.")
        return [group, judge("sums", [problem], ""), late]
    why = "The ranks did not join one group."
    return [judge("group", [problem], ""), not_tested("sums", why), not_tested("latency", why)]


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= SLOWEST_RDMA_S else f"{seconds * 1e6:.1f} us"


def _answering(wiring: Wiring) -> tuple[int, ...]:
    return tuple(number for number, node in enumerate(wiring.nodes) if node.error is None)


def _meetings(hostfile: Hostfile, *, everyone: bool) -> list[Meeting]:
    """Who must be reached by whom: rank 0 by all (JACCL); in a TCP ring, each by the one before it."""
    size = len(hostfile)
    if not everyone:
        return [Meeting(0, hostfile.hosts[0].ips[0], tuple(range(1, size)))]
    return [Meeting(rank, host.ips[0], ((rank - 1) % size,)) for rank, host in enumerate(hostfile.hosts)]


def _process(line: str, launched: Collection[str] = ()) -> Process | None:
    pid, age, command = ([*line.split(None, 2), "", "", ""])[:3]
    otherwise = _LAUNCHED if pid in launched else None
    what = next((what for pattern, what in _JOBS if re.search(pattern, command)), otherwise)
    program = command.split(" ", 1)[0].rpartition("/")[2].lstrip("-").rstrip(":")
    if what is None or not pid.isdigit() or program in (*_CARRIERS, *_READERS):
        return None
    return Process(int(pid), age, command, what)
