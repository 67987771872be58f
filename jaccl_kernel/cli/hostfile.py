"""`jaccl hostfile check` and `jaccl hostfile new`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import Json, command, split_names
from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.core.options import Backend

BackendOption = Annotated[
    Backend | None,
    Parameter(
        help="MLX's communication backend",
        metavar="jaccl|jaccl-ring|ring",
        show_choices=False,
        show_default="the hostfile's",
    ),
]


@command
def check(
    file: Annotated[Path, Parameter(help="Hostfile")], *, backend: BackendOption = None, json: Json = False
) -> int:
    """Check a hostfile."""
    from jaccl_kernel.hostfile import lint
    from jaccl_kernel.hostfile.hostfile import Hostfile

    try:
        hostfile = Hostfile.read(file)
    except HostfileError as error:
        if json:
            terminal.print_json(lint.unreadable_json(file, error))
        raise
    problems = lint.check(hostfile, backend=backend)
    verdict = lint.hostfile_verdict(hostfile, backend)
    if json:
        terminal.print_json(lint.to_json(file, problems, verdict))
    else:
        print(lint.render(problems), end="")
    return 1 if lint.has_errors(problems) else 0


@command
def new(
    *,
    hosts: Annotated[str, Parameter(help="ssh names, rank 0 first", metavar="A,B,…")],
    devices: Annotated[
        Path | None, Parameter(help="JACCL device file (exo's) with the rdma matrix", metavar="FILE")
    ] = None,
    output: Annotated[
        Path | None,
        Parameter(name=("--output", "-o"), metavar="FILE", show_default="stdout", help="New file"),
    ] = None,
) -> int:
    """Write a template."""
    from jaccl_kernel.hostfile.hostfile import read_device_file
    from jaccl_kernel.hostfile.template import template

    hostfile = template(split_names(hosts), read_device_file(devices) if devices else None)
    if output is None:
        print(hostfile.dumps(), end="")
        return 0
    if output.exists():
        raise InputError("the file already exists", where=str(output), fix="Give another file, or remove it.")
    hostfile.write(output)
    print(f"Wrote {output}. Edit it, then: jaccl hostfile check {output}")
    return 0
