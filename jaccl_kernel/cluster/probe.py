"""Ask every node at once what it is: one read-only script, one round trip a node, a deadline per command.

A node that cannot be reached, and a command that hangs, cost only themselves: they are facts too. What the
answers mean is `assemble.py`'s business; nothing here changes anything on a Mac.
"""

import asyncio
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from jaccl_kernel.cluster.assemble import assemble
from jaccl_kernel.cluster.commands import SEARCH_PATH, Command, CommandResult, commands
from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import CommandTimeout, NodeError

SPARE_S = 15.0  # for ssh and the shell, on top of the slowest command's own deadline
ALARM = 142  # 128 + SIGALRM: how a shell tells that the deadline ended a command

# One perl starts all commands, each under an alarm that outlives exec, so that a deadline is the command's
# own. One that ignores the alarm is killed a second later; one that even that does not end, because it is
# stuck in the kernel, is left there. perl is part of macOS (and of most Linux), `timeout` is not; without
# perl the alarm is a shell's.
# Thunderbolt's facts are asked for in C: other locales translate words and decimal points.
_SCRIPT = r"""
set -u
PATH="$PATH:$1" LC_ALL=C mark=$2
export PATH LC_ALL
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
ask() {
    id=$1 seconds=$2
    shift 2
    "$@" >"$work/$id.out" 2>"$work/$id.err" </dev/null &
    asked=$!
    (sleep "$seconds"; kill -s ALRM "$asked"; sleep 1; kill -s KILL "$asked") >/dev/null 2>&1 &
    alarm=$!
    wait "$asked"
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
    """The facts of all nodes, in their order; `on_node` hears of each as it answers. Never raises for a node.

    Args:
        nodes: whom to ask, all side by side.
        python: the interpreter that jobs run on there.
        on_node: called with a node's number and facts when it has answered or failed.
    """
    asked = commands(python)

    async def one(number: int, node: Node) -> NodeFacts:
        facts = await ask(node, asked)
        on_node(number, facts)
        return facts

    return list(await asyncio.gather(*(one(number, node) for number, node in enumerate(nodes))))


async def ask(node: Node, asked: Sequence[Command]) -> NodeFacts:
    """One node's facts; its `error` says why there are none."""
    ssh = getattr(node, "host", "127.0.0.1")
    mark = f"@@probe-{secrets.token_hex(8)}"
    deadline = max(command.deadline_s for command in asked) + SPARE_S
    began = time.time()
    try:
        done = await node.script(_script(asked), ":".join(SEARCH_PATH), mark, deadline=deadline, check=False)
    except CommandTimeout as error:
        return NodeFacts(node.name, ssh, error=error.what)
    except NodeError as error:
        return NodeFacts(node.name, ssh, error=f"{error.what} Fix: {error.fix}" if error.fix else error.what)
    results = parse_answers(done.stdout, mark)
    if not results:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it wrote nothing"]
        return NodeFacts(node.name, ssh, error=f"the scan's script failed there: {last[0]}")
    # a command ran somewhere between the script's start and end: the middle is wrong by at most half of that
    middle = began + done.seconds / 2
    return assemble(node.name, ssh, {key: replace(one, at=middle) for key, one in results.items()})


def _script(asked: Sequence[Command]) -> str:
    counted = [(one.id, str(round(one.deadline_s)), str(len(one.argv)), *one.argv) for one in asked]
    return _SCRIPT % {
        "counted": shlex.join(word for command in counted for word in command),
        "plain": "".join(
            shlex.join(("ask", one.id, str(round(one.deadline_s)), *one.argv)) + " &\n    " for one in asked
        )
        + "wait",
    }


def parse_answers(text: str, mark: str) -> dict[str, CommandResult]:
    """What the script told, by command id; a section that is cut off or damaged is left out."""
    sections = re.split(
        rf"^{re.escape(mark)} (rc|out|err|end) (\S+)(?: (\d+))?\r?\n", text, flags=re.MULTILINE
    )
    codes: dict[str, int] = {}
    streams: dict[tuple[str, str], str] = {}
    whole: set[str] = set()
    for kind, key, code, body in zip(*(sections[start::4] for start in (1, 2, 3, 4)), strict=True):
        if kind == "rc":
            codes[key] = int(code or 1)
        elif kind in ("out", "err"):
            streams[kind, key] = body.removesuffix("\n")
        else:
            whole.add(key)
    return {
        key: CommandResult(
            stdout=streams.get(("out", key), ""),
            stderr=streams.get(("err", key), ""),
            returncode=None if code == ALARM else code,
            timed_out=code == ALARM,
        )
        for key, code in codes.items()
        if key in whole
    }
