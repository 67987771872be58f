"""`jaccl model`: what a model is, and over how many ranks it splits."""

import argparse
import sys
from typing import Any

from jaccl_kernel.commands import terminal


def add(commands: Any) -> None:
    """Add `jaccl model`."""
    model = commands.add_parser("model", help="what a model is, and over how many ranks it splits")
    model.add_argument("model", help="a folder, a hub id in the local cache, or `demo`")
    model.add_argument("--json", action="store_true", help="machine-readable")
    model.set_defaults(run=_model)


def _model(options: argparse.Namespace) -> int:
    from jaccl_kernel.models.describe import describe, to_json
    from jaccl_kernel.models.inspect import inspect
    from jaccl_kernel.models.resolve import resolve

    if options.model == "demo":
        from jaccl_kernel.models.demo import ensure_demo

        path = terminal.wait_for(ensure_demo(terminal.Teller(sys.stderr).stage))
    else:
        path = resolve(options.model)
    facts = inspect(path)
    if options.json:
        terminal.print_json(to_json(facts))
    else:
        print(describe(facts))
    return 0
