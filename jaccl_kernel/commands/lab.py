"""`jaccl lab`: the workbench in JupyterLab."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add `jaccl lab`."""
    lab = commands.add_parser(
        "lab", help="open the workbench in JupyterLab (other arguments go to jupyter lab)", add_help=False
    )
    lab.set_defaults(run=_lab)
    lab.add_argument("arguments", nargs=argparse.REMAINDER)


def _lab(options: argparse.Namespace) -> int:
    from jaccl_kernel.notebook.lab import open_lab

    return open_lab(options.arguments)
