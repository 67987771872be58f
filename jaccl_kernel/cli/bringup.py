"""`jaccl probe`, `verify`, `network` and `hostfile write`: the bring-up of a cluster.

They print what the steps return, and ask for confirmation before a file is replaced or a Mac is changed.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import (
    HostfileArgument,
    Hosts,
    Json,
    OptionalHostfile,
    Yes,
    command,
    exclusive,
    open_cluster,
)
from jaccl_kernel.cli.hostfile import BackendOption
from jaccl_kernel.cli.terminal import say
from jaccl_kernel.core.options import VerifyOptions

if TYPE_CHECKING:
    from jaccl_kernel.steps.cluster import Cluster
    from jaccl_kernel.topology.facts import NodeFacts

PROBE_COLUMNS = ("Mac", "chip", "macOS", "RDMA", "devices", "Python", "mlx", "address")


@command
def probe(
    hostfile: OptionalHostfile = None,
    *,
    hosts: Hosts = None,
    python: Annotated[
        str, Parameter(help="Interpreter on the Macs whose packages are listed", metavar="PATH")
    ] = "python3",
    json: Json = False,
    dot: Annotated[bool, Parameter(help="Print the cabling as a Graphviz graph")] = False,
) -> int:
    """Read the facts of every Mac; changes nothing."""
    from jaccl_kernel.steps.scan import scan
    from jaccl_kernel.topology import diagram, moves
    from jaccl_kernel.topology.issues import find_issues
    from jaccl_kernel.topology.wiring import build_wiring

    exclusive(json=json, dot=dot)
    cluster, reporter = open_cluster(hostfile, hosts)
    facts = reporter.run(scan(cluster, python, reporter.event))
    wiring = build_wiring(facts)
    to_do = [move.text for move in moves.plan(wiring).moves]
    if json:
        terminal.print_json(
            {
                "rehearsal": cluster.rehearsal,
                "nodes": [node.to_json() for node in facts],
                "wiring": {
                    "topology": wiring.topology,
                    "rdma": wiring.rdma_matrix(),
                    "issues": [{"code": issue.code, "text": issue.text} for issue in find_issues(wiring)],
                    "moves": to_do,
                },
            }
        )
    elif dot:
        say(diagram.dot(wiring).rstrip())
    else:
        terminal.print_table(PROBE_COLUMNS, [_row(node) for node in facts])
        for label, node in zip(wiring.labels, facts, strict=True):
            say(f"{label}: {node.error}" if node.error else "")
        say(f"Cabling: {diagram.headline(wiring)}")
        say("\n".join(issue.text for issue in find_issues(wiring)))
        say("\n".join(f"To do: {text}" for text in to_do))
    return 0 if all(node.error is None for node in facts) else 1


def _row(node: "NodeFacts") -> list[str]:
    from jaccl_kernel.topology.readiness import readiness

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


@command
def verify(hostfile: HostfileArgument, options: VerifyOptions, *, json: Json = False) -> int:
    """Run every check."""
    from jaccl_kernel.steps.verify.verify import verify as check

    cluster, reporter = open_cluster(hostfile, None)
    report = reporter.run(
        check(cluster, backend=options.backend, python=options.python, on_event=reporter.event)
    )
    if json:
        terminal.print_json(report.to_json())
        return 0 if report.ok else 1
    for one in report.checks:
        terminal.say_state(one.verdict, f"{one.title} ({one.seconds:.1f} s)")
        say(f"            {one.proof}")
        others = [problem for problem in one.problems if problem.severity == "error"][1:]
        for problem in others:
            say(f"            {problem.where}: {problem.message}")
        if one.fix:
            say(f"            Fix: {one.fix}")
    say("\n".join(report.notes))
    say(f"{report.summary}\nRecord: {report.path}")
    return 0 if report.ok else 1


@command
def network(
    hostfile: OptionalHostfile = None,
    *,
    hosts: Hosts = None,
    apply: Annotated[bool, Parameter(help="Run the commands, after confirmation")] = False,
    undo: Annotated[bool, Parameter(help="Undo what --apply did, after confirmation")] = False,
    yes: Yes = False,
) -> int:
    """Show, apply or undo the network set-up."""
    from jaccl_kernel.steps import network as step
    from jaccl_kernel.steps.scan import scan
    from jaccl_kernel.topology import addressing
    from jaccl_kernel.topology.wiring import build_wiring

    exclusive(apply=apply, undo=undo)
    cluster, reporter = open_cluster(hostfile, hosts)
    if undo:
        return _undo_network(cluster, reporter, yes=yes)
    plan = addressing.plan(build_wiring(reporter.run(scan(cluster, "python3", reporter.event))))
    say(plan.text() or "Every cabled port has a GID: there is nothing to set up.")
    if not apply or not plan.steps:
        return 1 if plan.unknown else 0
    if not terminal.confirm("Run these commands on these Macs?", yes=yes):
        return 1
    report = reporter.run(step.apply(cluster, plan, yes=True, on_event=reporter.event))
    say("\n".join(f"Undo script: {path}" for path in report.undo_files))
    say(f"Done: {len(report.done)} of {len(plan.steps)} steps.")
    if not report.ok:
        print(f"error: {report.error}\n  Fix: {report.fix}", file=sys.stderr)
    return 0 if report.ok and not plan.unknown else 1


def _undo_network(cluster: "Cluster", reporter: terminal.Reporter, *, yes: bool) -> int:
    from jaccl_kernel.steps import network as step

    say(f"On each Mac that has it, {step.UNDO_SCRIPT} runs with sudo.")
    if not terminal.confirm("Undo the network set-up?", yes=yes):
        return 1
    report = reporter.run(step.undo(cluster, yes=True, on_event=reporter.event))
    say("\n".join(f"{name}: {outcome}" for name, outcome in report.outcomes.items()))
    return 0 if report.ok else 1


@command
def write(
    hostfile: OptionalHostfile = None,
    *,
    hosts: Hosts = None,
    output: Annotated[
        Path | None,
        Parameter(
            name=("--output", "-o"),
            help="File to write",
            metavar="FILE",
            show_default="HOSTFILE, or hostfiles/cluster.local.json",
        ),
    ] = None,
    backend: BackendOption = None,
    yes: Annotated[
        bool, Parameter(help="Replace a hostfile without confirmation; a copy of it is kept")
    ] = False,
    json: Json = False,
) -> int:
    """Write the hostfile that matches the cables; with --json, a file is replaced only with --yes."""
    from jaccl_kernel.hostfile.lint import render
    from jaccl_kernel.steps.hostfile import configure as step

    cluster, reporter = open_cluster(hostfile, hosts)
    report = reporter.run(step.configure(cluster, path=output, backend=backend, on_event=reporter.event))
    is_new = not report.path.exists()
    if not json:
        say(report.unreadable)
        if report.explained:
            say(f"Problems in the current hostfile:\n{render(report.explained)}".rstrip())
        say("\n".join(report.proposal.notes))
        say("\n".join(f"To do: {text}" for text in report.proposal.moves))
        say("\n".join([*report.difference.sentences, *report.difference.lines]))
        say(render(report.proposal.problems).rstrip() if report.proposal.problems else "")
        if report.ok and report.proposal.findings:
            say(f"To fix before a job can run:\n{render(report.proposal.findings)}".rstrip())
            say(report.network.text())
    if report.ok and (
        is_new or (report.difference and terminal.confirm(f"Replace {report.path}?", yes=yes, ask=not json))
    ):
        report = step.write(report)
    if json:
        terminal.print_json(report.to_json())
    elif report.written:
        kept = f" The previous one is kept as {report.written.kept}." if report.written.kept else ""
        say(f"Wrote {report.path}.{kept}\nNext: jaccl verify {report.path}")
    elif report.ok and not report.difference:
        say(f"{report.path} matches the cables: nothing to write.")
    settled = report.written is not None or not report.difference
    return 0 if report.ok and settled else 1
