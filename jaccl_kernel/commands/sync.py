"""`jaccl sync`: one model on every node, from a terminal. Parses, calls the step, prints what it returned."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaccl_kernel.commands import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaccl_kernel.steps.sync_report import SyncReport
    from jaccl_kernel.wire import Event

_STEP = 10  # per cent between two lines of a node's progress


def add(commands: Any) -> None:
    """Add the command to those of `jaccl`."""
    sync = commands.add_parser(
        "sync",
        help="bring a model to every node and prove by hash that it is whole (exit 0: it is, on all)",
    )
    sync.add_argument("hostfile", type=Path)
    sync.add_argument("model", help="a NAME in ~/models, a folder, a hub id in the local cache, or `demo`")
    sync.add_argument(
        "--from",
        dest="source",
        metavar="HOST",
        help="the node to copy from, or localhost (default: who has it)",
    )
    sync.add_argument(
        "--check", action="store_true", help="only look: who has it, does it fit, is there room"
    )
    sync.add_argument(
        "--dest",
        metavar="DIR",
        help="the folder on every node (default: the same in each home, or ~/models/NAME)",
    )
    sync.add_argument("--rehash", action="store_true", help="read every file again, trust no kept hash")
    sync.add_argument("--json", action="store_true", help="stdout holds the record alone")
    sync.set_defaults(run=_sync)


def _sync(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import Hostfile
    from jaccl_kernel.steps.cluster import Cluster
    from jaccl_kernel.steps.sync import SyncOptions, sync

    hostfile = Hostfile.read(options.hostfile)
    teller = terminal.Teller(sys.stderr)
    terminal.tell_rehearsal(hostfile, teller)
    wanted = SyncOptions(options.model, options.source, options.dest, options.check, options.rehash)
    tell = _CopyTeller(teller.event, teller.note)
    report = terminal.wait_for(sync(Cluster.of(hostfile), wanted, on_event=tell.event))
    if options.json:
        terminal.print_json(report.record)
    else:
        print(render(report))
    return 0 if report.ok else 1


def render(report: "SyncReport") -> str:
    """The report as text for a terminal: a table, then what to do about what failed."""
    from jaccl_kernel.report import table
    from jaccl_kernel.steps.sync_report import COLUMNS, kept_words, rows

    record = report.record
    size = f"{record['bytes'] / 1e9:.2f} GB in {record['files']} files"
    lines = [
        f"{record['model']}: {size}, sha256 {record['digest'][:16]}…",
        table.render(COLUMNS, rows(report.nodes)),
    ]
    for node in report.nodes:
        lines += [f"{node.node}: {note}" for note in node.notes]
        if node.kept:
            lines.append(f"{node.node}: {kept_words(node.kept)}")
        if node.fix:
            lines.append(f"{node.node}: Fix: {node.fix}")
    if report.ok:
        lines.append(f"Whole and identical on every node: {record['path']}")
    lines.append(f"Record: {report.path}")
    return "\n".join(lines)


def _why(node: dict[str, Any]) -> str:
    why = node["error"] or node["detail"]
    return f": {why}" if why else ""


class _CopyTeller:
    """Tells of a sync line by line: what stands where, what fits, each tenth of each copy."""

    def __init__(self, other: "Callable[[Event], None]", note: "Callable[[str], None]") -> None:
        self._other = other
        self._note = note
        self._told: dict[tuple[str, str], int] = {}

    def event(self, event: "Event") -> None:
        """Whatever the step tells."""
        from jaccl_kernel.steps.sync_report import kept_words

        data = event.data
        if event.kind == "found":
            for node in data["nodes"]:
                self._note(f"[{node['node']}] {node['state']}{_why(node)}")
        elif event.kind == "fit":
            for finding in data["findings"]:
                self._note(f"[{finding['node'] or 'model'}] {finding['what']}. {finding['fix']}".rstrip())
        elif event.kind in ("copy", "hash"):
            self._progress(event.kind, data)
        elif event.kind == "kept":
            self._note(f"[{data['node']}] {kept_words(data)}")
        elif event.kind == "node":
            if data["state"] in ("copied", "failed"):
                self._note(f"[{data['node']}] {data['state']}{_why(data)}")
        else:
            self._other(event)

    def _progress(self, kind: str, data: dict[str, Any]) -> None:
        percent = 100 * data["done_bytes"] // max(data["total_bytes"], 1)
        key = (kind if kind == "copy" else data["stage"], data["node"])
        if percent // _STEP <= self._told.get(key, -1):
            return
        self._told[key] = percent // _STEP
        if kind == "hash":
            self._note(f"[{data['node']}] hashed {percent} %")
            return
        rate = f", {data['rate'] / 1e6:.0f} MB/s" if data["rate"] else ""
        left = f", {data['eta_s']:.0f} s left" if data["eta_s"] else ""
        self._note(f"[{data['node']}] {percent} % {data['route']}{rate}{left}")
