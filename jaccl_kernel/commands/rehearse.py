"""`jaccl rehearse`: simulated Macs on this machine, and what is broken about them."""

import argparse
import os
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import InputError


def add(commands: Any) -> None:
    """Add `jaccl rehearse`."""
    rehearse = commands.add_parser("rehearse", help="make simulated Macs on this machine")
    rehearse.add_argument("--macs", type=int, metavar="N", help="how many, 1 to 8 (default 4)")
    rehearse.add_argument(
        "--fault", action="append", default=[], metavar="SPEC", help="break something, such as rdma-off:2"
    )
    rehearse.add_argument(
        "--fix", action="append", default=[], metavar="SPEC", help="mend what a --fault broke, in the file F"
    )
    rehearse.add_argument(
        "--keep", action="store_true", help="go on with the Macs of F: add to its faults, keep its matrix"
    )
    rehearse.add_argument("--faults", action="store_true", help="list what can be broken, and end")
    rehearse.add_argument(
        "-o", "--output", type=Path, metavar="F", help="default: hostfiles/rehearsal.local.json"
    )
    rehearse.set_defaults(run=_rehearse)


def _rehearse(options: argparse.Namespace) -> int:
    from jaccl_kernel.cluster.hostfile import Hostfile
    from jaccl_kernel.rehearsal import faults, homes, plan

    if options.faults:
        print("".join(f"{fault.usage:<28}{fault.meaning}\n" for fault in faults.FAULTS), end="")
        return 0
    path = options.output or Path("hostfiles") / "rehearsal.local.json"
    keep = options.keep or bool(options.fix)
    if keep and options.macs is not None:
        raise InputError("--macs makes new Macs", fix="Leave out --macs, or --keep and --fix.")
    before = Hostfile.read(path) if keep else homes.make_hostfile(4 if options.macs is None else options.macs)
    hostfile = plan.with_changes(before, add=options.fault, fix=options.fix)
    made = homes.prepare(hostfile, restart=not keep)
    hostfile.write(path)
    at_once = homes.ranks_at_once(len(made))
    print(homes.NOTE)
    for rank, mac in enumerate(made):
        print(f"  rank {rank}: {mac.name}, home {mac.home}")
    meanings = {fault.name: fault.meaning for fault in faults.FAULTS}
    for fault in plan.Plan.of(hostfile).faults:
        print(f"  fault {fault}: {meanings[fault.partition(':')[0]]}")
    print(f"Ranks are real processes over MLX's ring backend. This machine has {os.cpu_count()} cores, so")
    print(f"{at_once} of them run at full speed at once; more run, and share.")
    print(f"Hostfile: {path}\nNext: jaccl hostfile write {path} --yes; jaccl verify {path}")
    print(f"Or at once: jaccl bench {path} --ranks 1,{min(2, at_once)}")
    return 0
