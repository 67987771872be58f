"""`jaccl model`: what a model is, and the numbers of ranks that it supports."""

import sys
from typing import Annotated

from cyclopts import Parameter

from jaccl_kernel.cli import terminal
from jaccl_kernel.cli.command import Json, command


@command
def model(
    model: Annotated[
        str, Parameter(help="Model: a folder, a name in ~/models, a hub id in the local cache, or demo")
    ],
    *,
    json: Json = False,
) -> int:
    """Describe a model."""
    from jaccl_kernel.models.describe import describe, to_json
    from jaccl_kernel.models.inspect import inspect
    from jaccl_kernel.models.resolve import DEMO, resolve

    if model == DEMO:
        from jaccl_kernel.models.demo import ensure_demo

        reporter = terminal.Reporter(sys.stderr)
        path = reporter.run(ensure_demo(reporter.stage))
    else:
        path = resolve(model)
    facts = inspect(path)
    if json:
        terminal.print_json(to_json(facts))
    else:
        print(describe(facts))
    return 1 if facts.problem else 0
