"""`jaccl hostfile check` and `jaccl hostfile new`."""

import argparse
from pathlib import Path
from typing import Any

from jaccl_kernel.commands import bringup, terminal
from jaccl_kernel.errors import HostfileError, InputError


def add(commands: Any) -> None:
    """Add `jaccl hostfile`."""
    text = "check a hostfile, write a template to edit, or write the one that fits the cabling"
    hostfile = commands.add_parser("hostfile", help=text, description=text).add_subparsers(
        required=True, metavar="check|new|write"
    )
    check = hostfile.add_parser(
        "check", help="what mlx.launch and JACCL will make of it (exit 0 fine, 1 problems, 2 unreadable)"
    )
    check.add_argument("file", type=Path)
    check.add_argument("--backend", choices=("jaccl", "jaccl-ring", "ring"), help="default: the file's own")
    check.add_argument("--json", action="store_true", help="machine-readable")
    check.set_defaults(run=_hostfile_check)
    new = hostfile.add_parser("new", help="write a template for these hosts, to edit")
    new.add_argument("--hosts", required=True, metavar="A,B,…", help="ssh names, rank 0 first")
    new.add_argument("-o", "--output", type=Path, metavar="F", help="default: stdout")
    new.set_defaults(run=_hostfile_new)
    bringup.add_hostfile_write(hostfile)


def _hostfile_check(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster import check
    from jaccl_kernel.cluster.hostfile import Hostfile

    try:
        hostfile = Hostfile.read(options.file)
    except HostfileError as error:
        if options.json:
            terminal.print_json(check.unreadable_json(options.file, error))
        raise
    problems = check.check(hostfile, backend=options.backend)
    verdict = check.hostfile_verdict(hostfile, options.backend)
    if options.json:
        terminal.print_json(check.to_json(options.file, problems, verdict))
    else:
        print(check.render(problems), end="")
    return 1 if check.has_errors(problems) else 0


def _hostfile_new(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import template

    hostfile = template([name.strip() for name in options.hosts.split(",")])
    if options.output is None:
        print(hostfile.dumps(), end="")
        return 0
    if options.output.exists():
        raise InputError(
            "already exists", where=str(options.output), fix="Name another file, or remove it first."
        )
    hostfile.write(options.output)
    print(f"Wrote {options.output}. Edit it, then: jaccl hostfile check {options.output}")
    return 0
