"""Probes all nodes concurrently: one read-only script and one round trip per node, a deadline per command.

An unreachable node or a command that hangs does not affect the others, and is recorded in the facts.
`assemble.py` interprets the output. Nothing here changes anything on a Mac.
"""

import asyncio
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from jaccl_kernel.core.errors import CommandTimeout, NodeError
from jaccl_kernel.nodes.node import SEARCH_PATH, Node
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.tools.assemble import assemble
from jaccl_kernel.topology.tools.commands import Command, CommandResult, commands

SPARE_S = 15.0  # for ssh and the shell, in addition to the longest command deadline
ALARM = 142  # 128 + SIGALRM: the shell's exit status of a command that timed out

# One perl process starts all commands, each with an alarm, which survives exec, so that every command has its
# own deadline. A command that ignores SIGALRM is killed a second later; one that is stuck in the kernel even
# then is abandoned. perl is part of macOS (and of most Linux systems), `timeout` is not; without perl, a
# shell implements the alarm. LC_ALL=C, since other locales translate words and decimal points.
_SCRIPT = r"""
set -u
PATH="$PATH:$1" LC_ALL=C mark=$2
export PATH LC_ALL
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
run() {
    id=$1 seconds=$2
    shift 2
    "$@" >"$work/$id.out" 2>"$work/$id.err" </dev/null &
    pid=$!
    (sleep "$seconds"; kill -s ALRM "$pid"; sleep 1; kill -s KILL "$pid") >/dev/null 2>&1 &
    alarm=$!
    wait "$pid"
    code=$?
    kill "$alarm" 2>/dev/null
    case $code in 137) code=142 ;; esac
    echo "$code" >"$work/$id.rc"
}
if command -v perl >/dev/null; then
    perl -e '
        use POSIX ":sys_wait_h";
        my ($work, %%id, %%end) = shift;
        while (@ARGV) {
            my ($id, $seconds, $words) = splice @ARGV, 0, 3;
            my @command = splice @ARGV, 0, $words;
            my $pid = fork;
            if (!$pid) {
                open STDIN, "<", "/dev/null";
                open STDOUT, ">", "$work/$id.out";
                open STDERR, ">", "$work/$id.err";
                alarm $seconds;
                { exec { $command[0] } @command; }
                print STDERR "$command[0]: command not found\n";
                exit 127;
            }
            $id{$pid} = $id;
            $end{$pid} = time + $seconds + 1;
        }
        while (%%id) {
            my $pid = waitpid -1, WNOHANG;
            my $status = $? & 127 ? 128 + ($? & 127) : $? >> 8;
            if ($pid <= 0) {
                select undef, undef, undef, 0.02;
                ($pid) = grep { time > $end{$_} } keys %%id or next;
                kill "KILL", $pid;
                $status = 142;
            }
            next unless exists $id{$pid};
            open my $rc, ">", "$work/$id{$pid}.rc";
            print $rc $status;
            delete $id{$pid};
        }
    ' "$work" %(counted)s
else
    %(plain)s
fi
for rc in "$work"/*.rc; do
    id=${rc%%.rc}
    name=${id##*/}
    printf '%%s rc %%s %%s\n' "$mark" "$name" "$(cat "$rc")"
    for stream in out err; do
        printf '%%s %%s %%s\n' "$mark" "$stream" "$name"
        cat "$id.$stream" 2>/dev/null
        printf '\n'
    done
    printf '%%s end %%s\n' "$mark" "$name"
done
"""


async def probe(
    nodes: Sequence[Node],
    *,
    python: str = "python3",
    on_node: Callable[[int, NodeFacts], None] = lambda number, facts: None,
) -> list[NodeFacts]:
    """Return the facts of all nodes, in order. Does not raise if a node fails; see `NodeFacts.error`.

    Args:
        nodes: the nodes to probe, all concurrently.
        python: the interpreter on the nodes that jobs will use.
        on_node: called with the index and facts of each node as soon as its probe has finished or failed.
    """
    scan = commands(python)

    async def one(number: int, node: Node) -> NodeFacts:
        facts = await probe_node(node, scan)
        on_node(number, facts)
        return facts

    return list(await asyncio.gather(*(one(number, node) for number, node in enumerate(nodes))))


async def probe_node(node: Node, scan: Sequence[Command]) -> NodeFacts:
    """Return the facts of one node; `error` is the reason if the probe failed."""
    ssh = getattr(node, "host", "127.0.0.1")
    mark = f"@@probe-{secrets.token_hex(8)}"
    deadline = max(command.deadline_s for command in scan) + SPARE_S
    began = time.time()
    try:
        done = await node.script(_script(scan), ":".join(SEARCH_PATH), mark, deadline=deadline, check=False)
    except CommandTimeout as error:
        return NodeFacts(node.name, ssh, error=error.what)
    except NodeError as error:
        return NodeFacts(node.name, ssh, error=f"{error.what} Fix: {error.fix}" if error.fix else error.what)
    results = parse_results(done.stdout, mark)
    if not results:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        return NodeFacts(node.name, ssh, error=f"the scan script failed: {last[0]}")
    # a command ran between the script's start and end: the middle is off by at most half of that time
    middle = began + done.seconds / 2
    return assemble(node.name, ssh, {key: replace(one, at=middle) for key, one in results.items()})


def _script(scan: Sequence[Command]) -> str:
    counted = [(one.id, str(round(one.deadline_s)), str(len(one.argv)), *one.argv) for one in scan]
    return _SCRIPT % {
        "counted": shlex.join(word for command in counted for word in command),
        "plain": "".join(
            shlex.join(("run", one.id, str(round(one.deadline_s)), *one.argv)) + " &\n    " for one in scan
        )
        + "wait",
    }


def parse_results(text: str, mark: str) -> dict[str, CommandResult]:
    """The script's results by command id; incomplete or damaged sections are skipped."""
    sections = re.split(
        rf"^{re.escape(mark)} (rc|out|err|end) (\S+)(?: (\d+))?\r?\n", text, flags=re.MULTILINE
    )
    codes: dict[str, int] = {}
    streams: dict[tuple[str, str], str] = {}
    complete: set[str] = set()
    for kind, key, code, body in zip(*(sections[start::4] for start in (1, 2, 3, 4)), strict=True):
        if kind == "rc":
            codes[key] = int(code or 1)
        elif kind in ("out", "err"):
            streams[kind, key] = body.removesuffix("\n")
        else:
            complete.add(key)
    return {
        key: CommandResult(
            stdout=streams.get(("out", key), ""),
            stderr=streams.get(("err", key), ""),
            returncode=None if code == ALARM else code,
            timed_out=code == ALARM,
        )
        for key, code in codes.items()
        if key in complete
    }
