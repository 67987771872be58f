"""`jaccl kernel`: make Jupyter know the JACCL kernel, or forget it."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add `jaccl kernel`."""
    text = "install the JACCL kernel, whose cells run on all ranks (`jaccl lab` does it by itself)"
    kernel = commands.add_parser("kernel", help=text, description=text)
    where = kernel.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user, not only for this environment")
    where.add_argument("--prefix", metavar="DIR", help="into the environment there")
    where.add_argument("--remove", action="store_true", help="remove it again")
    kernel.set_defaults(run=_kernel)


def _kernel(options: argparse.Namespace) -> int:
    from jaccl_kernel.notebook import kernelspec

    if options.remove:
        found = kernelspec.remove()
        print(f"removed {found}" if found else "there is no JACCL kernel")
        return 0 if found else 1
    print(f"installed in {kernelspec.install(user=options.user, prefix=options.prefix)}")
    return 0
