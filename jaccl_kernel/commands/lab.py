"""`jaccl lab`: the workbench in JupyterLab."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add `jaccl lab`."""
    text = "open the workbench in JupyterLab; arguments such as --no-browser or --port 9999 go to jupyter lab"
    lab = commands.add_parser("lab", help=text, description=text)
    lab.set_defaults(run=_lab, takes_more=True)


def _lab(options: argparse.Namespace) -> int:
    from jaccl_kernel.notebook.lab import open_lab

    return open_lab(options.more)
