"""Verify's checks that run commands on the Macs: imports, coordinator, other jobs, and a job on the ranks.

They change nothing and end no foreign process; each process that a check starts has ended when it returns.
"""

import asyncio
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jaccl_kernel.core.errors import CommandFailed, JobError, NodeError
from jaccl_kernel.core.events import SmokeResult
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.hostfile.problem import Problem, Severity
from jaccl_kernel.launch.run import Deadlines, OnEvent, Outcome, run
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.verify.checks import Check, address_problems, judge, not_tested
from jaccl_kernel.steps.verify.reachability import Endpoint, check_endpoint
from jaccl_kernel.topology.compare import UNTESTED
from jaccl_kernel.topology.wiring import Wiring

SLOWEST_RDMA_S = 1e-3
"""A 4 KB all_sum over JACCL takes tens of microseconds (field guide: 25); a millisecond is typical of TCP."""

IMPORT_DEADLINE_S = 45.0
PS_DEADLINE_S = 20.0

_IMPORT = "import jaccl_kernel.ranks.smoke"


def _program(name: str, end: str = r"[.\s]|$") -> str:
    """A pattern for a command line that runs a program, or a Python module or script, of that name."""
    return rf"^(\S*/)?{name}(\s|$)|[Pp]ython[\d.]*\s(.*\s)?(-m\s*|\S*/){name}({end})"


_JOBS = (
    (r"\bjaccl_kernel\.ranks\b", "a rank of a job"),
    (r"\bjaccl_kernel\.launch\.launcher\b", "a job's launcher"),
    (r"\bmlx\.launch\b|\bmlx[./]_distributed_utils\b", "mlx.launch"),
    (_program("mlx_lm", r"[./\s]|$"), "a program of mlx_lm"),
)
_OTHERS = (  # other people's programs that hold RDMA devices or the GPU: reported, never ended
    (_program("mlx_vlm", r"[./\s]|$"), "a program of mlx_vlm"),
    (_program("exo") + r"|/EXO\.app/|/exo/(\w+/)*(main|__main__)\.py|\bexo[-_.]?network", "exo"),
    (_program("omlx", r"[./\s]|$") + r"|/oMLX\.app/", "oMLX"),
    (r"\bmlx-jaccl|\bjaccl[-_]cluster|\bopenai_cluster_server|\bcluster_server\.py", "an MLX cluster server"),
    (_program(r"(vllm|rapid)[-_]mlx") + "|" + _program(r"mlx[-_]openai[-_]server"), "another MLX server"),
)
_LM_STUDIO = "LM Studio"  # uses the GPU's memory, but no RDMA device
_LM_STUDIO_COMMAND = r"/LM Studio( Helper.*)?\.app/|/\.lmstudio/|^(\S*/)?lms\s+server\b"
_LAUNCHED = "a rank by its environment (MLX_RANK)"
# Programs that only have such a command line as an argument: shells and ssh around a rank, and viewers.
_CARRIERS = ("sh", "bash", "zsh", "dash", "fish", "ssh", "sshd", "env", "sudo", "tee", "script", "timeout")
_READERS = ("grep", "egrep", "rg", "less", "more", "tail", "vi", "vim", "nano", "ps", "watch", "pgrep")
# All processes; then, as `launched PID`, those with a rank's environment, whatever they run. Only this user's
# own processes show their environment. A small Linux system has no ps: there, field 22 of `stat` (the 20th
# after the name) is the start time, in hundredths of a second.
_PS = r"""
if command -v ps >/dev/null 2>&1; then
    ps -axww -o pid= -o etime= -o command= || exit
else
    read -r up rest </proc/uptime || exit
    for at in /proc/[0-9]*; do
        command=$(tr '\0\n' '  ' <"$at/cmdline") && read -r stat <"$at/stat" && [ -n "$command" ] || continue
        set -- ${stat##*) }
        printf '%s %ss %s\n' "${at#/proc/}" "$((${up%.*} - ${20} / 100))" "${command% }"
    done 2>/dev/null
fi
if [ -r /proc/self/environ ]; then
    grep -lszE '^(MLX|JACCL)_RANK=' /proc/[0-9]*/environ | sed 's,^/proc/\([0-9]*\)/.*,launched \1,'
else
    export LC_ALL=C  # in other locales its sed rejects invalid bytes
    ps -axwwE -o pid= -o command= | sed -n -E 's/^ *([0-9]+) .* (MLX|JACCL)_RANK=.*/launched \1/p'
fi 2>/dev/null
exit 0
"""
# Simulated Macs share this machine's processes: each belongs to the Mac whose home folder is its HOME.
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
    """A process on a node: its id, its age as `ps` prints it, its command line, and its kind.

    `blocks` is whether it may hold RDMA devices, so that no job can run beside it; `ours` whether it belongs
    to a job of this package, mlx.launch or mlx_lm, and not to another program.
    """

    pid: int
    age: str
    command: str
    what: str
    blocks: bool = True
    ours: bool = True


async def import_problems(nodes: Sequence[Node], wiring: Wiring, python: str) -> list[Problem]:
    """Return the nodes whose Python cannot import this package; skips nodes without facts."""

    async def one(number: int) -> Problem | None:
        try:
            await nodes[number].run([python, "-c", _IMPORT], deadline=IMPORT_DEADLINE_S)
        except CommandFailed as error:
            text = f"Importing jaccl_kernel failed: {error.output or error.what}."
            fix = "Create the same environment on that Mac (notebook 02), or name another with --python."
            return Problem("no-import", "error", wiring.labels[number], text, fix)
        except NodeError as error:
            return Problem(UNTESTED, "warning", wiring.labels[number], error.what, error.fix)
        return None

    found = await asyncio.gather(*(one(number) for number in _answering(wiring)))
    return [problem for problem in found if problem]


async def coordinator(
    cluster: Cluster, hostfile: Hostfile, wiring: Wiring, *, backend: str, python: str
) -> Check:
    """Check that rank 0's address belongs to it and is reachable by the others; over TCP, each neighbor's.

    Args:
        cluster: its hostfile has the addresses that the ranks use.
        hostfile: the hostfile that real Macs would have: different only for a rehearsal.
        wiring: the facts.
        backend: the backend of `hostfile`.
        python: the interpreter that listens and connects.
    """
    if not hostfile.coordinator and not any(hostfile.rdma) and backend != "ring":
        fix = "Write the hostfile: notebook 03, or `jaccl hostfile write`."
        return not_tested("coordinator", "The hostfile has no coordinator address yet.", fix)
    problems = address_problems(hostfile, wiring, backend=backend)
    if cluster.rehearsal:
        problems += [p for p in check(cluster.hostfile, environ={}) if p.code.startswith("ips-")]
    if any(problem.severity == "error" for problem in problems):
        return judge("coordinator", problems, "")
    answering = _answering(wiring)
    problems += [
        Problem(
            UNTESTED, "warning", label, "It did not answer, so its connection to rank 0 is not tested.", ""
        )
        for number, label in enumerate(wiring.labels)
        if number not in answering
    ]
    endpoints = _endpoints(cluster.hostfile, everyone=backend == "ring")
    for endpoint in endpoints:
        callers = tuple(caller for caller in endpoint.callers if caller in answering)
        if endpoint.host in answering:
            reachable = Endpoint(endpoint.host, endpoint.address, callers)
            problems += await check_endpoint(reachable, cluster.nodes, wiring.labels, python)
    at = f"{endpoints[0].address}" if len(endpoints) == 1 else "every address"
    named = f" (for the simulated {hostfile.coordinator})" if cluster.rehearsal else ""
    others = "The other Mac" if len(wiring.nodes) == 2 else f"All {len(wiring.nodes) - 1} others"
    who = others if len(endpoints) == 1 else "Each neighbor"
    proof = f"{who} connected to a test listener at {at}{named} on {wiring.labels[0]}."
    return judge("coordinator", problems, proof)


async def stale(cluster: Cluster, wiring: Wiring) -> Check:
    """Check that no Mac runs ranks or launchers: two jobs cannot share devices or addresses."""
    problems: list[Problem] = []

    async def one(number: int) -> None:
        node, label = cluster.nodes[number], wiring.labels[number]
        try:
            found = await processes(node, only_own=cluster.rehearsal)
        except NodeError as error:
            problems.append(Problem(UNTESTED, "warning", label, error.what, error.fix))
            return
        for process in found:
            text = (
                f"Process {process.pid} is {process.what}, running for {process.age}: {process.command[:160]}"
            )
            fix = (
                "If it is a job that you need, wait for it. If it is a leftover process, end it on "
                f"{label}: kill {process.pid}"
            )
            severity: Severity = "error"
            if not process.blocks:
                severity, fix = "warning", f"It uses memory of the GPU: quit {process.what} on {label}."
            problems.append(Problem("stale-job", severity, label, text, fix))

    answering = _answering(wiring)
    await asyncio.gather(*(one(number) for number in answering))
    problems += [
        Problem(UNTESTED, "warning", label, "It did not answer, so its processes are unknown.", "")
        for number, label in enumerate(wiring.labels)
        if number not in answering
    ]
    kinds = ", ".join(what for _, what in (*_JOBS, *_OTHERS))
    searched = f"none of these runs: {kinds}, or a process of this user with MLX_RANK in its environment"
    return judge("stale", problems, f"Searched all Macs: {searched}.")


async def processes(node: Node, *, only_own: bool = False) -> list[Process]:
    """Return the jobs' processes on a node, of all users.

    Args:
        node: the node.
        only_own: only processes with the node's home folder, for simulated Macs.

    Raises:
        NodeError: the processes could not be listed.
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
) -> tuple[list[Check], Outcome | None]:
    """Run a minimal job on all ranks. Returns its checks: the group, the sums and the latency."""
    try:
        outcome = await run(spec, what="verify", on_event=on_event, deadlines=deadlines)
    except JobError as error:
        return after_failure(error), None
    return judge_outcome(spec, outcome.results_of(SmokeResult)), outcome


def judge_outcome(spec: JobSpec, results: Sequence[SmokeResult]) -> list[Check]:
    """Return the checks of a successful job: every rank checked the size and the sums."""
    size = spec.size
    if size == 1:
        return [judge("group", [], "One rank ran alone: it needs no group.")]
    bad = [Problem("group-size", "error", spec.names()[rank], f"It joined a group of {one.size}.", "")
            for rank, one in enumerate(results) if one.size != size]  # fmt: skip
    over = f"over {spec.backend}, on {', '.join(spec.names())}"
    return [
        judge("group", bad, f"{size} ranks joined one group of {size}, {over}; each checked its size."),
        judge(
            "sums",
            [],
            "all_sum and all_gather of rank-dependent values, from 4 KB to "
            f"{_bytes(max(4096, *(one.proven_bytes for one in results)))}, were correct on {size} Macs.",
        ),
        latency(spec, [one.latency_s for one in results]),
    ]


def latency(spec: JobSpec, figures: Sequence[object]) -> Check:
    """Check the median 4 KB all_sum of each rank, in seconds."""
    missing = [name for name, one in zip(spec.names(), figures, strict=True) if not isinstance(one, float)]
    if missing:
        problems = [
            Problem("no-latency", "error", name, "It reported no latency.", "Run it again.")
            for name in missing
        ]
        return judge("latency", problems, "")
    slowest = max(one for one in figures if isinstance(one, float))
    if spec.backend != "ring" and slowest > SLOWEST_RDMA_S:
        text = f"A 4 KB all_sum takes {_shown(slowest)}: typical of TCP; RDMA takes tens of us."
        fix = "Check the link speeds (80 Gb/s), the power mode, and other processes on the Macs."
        return judge("latency", [Problem("slow", "error", spec.backend, text, fix)], "")
    proof = f"A 4 KB all_sum takes {_shown(slowest)} (median on the slowest rank) over {spec.backend}."
    return judge("latency", [], proof)


def after_failure(error: JobError) -> list[Check]:
    """Return the checks of a failed job: its error, and the checks that did not run."""
    fix = error.fix or "Read the ranks' logs; the job printed their folder when it started."
    problem = Problem("job-failed", "error", error.where or "ranks", f"{error.what}.", fix)
    if re.search(r"all_(sum|gather) over \d+ ranks gave wrong", error.what):
        group = judge("group", [], "The ranks joined one group of the right size.")
        late = not_tested("latency", "Skipped, because the sums are wrong.")
        return [group, judge("sums", [problem], ""), late]
    why = "The ranks did not join one group."
    return [judge("group", [problem], ""), not_tested("sums", why), not_tested("latency", why)]


def _bytes(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= SLOWEST_RDMA_S else f"{seconds * 1e6:.1f} us"


def _answering(wiring: Wiring) -> tuple[int, ...]:
    return tuple(number for number, node in enumerate(wiring.nodes) if node.error is None)


def _endpoints(hostfile: Hostfile, *, everyone: bool) -> list[Endpoint]:
    """Return the required connections: all to rank 0 (JACCL); in a TCP ring, each to the next."""
    size = len(hostfile)
    if not everyone:
        return [Endpoint(0, hostfile.hosts[0].ips[0], tuple(range(1, size)))]
    return [Endpoint(rank, host.ips[0], ((rank - 1) % size,)) for rank, host in enumerate(hostfile.hosts)]


def _process(line: str, launched: Collection[str] = ()) -> Process | None:
    pid, age, command = ([*line.split(None, 2), "", "", ""])[:3]
    otherwise = _LAUNCHED if pid in launched else None
    what = next((what for pattern, what in _JOBS if re.search(pattern, command)), otherwise)
    ours = what is not None
    if what is None:
        what = next((what for pattern, what in _OTHERS if re.search(pattern, command)), None)
    if what is None and re.search(_LM_STUDIO_COMMAND, command):
        what = _LM_STUDIO
    program = command.split(" ", 1)[0].rpartition("/")[2].lstrip("-").rstrip(":")
    if what is None or not pid.isdigit() or program in (*_CARRIERS, *_READERS):
        return None
    return Process(int(pid), age, command, what, blocks=what != _LM_STUDIO, ours=ours)
