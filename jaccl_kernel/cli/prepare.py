"""`jaccl enable` and `jaccl environment`: the Macs' RDMA state, and the Python environment of every node."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import Hosts, Json, OptionalHostfile, command, open_cluster
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import EnvironmentOptions

if TYPE_CHECKING:
    from jaccl_kernel.steps.cluster import Cluster
    from jaccl_kernel.steps.enable import EnableReport, Light
    from jaccl_kernel.steps.environment.environment import ApplyReport, EnvironmentPlan, EnvironmentReport

MARKS = {"ready": "●", "off": "○", "unsupported": "✕", "unknown": "?"}


@command
def enable(
    hostfile: OptionalHostfile = None,
    *,
    hosts: Hosts = None,
    done: Annotated[
        list[str] | None, Parameter(help="Mark step N of that Mac as done (repeatable)", metavar="MAC:N")
    ] = None,
    undo: Annotated[
        list[str] | None, Parameter(help="Mark step N of that Mac as not done (repeatable)", metavar="MAC:N")
    ] = None,
    json: Json = False,
) -> int:
    """Show the RDMA state of every Mac."""
    from jaccl_kernel.steps import enable as step

    cluster, reporter = open_cluster(hostfile, hosts)
    report = reporter.run(step.enable(cluster, reporter.event))
    for text, is_done in [(text, True) for text in done or ()] + [(text, False) for text in undo or ()]:
        ticks = _tick(report, text, done=is_done)
        report = step.judge(report.facts, ticks, rehearsal=report.rehearsal)
    if json:
        terminal.print_json(report.to_json())
    else:
        print("\n".join(_enable_lines(report)))
    return 0 if report.ok else 1


def _tick(report: "EnableReport", text: str, *, done: bool) -> Any:
    """Mark a step, given as `mac2:1`."""
    from jaccl_kernel.steps.checklist import tick

    name, _, number = text.rpartition(":")
    light = next((light for light in report.lights if light.name == name), None)
    if light is None:
        known = ", ".join(light.name for light in report.lights)
        raise InputError(f"there is no Mac {name!r}", where=text, fix=f"Use MAC:N; the Macs are {known}.")
    if not number.isdecimal() or not 1 <= int(number) <= len(light.tasks):
        fix = f"Use a step from 1 to {len(light.tasks)}." if light.tasks else "This Mac has no open steps."
        raise InputError(f"{name} has no step {number!r}", where=text, fix=fix)
    return tick(name, light.tasks[int(number) - 1].text, done=done, rehearsal=report.rehearsal)


def _enable_lines(report: "EnableReport") -> Iterator[str]:
    for light in report.lights:
        yield from _mac_lines(light)
    if report.links:
        yield "Cables:"
    for link in report.links:
        speed = "speed unknown" if link.gbps is None else f"{link.gbps:g} Gb/s"
        slow = "  slow" if link.speed == "slow" else ""
        half = "  detected at one end only" if link.seen == "half" else ""
        yield f"  {link.a} – {link.b}: {speed}{slow}{half}"
    yield from report.notes
    ready = sum(light.kind == "ready" for light in report.lights)
    yield f"{ready} of {len(report.lights)} Macs ready."


def _mac_lines(light: "Light") -> Iterator[str]:
    from jaccl_kernel.steps.enable import MEANING

    what = ", ".join(filter(None, (light.chip, light.macos and f"macOS {light.macos} ({light.build})")))
    yield f"{MARKS[light.kind]} {light.name}: {MEANING[light.kind]}{f'  ({what})' if what else ''}"
    yield from (f"    {reason}" for reason in light.reasons)
    yield from (
        f"    [{'x' if task.done else ' '}] {n}. {task.text}" for n, task in enumerate(light.tasks, 1)
    )
    yield from (f"    Note: {hint}" for hint in light.hints)


@command
def environment(
    hostfile: OptionalHostfile = None,
    *,
    hosts: Hosts = None,
    options: EnvironmentOptions,
    json: Json = False,
) -> int:
    """Check the environment, or create it."""
    cluster, reporter = open_cluster(hostfile, hosts)
    if options.create:
        return _create(cluster, options, reporter, json=json)
    from jaccl_kernel.steps.environment.environment import check

    report = reporter.run(check(cluster, python=options.python, on_event=reporter.event))
    if json:
        terminal.print_json(report.to_json())
    else:
        _print_report(report)
    return 0 if report.ok else 1


def _create(
    cluster: "Cluster", options: EnvironmentOptions, reporter: terminal.Reporter, *, json: bool
) -> int:
    from jaccl_kernel.steps.environment.environment import DEFAULT_PATH, apply, check, plan

    planned = reporter.run(plan(cluster, path=options.path or DEFAULT_PATH, on_event=reporter.event))
    document: dict[str, Any] = {"plan": planned.to_json(), "applied": None, "check": None}
    if not json:
        print("\n".join(_plan_lines(planned)), flush=True)
    ok = planned.ok
    if options.yes:
        applied = reporter.run(apply(planned, yes=True, on_event=reporter.event))
        checked = reporter.run(check(cluster, python=applied.python, on_event=reporter.event))
        document |= {"applied": applied.to_json(), "check": checked.to_json()}
        ok = applied.ok and checked.ok
        if not json:
            print("\n".join(_applied_lines(applied)))
            _print_report(checked)
    elif not json:
        print("Nothing was changed. To run these commands, add --yes.")
    if json:
        terminal.print_json(document)
    return 0 if ok else 1


def _plan_lines(plan: "EnvironmentPlan") -> Iterator[str]:
    yield f"{plan.path} on {len(plan.nodes)} nodes, with Python {plan.version or 'of unknown version'}"
    for node in plan.nodes:
        yield f"\n{node.name}: {node.action}. {node.why}" + (f"\n  Fix: {node.fix}" if node.fix else "")
        yield from (f"  {command}" for command in node.commands)
    yield ""


def _applied_lines(report: "ApplyReport") -> Iterator[str]:
    results = {"": "", "restored": " The previous one was restored.", "unfinished": " It is incomplete."}
    for node in report.nodes:
        where = f" at “{node.at}”" if node.at else ""
        error = f": {node.error}{results[node.left]}" if node.error else ""
        yield f"{node.name}: {node.outcome}{where}{error}"
        yield from (f"    {line}" for line in node.last_lines)


def _print_report(report: "EnvironmentReport") -> None:
    columns = ["", *(node.name for node in report.nodes)]
    rows = [
        [row.package, *(f"{cell.value or '-'}{' *' if cell.differs else ''}" for cell in row.cells)]
        for row in report.rows
    ]
    rows.append(["imports", *(node.proof for node in report.nodes)])
    terminal.print_table(columns, rows)
    if any(row.drifts for row in report.rows):
        print("* differs")
    for problem in report.problems:
        print(f"{problem.where}: {problem.message}" + (f"\n  Fix: {problem.fix}" if problem.fix else ""))
    if report.ok:
        print(f"Same and working on every node. For jobs: --python {report.python}")
