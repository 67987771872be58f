"""`jaccl lab` and `jaccl kernel`: the workbench in JupyterLab, and the JACCL kernel."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jaccl_kernel.cli.command import command, exclusive
from jaccl_kernel.core import layers
from jaccl_kernel.core.errors import JacclError


def lab(
    *more: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Arguments for jupyter lab, such as --port 9999")
    ],
    folder: Annotated[
        Path | None,
        Parameter(
            help="Folder of the notebooks and hostfiles; they are copied there, and edited files are never "
            "overwritten",
            metavar="DIR",
            show_default="the clone of the project, else ./jaccl-workbench",
        ),
    ] = None,
    yes: Annotated[bool, Parameter(help="Install the workbench layer first if it is missing")] = False,
) -> int:
    """Open the workbench."""
    from jaccl_kernel.notebook import workbench
    from jaccl_kernel.notebook.lab import open_lab

    if module := layers.first_missing():
        error = layers.missing(module, "`jaccl lab`")
        if not (yes or _confirm_install(str(error))):
            fix = f"{error.fix}\n  Or install it and open the lab: jaccl lab --yes"
            raise JacclError(error.what, where=error.where, fix=fix)
        print(f"$ {layers.install_command()}", flush=True)
        layers.install()
    root = workbench.clone() if folder is None else None
    if root is None:
        placed = workbench.place(folder or workbench.default_folder())
        print("\n".join(placed.lines()), flush=True)
        root = placed.folder
    return open_lab(root, list(more))


def _confirm_install(question: str) -> bool:
    """Ask at a terminal, where the default is yes; elsewhere, no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(f"{question}\nInstall it now? [Y/n] ").strip().lower() in ("", "y", "yes")
    except EOFError:
        return False


@command
def kernel(
    *,
    user: Annotated[bool, Parameter(help="Install for this user instead of this environment")] = False,
    prefix: Annotated[str | None, Parameter(help="Install into another environment", metavar="DIR")] = None,
    remove: Annotated[bool, Parameter(help="Remove the kernel")] = False,
) -> int:
    """Install or remove the kernel."""
    from jaccl_kernel.notebook import kernelspec

    exclusive(user=user, prefix=prefix, remove=remove)
    if remove:
        found = kernelspec.remove()
        print(f"removed {found}" if found else "the JACCL kernel is not installed")
        return 0 if found else 1
    if module := layers.first_missing():
        raise layers.missing(module, "The JACCL kernel")
    print(f"installed in {kernelspec.install(user=user, prefix=prefix)}")
    return 0
