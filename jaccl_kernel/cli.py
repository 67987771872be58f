"""`jaccl …`: the steps from a terminal. Parses and dispatches; the commands themselves are in `commands/`.

Exit status: 0 fine; 1 the step found or met a problem; 2 the command line or a file makes no sense; 130 and
143 after Ctrl-C and SIGTERM. Imports are lazy, so that `jaccl --help` is quick.
"""

import argparse
import os
import sys

from jaccl_kernel import __version__
from jaccl_kernel.commands import (
    bench,
    bringup,
    hostfile,
    kernel,
    lab,
    model,
    prepare,
    rehearse,
    report,
    serve,
    sync,
    terminal,
    troubleshoot,
)
from jaccl_kernel.errors import HostfileError, InputError, JacclError


def main(argv: list[str] | None = None) -> None:
    """The console script `jaccl`."""
    parser = _parser()
    options, more = parser.parse_known_args(argv)
    options.more = more
    if more and not getattr(options, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        status = options.run(options)
    except (HostfileError, InputError) as error:
        status = terminal.fail(error, 2)
    except JacclError as error:
        status = terminal.fail(error, 1)
    except BrokenPipeError:  # `jaccl … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaccl",
        description="One machine for large language models out of 1-8 Macs joined by Thunderbolt 5 cables.",
        epilog="No Macs at hand? `jaccl rehearse` makes simulated ones; every command takes their hostfile.",
    )
    parser.add_argument("--version", action="version", version=f"jaccl-kernel {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (
        rehearse,
        prepare,
        bringup,
        hostfile,
        model,
        sync,
        bench,
        report,
        serve,
        troubleshoot,
        lab,
        kernel,
    ):
        group.add(commands)
    return parser


if __name__ == "__main__":
    main()
