"""`jaccl sync`: one model on every node."""

from typing import TYPE_CHECKING

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import HostfileArgument, Json, command
from jaccl_kernel.core.options import SyncOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaccl_kernel.core.events import Event
    from jaccl_kernel.steps.sync.report import NodeSync, SyncReport


@command
def sync(hostfile: HostfileArgument, options: SyncOptions, *, json: Json = False) -> int:
    """Copy, and print the table or the record."""
    from jaccl_kernel.steps.cluster import Cluster
    from jaccl_kernel.steps.sync.sync import sync as copy

    cluster = Cluster.read(hostfile)
    reporter = terminal.reporter_for(cluster.hostfile)
    report = reporter.run(copy(cluster, options, on_event=_on_event(reporter)))
    if json:
        terminal.print_json(report.record)
    else:
        _print(report)
    return 0 if report.ok else 1


def _print(report: "SyncReport") -> None:
    """Print the report: a table, then the notes and fixes of each node."""
    from jaccl_kernel.steps.sync.report import COLUMNS, kept_words, rows

    record = report.record
    size = f"{record['bytes'] / 1e9:.2f} GB in {record['files']} files"
    print(f"{record['model']}: {size}, sha256 {record['digest'][:16]}…")
    terminal.print_table(COLUMNS, rows(report.nodes))
    for node in report.nodes:
        for note in node.notes:
            print(f"{node.node}: {note}")
        if node.kept:
            print(f"{node.node}: {kept_words(node.kept)}")
        if node.fix:
            print(f"{node.node}: Fix: {node.fix}")
    if report.ok:
        print(f"Complete on every node, checksums match: {record['path']}")
    print(f"Record: {report.path}")


def _on_event(reporter: terminal.Reporter) -> "Callable[[Event], None]":
    """Report the states and the fit as lines, and each copy and checksum as progress."""
    from jaccl_kernel.steps.sync.events import (
        CopyKept,
        CopyProgress,
        FitChecked,
        HashProgress,
        NodeFinished,
        NodesFound,
    )  # fmt: skip
    from jaccl_kernel.steps.sync.report import kept_words

    def on_event(event: "Event") -> None:
        match event.body:
            case NodesFound(nodes):
                for node in nodes:
                    reporter.note(f"[{node.node}] {node.state}{_reason(node)}")
            case FitChecked(findings):
                for finding in findings:
                    reporter.note(f"[{finding.node or 'model'}] {finding.what}. {finding.fix}".rstrip())
            case HashProgress(name, stage, done, total):
                reporter.progress(name, "checksum", done / max(total, 1), f"checksum {stage}")
            case CopyProgress(name, route, done, total, rate, eta_s):
                speed = f", {rate / 1e6:.0f} MB/s" if rate else ""
                remaining = f", {eta_s:.0f} s remaining" if eta_s else ""
                reporter.progress(name, f"copy: {route}{speed}{remaining}", done / max(total, 1), "copy")
            case CopyKept(name, kept):
                reporter.note(f"[{name}] {kept_words(kept)}")
            case NodeFinished(node):
                if node.state in ("copied", "failed"):
                    reporter.note(f"[{node.node}] {node.state}{_reason(node)}")
            case _:
                reporter.event(event)

    return on_event


def _reason(node: "NodeSync") -> str:
    reason = node.error or node.detail
    return f": {reason}" if reason else ""
