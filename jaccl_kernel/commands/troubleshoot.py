"""`jaccl troubleshoot`: what a text means, what the last logs tell, and stuck jobs on the Macs."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaccl_kernel.commands import terminal
from jaccl_kernel.errors import InputError


def add(commands: Any) -> None:
    """Add `jaccl troubleshoot`."""
    trouble = commands.add_parser(
        "troubleshoot",
        help="what an error means, what the last jobs' logs tell, stuck jobs on the Macs (--end ends them)",
    )
    trouble.add_argument("hostfile", type=Path, nargs="?", help="look for jobs that are left on its nodes")
    trouble.add_argument("--explain", type=Path, metavar="FILE", help="what its text means; - for stdin")
    trouble.add_argument("--end", action="store_true", help="end what is left there, after a yes")
    trouble.add_argument("--yes", action="store_true", help="the yes")
    trouble.set_defaults(run=_troubleshoot)


def _troubleshoot(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps import troubleshoot

    if options.explain:
        return _explain(options.explain)
    if options.hostfile is None:
        if options.end:
            raise InputError("--end needs a hostfile", fix="jaccl troubleshoot FILE --end")
        return _logs(troubleshoot.read_logs())
    from jaccl_kernel.steps.cluster import Cluster

    cluster = Cluster.read(options.hostfile)
    terminal.tell_rehearsal(cluster.hostfile, terminal.Teller(sys.stderr))
    report = terminal.wait_for(troubleshoot.look(cluster))
    for node in report.nodes:
        count = len(node.processes)
        print(f"{node.node}: {node.error or f'{count} processes of jobs'}")
        for process in node.processes:
            print(f"  {process.pid}  {process.what}, up for {process.age}: {process.command[:120]}")
    for told in report.servers:
        print(told)
    if not options.end:
        _logs(report.logs)
        return 0 if report.ok else 1
    if not any(node.processes for node in report.nodes):
        return 0 if report.ok else 1
    ended = terminal.wait_for(troubleshoot.end(cluster, report, yes=options.yes or _agreed()))
    for one in ended.ended:
        print(f"{one.node}: {one.pid} {one.outcome}")
    for told in (*ended.errors, *([ended.note] if ended.note else [])):
        print(told)
    return 0 if ended.ok else 1


def _explain(path: Path) -> int:
    from jaccl_kernel.steps.troubleshoot import explain

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    found = explain(text)
    for one in found:
        _tell(one)
    if not found:
        print("Nothing in it is known here.")
    return 0 if found else 1


def _logs(logs: Any) -> int:
    for log in logs:
        print(f"{log.path}, {log.age_s / 3600:.1f} h old")
        for one in log.findings:
            _tell(one)
    if not logs:
        print("The last jobs' logs hold no error that is known here.")
    return 0


def _tell(one: Any) -> None:
    after = " (follows from another rank's end)" if one.secondary else ""
    print(f"  {one.line}\n    means: {one.cause}{after}\n    fix:   {one.fix}")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("End these processes? [y/N] ").strip().lower() in ("y", "yes")
