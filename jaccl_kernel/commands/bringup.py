"""`jaccl probe`, `verify`, `network` and `hostfile write`: the bring-up steps from a terminal.

Prints what the steps return, and asks for a yes where a file is replaced or a Mac is changed.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaccl_kernel.commands import terminal
from jaccl_kernel.errors import InputError

if TYPE_CHECKING:
    from jaccl_kernel.cluster.facts import NodeFacts
    from jaccl_kernel.steps.cluster import Cluster

BACKENDS = ("jaccl", "jaccl-ring", "ring")
_LIGHTS = {"passed": "ok", "failed": "FAILED", "not tested": "not tested"}


def add(commands: Any) -> None:
    """Add `probe`, `verify` and `network` to the commands of `jaccl`."""
    probe = commands.add_parser(
        "probe", help="ask every Mac what it is, all at once; nothing is changed (exit 0: all answered)"
    )
    _add_who(probe)
    probe.add_argument("--python", metavar="PATH", default="python3", help="whose packages to list there")
    what = probe.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="machine-readable: facts, wiring, cable moves")
    what.add_argument("--dot", action="store_true", help="the cabling as a Graphviz graph")
    probe.set_defaults(run=_probe)
    verify = commands.add_parser(
        "verify", help="every gate from ssh to right sums on the ranks (exit 0 only if all passed)"
    )
    verify.add_argument("hostfile", type=Path)
    verify.add_argument("--json", action="store_true", help="stdout holds the record alone")
    verify.add_argument("--python", metavar="PATH", help="the interpreter on every node (default: this one)")
    verify.add_argument("--backend", choices=BACKENDS, help="default: the hostfile's own")
    verify.set_defaults(run=_verify)
    network = commands.add_parser(
        "network", help="what gives each Thunderbolt port an address: shown; applied only with --apply"
    )
    _add_who(network)
    do = network.add_mutually_exclusive_group()
    do.add_argument("--apply", action="store_true", help="run the commands, after a yes")
    do.add_argument("--undo", action="store_true", help="take back what --apply did, after a yes")
    network.add_argument("--yes", action="store_true", help="do not ask")
    network.set_defaults(run=_network)


def add_hostfile_write(commands: Any) -> None:
    """Add `write` to the commands of `jaccl hostfile`."""
    write = commands.add_parser(
        "write", help="scan the Macs and write the hostfile that fits them; shows what changes first"
    )
    _add_who(write)
    write.add_argument(
        "-o", "--output", type=Path, metavar="F", help="default: HOSTFILE, or hostfiles/cluster.local.json"
    )
    write.add_argument("--backend", choices=BACKENDS, help="default: a mesh, or a ring if that is all")
    write.add_argument("--yes", action="store_true", help="replace a hostfile without asking; it is kept")
    write.add_argument("--json", action="store_true", help="machine-readable; replaces nothing without --yes")
    write.set_defaults(run=_write)


def _add_who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hostfile", type=Path, nargs="?")
    parser.add_argument("--hosts", metavar="A,B,…", help="ssh names instead of a hostfile, rank 0 first")


def _cluster(options: argparse.Namespace) -> "Cluster":
    from jaccl_kernel.steps.cluster import Cluster

    if (options.hostfile is None) == (options.hosts is None):
        raise InputError("name the Macs once", fix="Give a hostfile, or --hosts mac1.local,mac2.local.")
    if options.hosts is not None:
        return Cluster.named([name.strip() for name in options.hosts.split(",")])
    return Cluster.read(options.hostfile)


def _probe(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster import drawing, moves
    from jaccl_kernel.cluster.flaws import flaws
    from jaccl_kernel.cluster.wiring import wire
    from jaccl_kernel.report import table
    from jaccl_kernel.steps.scan import scan

    cluster, teller = _begin(options)
    facts = terminal.wait_for(scan(cluster, options.python, teller.event))
    wiring = wire(facts)
    to_do = [move.text for move in moves.plan(wiring).moves]
    if options.json:
        terminal.print_json(
            {
                "rehearsal": cluster.rehearsal,
                "nodes": [node.to_json() for node in facts],
                "wiring": {
                    "topology": wiring.topology,
                    "rdma": wiring.rdma_matrix(),
                    "flaws": [{"code": flaw.code, "text": flaw.text} for flaw in flaws(wiring)],
                    "moves": to_do,
                },
            }
        )
    elif options.dot:
        _say(drawing.dot(wiring).rstrip())
    else:
        columns = ("Mac", "chip", "macOS", "RDMA", "devices", "Python", "mlx", "address")
        _say(table.render(columns, [_row(node) for node in facts]))
        _say(
            "\n".join(
                f"{label}: {node.error}"
                for label, node in zip(wiring.labels, facts, strict=True)
                if node.error
            )
        )
        _say(f"Cabling: {drawing.headline(wiring)}")
        _say("\n".join(flaw.text for flaw in flaws(wiring)))
        _say("\n".join(f"To do: {text}" for text in to_do))
    return 0 if all(node.error is None for node in facts) else 1


def _row(node: "NodeFacts") -> list[str]:
    from jaccl_kernel.cluster.readiness import readiness

    python = node.python
    cells = [
        node.name,
        node.chip,
        f"{node.macos} {node.build or ''}".strip() if node.macos else None,
        readiness(node).kind,
        None if node.devices is None else str(len(node.devices)),
        python and python.version,
        python and python.mlx,
        node.lan[0].ip if node.lan else None,
    ]
    return [cell or "-" for cell in cells]


def _verify(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps.verify import verify

    options.hosts = None
    cluster, teller = _begin(options)
    report = terminal.wait_for(
        verify(cluster, backend=options.backend, python=options.python, on_event=teller.event)
    )
    if options.json:
        terminal.print_json(report.to_json())
        return 0 if report.ok else 1
    for gate in report.gates:
        _say(f"{_LIGHTS[gate.verdict]:<10}  {gate.title} ({gate.seconds:.1f} s)\n            {gate.proof}")
        others = [problem for problem in gate.problems if problem.severity == "error"][1:]
        for problem in others:
            _say(f"            {problem.where}: {problem.message}")
        if gate.fix:
            _say(f"            Fix: {gate.fix}")
    _say("\n".join(report.notes))
    _say(f"{report.summary}\nRecord: {report.path}")
    return 0 if report.ok else 1


def _network(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster import network
    from jaccl_kernel.cluster.wiring import wire
    from jaccl_kernel.steps import network as step
    from jaccl_kernel.steps.scan import scan

    cluster, teller = _begin(options)
    if options.undo:
        _say(f"On each Mac, {step.UNDO_SCRIPT} is run with sudo, where there is one.")
        if not _yes(options, "Take the network set-up back?"):
            return 1
        undone = terminal.wait_for(step.undo(cluster, yes=True, on_event=teller.event))
        _say("\n".join(f"{name}: {outcome}" for name, outcome in undone.outcomes.items()))
        return 0 if undone.ok else 1
    plan = network.plan(wire(terminal.wait_for(scan(cluster, "python3", teller.event))))
    _say(plan.text() or "Every cabled port has its GID: there is nothing to set up.")
    if not options.apply or not plan.steps:
        return 0
    if not _yes(options, "Run these commands on these Macs?"):
        return 1
    report = terminal.wait_for(step.apply(cluster, plan, yes=True, on_event=teller.event))
    _say("\n".join(f"Undo script: {path}" for path in report.undo_files))
    _say(f"Done: {len(report.done)} of {len(plan.steps)} steps.")
    if not report.ok:
        print(f"error: {report.error}\n  Fix: {report.fix}", file=sys.stderr)
    return 0 if report.ok else 1


def _write(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.check import render
    from jaccl_kernel.steps.configure import configure, write

    cluster, teller = _begin(options)
    report = terminal.wait_for(
        configure(cluster, path=options.output, backend=options.backend, on_event=teller.event)
    )
    is_new = not report.path.exists()
    if not options.json:
        _say(report.unreadable)
        if report.explained:
            _say(f"The hostfile that is there, held against the Macs:\n{render(report.explained)}".rstrip())
        _say("\n".join(report.proposal.notes))
        _say("\n".join(f"To do: {text}" for text in report.proposal.moves))
        _say("\n".join([*report.difference.words, *report.difference.lines]))
        _say(render(report.proposal.problems).rstrip() if report.proposal.problems else "")
        if report.ok and report.proposal.findings:
            _say(f"Before a job can run on it:\n{render(report.proposal.findings)}".rstrip())
            _say(report.network.text())
    if report.ok and (is_new or (report.difference and _yes(options, f"Replace {report.path}?"))):
        report = write(report)
    if options.json:
        terminal.print_json(report.to_json())
    elif report.written:
        kept = f" The old one is kept as {report.written.kept}." if report.written.kept else ""
        _say(f"Wrote {report.path}.{kept}\nNext: jaccl verify {report.path}")
    elif report.ok and not report.difference:
        _say(f"{report.path} fits the Macs as they are: nothing to write.")
    settled = report.written is not None or not report.difference
    return 0 if report.ok and settled else 1


def _begin(options: argparse.Namespace) -> "tuple[Cluster, terminal.Teller]":
    """The cluster that was meant, and who tells progress; a rehearsal is told first."""
    cluster, teller = _cluster(options), terminal.Teller(sys.stderr)
    terminal.tell_rehearsal(cluster.hostfile, teller)
    return cluster, teller


def _yes(options: argparse.Namespace, question: str) -> bool:
    """An explicit yes: --yes, or typed at a terminal. Nobody there is a no."""
    if options.yes:
        return True
    if getattr(options, "json", False) or not sys.stdin.isatty():
        print(f"{question} Not without a yes: add --yes.", file=sys.stderr)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _say(text: str) -> None:
    if text:
        print(text)
