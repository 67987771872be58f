"""`jaccl rehearse`: simulated Macs on this machine, and their faults."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaccl_kernel.cli.command import command
from jaccl_kernel.core.errors import InputError


@command
def rehearse(
    *,
    macs: Annotated[
        int | None, Parameter(help="Number of Macs, 1 to 8", metavar="N", show_default="4")
    ] = None,
    fault: Annotated[
        list[str] | None, Parameter(help="Add a fault, such as rdma-off:2 (repeatable)", metavar="SPEC")
    ] = None,
    fix: Annotated[
        list[str] | None, Parameter(help="Remove a fault of the hostfile (repeatable)", metavar="SPEC")
    ] = None,
    keep: Annotated[
        bool, Parameter(help="Keep the Macs of the hostfile, with their faults and matrix")
    ] = False,
    faults: Annotated[bool, Parameter(help="List all faults, and exit")] = False,
    output: Annotated[
        Path | None,
        Parameter(
            name=("--output", "-o"),
            help="Hostfile",
            metavar="FILE",
            show_default="hostfiles/rehearsal.local.json",
        ),
    ] = None,
) -> int:
    """Create or change simulated Macs."""
    from jaccl_kernel.hostfile.hostfile import Hostfile
    from jaccl_kernel.rehearsal import faults as known
    from jaccl_kernel.rehearsal import homes, plan

    if faults:
        print("".join(f"{one.usage:<28}{one.meaning}\n" for one in known.FAULTS), end="")
        return 0
    path = output or Path("hostfiles") / "rehearsal.local.json"
    keep = keep or bool(fix)
    if keep and macs is not None:
        raise InputError(
            "--macs creates new Macs, and --keep and --fix change existing ones",
            fix="Leave out --macs, or --keep and --fix.",
        )
    before = Hostfile.read(path) if keep else homes.make_hostfile(4 if macs is None else macs)
    hostfile = plan.with_changes(before, add=fault or [], fix=fix or [])
    made = homes.prepare(hostfile, restart=not keep)
    if output is None:
        with contextlib.suppress(OSError):  # the next line says why it cannot be written
            path.parent.mkdir(exist_ok=True)
    hostfile.write(path)
    at_once = homes.ranks_at_once(len(made))
    print(homes.NOTE)
    for rank, mac in enumerate(made):
        print(f"  rank {rank}: {mac.name}, home {mac.home}")
    meanings = {one.name: one.meaning for one in known.FAULTS}
    for spec in plan.RehearsalPlan.of(hostfile).faults:
        print(f"  fault {spec}: {meanings[spec.partition(':')[0]]}")
    print("The ranks are real processes over MLX's ring backend.")
    print(
        f"This machine has {os.cpu_count()} cores: {at_once} ranks run at full speed, more share the cores."
    )
    print(f"Hostfile: {path}\nNext: jaccl hostfile write {path} --yes; jaccl verify {path}")
    print(f"Or directly: jaccl bench {path} --ranks 1,{min(2, at_once)}")
    return 0
