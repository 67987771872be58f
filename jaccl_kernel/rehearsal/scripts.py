"""The commands of a simulated Mac as sh scripts with prepared output: a scan of four Macs runs 80 at once.

A script matches complete command lines. It rejects unknown ones, or passes them to `typed.py` if the tool can
change the Mac. Pure: `folder.py` writes the scripts.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from jaccl_kernel.rehearsal.changes import TOOLS
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import outputs, python_answer
from jaccl_kernel.topology.tools.commands import PYTHON_PROBE, CommandResult

ROOT = "JACCL_REHEARSAL_ROOT"
"""Set for commands that the simulated sudo runs; it grants no privileges on this machine."""

MARK = "#!/bin/sh\n# REHEARSAL:"
"""The start of every script."""

_HANG = "exec sleep 86400\n"
_PYTHONS = ("python3", "python")
_AS_ROOT = (*sorted(TOOLS), "rdma_ctl", "sh", "true")


def scripts(spec: ClusterSpec, node: int, home: Path, python: str) -> dict[str, str]:
    """The text of each command of one Mac, by its name.

    Args:
        spec: the cluster.
        node: the index of the Mac.
        home: its home; its commands are in `bin`.
        python: the interpreter that its python3 runs.
    """
    mac = spec.macs[node]
    answers: dict[str, dict[str, CommandResult]] = defaultdict(dict)
    for line, answer in outputs(spec, node).items():
        name, _, arguments = line.partition(" ")
        answers[name][arguments] = answer
    typed = shlex.join([python, "-P", "-m", "jaccl_kernel.rehearsal.typed", str(home)])
    made = {"sudo": _sudo(home / "bin")}
    for name in {*answers, *TOOLS}:
        otherwise = f'exec {typed} {name} "$@"\n' if name in TOOLS else _refusal(name)
        made[name] = _script(name, answers[name], otherwise)
    for name in _PYTHONS:
        answer = CommandResult(python_answer(mac, str(home / "bin" / name)))
        made[name] = _script(name, {f"-c {PYTHON_PROBE}": answer}, f'exec {shlex.quote(python)} "$@"\n')
    return made | {name: f"{MARK} {name} hangs\n{_HANG}" for name in mac.hangs}


def _script(name: str, answers: dict[str, CommandResult], otherwise: str) -> str:
    cases = "".join(_cases(answers))
    return f'{MARK} a simulated {name}\ncase "$*" in\n{cases}esac\n{otherwise}'


def _cases(answers: dict[str, CommandResult]) -> Iterator[str]:
    for arguments, answer in answers.items():
        output = f"printf %s {shlex.quote(answer.stdout)}; " if answer.stdout else ""
        output += f"printf %s {shlex.quote(answer.stderr)} >&2; " if answer.stderr else ""
        yield f"{shlex.quote(arguments)}) {output}exit {answer.returncode};;\n"


def _refusal(name: str) -> str:
    return f'echo "{name}: not supported in a rehearsal: {name} $*" >&2\nexit 64\n'


def _sudo(folder: Path) -> str:
    """A simulated sudo, which runs this Mac's own commands with the permission to change the Mac."""
    return f"""{MARK} a simulated sudo
while :; do
    case "${{1-}}" in
    -v|-k) exit 0;;
    -p|-u) shift 2;;
    -*) shift;;
    *) break;;
    esac
done
tool=${{1##*/}}
case "$tool" in
{"|".join(_AS_ROOT)}) shift;;
*) echo "sudo: not supported in a rehearsal: $*" >&2; exit 1;;
esac
PATH={shlex.quote(str(folder))}:$PATH {ROOT}=1 exec "$tool" "$@"
"""
