"""`jaccl troubleshoot`: the meaning of an error, the latest logs, and leftover processes on the Macs."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import Yes, command
from jaccl_kernel.core.errors import InputError


@command
def troubleshoot(
    hostfile: Annotated[Path | None, Parameter(help="Hostfile: find leftover processes on its nodes")] = None,
    *,
    explain: Annotated[
        Path | None,
        Parameter(
            help="Explain the errors in this file; - for stdin", metavar="FILE", allow_leading_hyphen=True
        ),
    ] = None,
    end: Annotated[bool, Parameter(help="End the leftover processes, after confirmation")] = False,
    yes: Yes = False,
) -> int:
    """Explain errors and end leftover processes."""
    from jaccl_kernel.steps import troubleshoot as step

    if explain:
        return _explain(explain, hostfile)
    if hostfile is None:
        if end:
            raise InputError("--end requires a hostfile", fix="Run: jaccl troubleshoot FILE --end")
        return _print_logs(step.read_logs())
    from jaccl_kernel.steps.cluster import Cluster

    cluster = Cluster.read(hostfile)
    reporter = terminal.reporter_for(cluster.hostfile)
    report = reporter.run(step.look(cluster))
    for node in report.nodes:
        count = len(node.processes)
        print(f"{node.node}: {node.error or f'{count} job processes'}")
        for process in node.processes:
            what = process.what if process.ours else f"{process.what} (--end does not end it)"
            print(f"  {process.pid}  {what}, running for {process.age}: {process.command[:120]}")
    for text in report.servers:
        print(text)
    if not end:
        _print_logs(report.logs)
        return 0 if report.ok else 1
    if not any(process.ours for node in report.nodes for process in node.processes):
        return 0 if report.ok else 1
    agreed = terminal.confirm("End these processes?", yes=yes)
    ended = reporter.run(step.end(cluster, report, yes=agreed))
    for one in ended.ended:
        print(f"{one.node}: {one.pid} {one.outcome}")
    for text in (*ended.errors, *([ended.note] if ended.note else [])):
        print(text)
    return 0 if ended.ok else 1


def _explain(path: Path, hostfile: Path | None) -> int:
    from jaccl_kernel.steps.troubleshoot import explain

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    found = explain(text, shlex.quote(str(hostfile)) if hostfile else "FILE")
    if found and found[0].secondary:
        print("No root cause in this text. Possible causes of these lines:")
    for one in found:
        _print_finding(one)
    if not found:
        print("No known error found.")
    return 0 if found else 1


def _print_logs(logs: Any) -> int:
    for log in logs:
        print(f"{log.path}, {log.age_s / 3600:.1f} h old")
        for one in log.findings:
            _print_finding(one)
    if not logs:
        print("No known error in the logs of the latest jobs.")
    return 0


def _print_finding(one: Any) -> None:
    print(f"  {one.line}{' (result of another failure)' if one.secondary else ''}")
    for number, cause in enumerate(one.causes, 1):
        print(f"    cause {number}: {cause.cause}\n      check: {cause.check}\n      fix:   {cause.fix}")
    for source in one.sources:
        print(f"    source: {source}")
