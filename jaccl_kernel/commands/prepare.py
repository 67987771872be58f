"""`jaccl enable` and `jaccl environment`: parse, call the step, print what came of it; nothing else."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaccl_kernel.commands import terminal
from jaccl_kernel.errors import InputError

if TYPE_CHECKING:
    from jaccl_kernel.steps.cluster import Cluster
    from jaccl_kernel.steps.enable import EnableReport, Light
    from jaccl_kernel.steps.environment import ApplyReport, EnvironmentPlan, EnvironmentReport

LIGHTS = {"ready": "●", "off": "○", "cannot": "✕", "unknown": "?"}


def add(commands: Any) -> None:
    """Add both commands to the parser's."""
    _add_enable(commands)
    _add_environment(commands)


def _add_enable(commands: Any) -> None:
    enable = commands.add_parser(
        "enable", help="which Macs are ready for RDMA, and what to do at the others (exit 0: all are ready)"
    )
    _add_cluster(enable)
    for option, text in (
        ("--done", "note that step N at that Mac is done"),
        ("--undo", "or is not, after all"),
    ):
        enable.add_argument(option, action="append", default=[], metavar="MAC:N", help=text)
    enable.add_argument("--json", action="store_true", help="machine-readable")
    enable.set_defaults(run=_enable)


def _add_environment(commands: Any) -> None:
    environment = commands.add_parser(
        "environment", help="is the same working Python on every node, and make it (exit 0: it is)"
    )
    _add_cluster(environment)
    environment.add_argument(
        "--python", metavar="P", help="the interpreter to check (default: ~/jaccl-env/bin/python)"
    )
    environment.add_argument(
        "--create", action="store_true", help="show the commands that make the environment on every node"
    )
    environment.add_argument("--path", metavar="DIR", help="where to make it (default: ~/jaccl-env)")
    environment.add_argument("--yes", action="store_true", help="with --create: run those commands")
    environment.add_argument("--json", action="store_true", help="machine-readable")
    environment.set_defaults(run=_environment)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("hostfile", nargs="?", type=Path, metavar="HOSTFILE")
    which.add_argument("--hosts", metavar="A,B,…", help="ssh names, where there is no hostfile yet")


def _cluster(options: argparse.Namespace) -> "Cluster":
    from jaccl_kernel.steps.cluster import Cluster

    if options.hosts is not None:
        return Cluster.named([name.strip() for name in options.hosts.split(",")])
    return Cluster.read(options.hostfile)


def _enable(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps.enable import enable, judge

    cluster, teller = _cluster(options), terminal.Teller(sys.stderr)
    terminal.tell_rehearsal(cluster.hostfile, teller)
    report = terminal.wait_for(enable(cluster, teller.event))
    changes = [(text, True) for text in options.done] + [(text, False) for text in options.undo]
    for text, done in changes:
        ticks = _tick(report, text, done=done)
        report = judge(report.facts, ticks, rehearsal=report.rehearsal)
    if options.json:
        terminal.print_json(report.to_json())
    else:
        print("\n".join(_enable_lines(report)))
    return 0 if report.ok else 1


def _tick(report: "EnableReport", text: str, *, done: bool) -> Any:
    """Note a step, given as `mac2:1`."""
    from jaccl_kernel.steps.checklist import tick

    name, _, number = text.rpartition(":")
    light = next((light for light in report.lights if light.name == name), None)
    if light is None:
        known = ", ".join(light.name for light in report.lights)
        raise InputError(f"there is no Mac {name!r}", where=text, fix=f"Write MAC:N; the Macs are {known}.")
    if not number.isdecimal() or not 1 <= int(number) <= len(light.tasks):
        fix = f"Its steps are 1 to {len(light.tasks)}." if light.tasks else "Nothing is left to do there."
        raise InputError(f"{name} has no step {number!r}", where=text, fix=fix)
    return tick(name, light.tasks[int(number) - 1].text, done=done, rehearsal=report.rehearsal)


def _enable_lines(report: "EnableReport") -> Iterator[str]:
    for light in report.lights:
        yield from _light_lines(light)
    if report.links:
        yield "Cables:"
    for link in report.links:
        speed = "speed not told" if link.gbps is None else f"{link.gbps:g} Gb/s"
        slow = "  SLOW" if link.speed == "slow" else ""
        half = "  seen from one end only" if link.seen == "half" else ""
        yield f"  {link.a} – {link.b}: {speed}{slow}{half}"
    yield from report.notes
    ready = sum(light.kind == "ready" for light in report.lights)
    yield f"{ready} of {len(report.lights)} Macs ready."


def _light_lines(light: "Light") -> Iterator[str]:
    from jaccl_kernel.steps.enable import MEANING

    what = ", ".join(filter(None, (light.chip, light.macos and f"macOS {light.macos} ({light.build})")))
    yield f"{LIGHTS[light.kind]} {light.name}: {MEANING[light.kind]}{f'  ({what})' if what else ''}"
    yield from (f"    {reason}" for reason in light.reasons)
    yield from (
        f"    [{'x' if task.done else ' '}] {n}. {task.text}" for n, task in enumerate(light.tasks, 1)
    )
    yield from (f"    Note: {hint}" for hint in light.hints)


def _environment(options: argparse.Namespace) -> int:
    if not options.create and (options.yes or options.path):
        raise InputError("--yes and --path go with --create", fix="Add --create, or take them away.")
    if options.create and options.python:
        raise InputError(
            "--create makes an environment with an interpreter of its own, so --python has no say",
            fix="Use --path to say where it shall stand.",
        )
    return _create(options) if options.create else _check(options)


def _check(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps.environment import check

    cluster, teller = _cluster(options), terminal.Teller(sys.stderr)
    terminal.tell_rehearsal(cluster.hostfile, teller)
    report = terminal.wait_for(check(cluster, python=options.python, on_event=teller.event))
    if options.json:
        terminal.print_json(report.to_json())
    else:
        print("\n".join(_report_lines(report)))
    return 0 if report.ok else 1


def _create(options: argparse.Namespace) -> int:
    from jaccl_kernel.steps.environment import DEFAULT_PATH, apply, check, plan

    cluster, teller = _cluster(options), terminal.Teller(sys.stderr)
    terminal.tell_rehearsal(cluster.hostfile, teller)
    planned = terminal.wait_for(plan(cluster, path=options.path or DEFAULT_PATH, on_event=teller.event))
    told: dict[str, Any] = {"plan": planned.to_json(), "applied": None, "check": None}
    if not options.json:
        print("\n".join(_plan_lines(planned)), flush=True)
    ok = planned.ok
    if options.yes:
        applied = terminal.wait_for(apply(planned, yes=True, on_event=teller.event))
        checked = terminal.wait_for(check(cluster, python=applied.python, on_event=teller.event))
        told |= {"applied": applied.to_json(), "check": checked.to_json()}
        ok = applied.ok and checked.ok
        if not options.json:
            print("\n".join([*_applied_lines(applied), *_report_lines(checked)]))
    elif not options.json:
        print("Nothing was changed. To run these commands, add --yes.")
    if options.json:
        terminal.print_json(told)
    return 0 if ok else 1


def _plan_lines(plan: "EnvironmentPlan") -> Iterator[str]:
    yield f"{plan.path} on {len(plan.nodes)} nodes, with Python {plan.version or 'of no version'}"
    for node in plan.nodes:
        yield f"\n{node.name}: {node.action}. {node.why}" + (f"\n  Fix: {node.fix}" if node.fix else "")
        yield from (f"  {command}" for command in node.commands)
    yield ""


def _applied_lines(report: "ApplyReport") -> Iterator[str]:
    for node in report.nodes:
        where = f" at “{node.at}”" if node.at else ""
        left = {"": "", "put back": " It was put back as it was.", "unfinished": " It is left unfinished."}
        yield f"{node.name}: {node.outcome}{where}" + (
            f": {node.error}{left[node.left]}" if node.error else ""
        )
        yield from (f"    {line}" for line in node.last_words)


def _report_lines(report: "EnvironmentReport") -> Iterator[str]:
    from jaccl_kernel.report import table

    columns = ["", *(node.name for node in report.nodes)]
    rows = [
        [row.package, *(f"{cell.value or '-'}{' *' if cell.differs else ''}" for cell in row.cells)]
        for row in report.rows
    ]
    rows.append(
        ["imports work", *({"ok": "yes", "failed": "NO"}.get(n.proof, n.proof) for n in report.nodes)]
    )
    yield table.render(columns, rows)
    if any(row.drifts for row in report.rows):
        yield "* differs"
    for problem in report.problems:
        yield f"{problem.where}: {problem.message}" + (f"\n  Fix: {problem.fix}" if problem.fix else "")
    if report.ok:
        yield f"The same and working on every node. For jobs: --python {report.python}"
