"""`jaccl …`: the commands, in groups by step, and the exit status of all of them.

Exit status: 0 success; 1 the step found a problem or failed; 2 the command line or a file is invalid; 130
and 143 after SIGINT and SIGTERM. A command's module is imported only when the command runs, so that
`jaccl --help` is fast.
"""

import errno
import os
import sys

from cyclopts import App, CycloptsError, Group, Parameter

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import HostfileError, InputError, JacclError

COMMANDS = {
    "Prepare": {
        "rehearse": "Create simulated Macs on this machine",
        "probe": "Read the hardware, software and cables of every Mac (exit 0: all answered)",
        "enable": "Show which Macs are ready for RDMA, and the steps for the others (exit 0: all are ready)",
        "environment": "Check or create the same Python environment on every node (exit 0: same and working)",
    },
    "Verify": {
        "verify": "Run every check, from ssh to correct sums on the ranks (exit 0: all passed)",
    },
    "Hostfile": {
        "hostfile": "Check a hostfile, write a template, or write the one that matches the cables",
        "network": "Show the commands that give each Thunderbolt port an address; --apply runs them",
    },
    "Sync": {
        "model": "Describe a model, and the numbers of ranks that it supports",
        "sync": "Copy a model to every node and verify it by checksum (exit 0: complete on all nodes)",
    },
    "Bench": {
        "bench": "Measure tokens per second over ranks, with a parity check (exit 0: all ran, parity holds)",
        "report": "Show a saved record as a table, HTML or CSV, or compare two records",
    },
    "Serve": {
        "serve": "Serve a model over all ranks as an OpenAI-compatible API, until Ctrl-C (or --detach)",
        "stop": "Stop a server",
        "status": "Show the running servers (exit 0: all are ready)",
        "logs": "Show the log of a server and its ranks",
    },
    "More": {
        "troubleshoot": "Explain an error or the latest logs, and find leftover processes on the Macs",
        "lab": "Open the workbench in JupyterLab; other arguments, such as --no-browser, go to jupyter lab",
        "kernel": "Install the JACCL kernel, whose cells run on all ranks (`jaccl lab` does it itself)",
    },
}  # fmt: skip
_DISK = "Free disk space, or set JACCL_CACHE to a folder on another disk."
_FOLDER = "Choose a folder that you may write, or set JACCL_CACHE to one."
SYSTEM = {
    errno.ENOSPC: _DISK, errno.EDQUOT: _DISK,
    errno.EROFS: _FOLDER, errno.EACCES: _FOLDER, errno.EPERM: _FOLDER,
    errno.EMFILE: "Raise the limit of open files: ulimit -n 1024.",
    errno.ENFILE: "Close programs: this machine has no open file left.",
}  # fmt: skip
"""The fix of an error of the system."""
HOSTFILE_COMMANDS = {
    "check": "Check a hostfile as mlx.launch and JACCL read it (exit 0: valid, 1: problems, 2: unreadable)",
    "new": "Write a template for these hosts, to edit",
    "write": "Scan the Macs and write the hostfile that matches them; shows the changes first",
}
MODULES = {
    "probe": "bringup", "verify": "bringup", "network": "bringup",
    "enable": "prepare", "environment": "prepare", "kernel": "lab",
    "stop": "serve", "status": "serve", "logs": "serve",
}  # fmt: skip
"""The module of a command, if it has another name."""


def main(argv: list[str] | None = None) -> None:
    """Run the console script `jaccl`."""
    _open_streams()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(words: list[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        status = make_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        chain = " ".join(["jaccl", *(error.command_chain or ())])
        return _fail(InputError(str(error).strip(), fix=f"See `{chain} --help`."), 2)
    except (HostfileError, InputError) as error:
        return _fail(error, 2)
    except JacclError as error:
        return _fail(error, 1)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("jaccl_kernel"):
            raise
        return _fail(_missing(error.name, words[0]), 1)
    except BrokenPipeError:  # `jaccl … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in SYSTEM:
            raise
        return _fail(_system_error(error), 1)
    if isinstance(status, int):
        return status
    return 0 if {"--help", "-h", "--version"} & set(words) else 2  # no command: the help was shown


def _fail(error: JacclError, status: int) -> int:
    from jaccl_kernel.cli import terminal  # `jaccl --help` does not need it

    return terminal.fail(error, status)


def _open_streams() -> None:
    """Open the standard streams that the caller has closed (`2>&-`): a socket must not take their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _system_error(error: OSError) -> JacclError:
    """Return a disk, folder or process limit that no step has explained, as a sentence."""
    from jaccl_kernel.core.errors import JobError

    where = str(error.filename) if error.filename else ""
    return JobError(f"{error.strerror}", where=where, fix=SYSTEM[error.errno or 0])


def _missing(module: str, name: str) -> JacclError:
    from jaccl_kernel.core import layers

    return layers.missing(module, f"`jaccl {name}`")


def make_app() -> App:
    """All commands, none of whose modules is imported yet."""
    app = App(
        name="jaccl",
        help="Turn 1-8 Macs joined by Thunderbolt 5 cables into one machine for large language models.\n\n"
        "No Macs at hand? `jaccl rehearse` creates simulated ones; every command accepts their hostfile.",
        help_format="plaintext",
        version=f"jaccl-kernel {__version__}",
        default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
        group_parameters=Group("Options", sort_key=0),
        group_commands=Group("Options", sort_key=99),
    )
    for number, (title, commands) in enumerate(COMMANDS.items(), 1):
        heading = Group(title, sort_key=number)
        for place, (name, text) in enumerate(commands.items()):
            if name == "hostfile":
                app.command(_hostfile_app(text, heading, place))
                continue
            path = f"jaccl_kernel.cli.{MODULES.get(name, name)}:{name}"
            app.command(path, name=name, help=text, group=heading, sort_key=place)
    return app


def _hostfile_app(text: str, heading: Group, number: int) -> App:
    app = App(name="hostfile", help=text, group=heading, sort_key=number)
    heading = Group("Commands")
    for place, (name, about) in enumerate(HOSTFILE_COMMANDS.items()):
        path = f"jaccl_kernel.cli.{'bringup' if name == 'write' else 'hostfile'}:{name}"
        app.command(path, name=name, help=about, group=heading, sort_key=place)
    return app


if __name__ == "__main__":
    main()
