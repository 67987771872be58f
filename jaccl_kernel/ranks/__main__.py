"""`python -m jaccl_kernel.ranks PROGRAM …`: one rank, from its first line to its exit status.

Wired (started by a job of ours): say hello, import, say ready, join on the host's go, run, finish on its ack.
Plain (under mlx.launch, by cron, by hand): the same work, told as text.
"""

import argparse
import importlib
import os
import sys
import traceback
from typing import Any

from jaccl_kernel.errors import JacclError
from jaccl_kernel.ranks import world as worlds
from jaccl_kernel.ranks.link import Link

PROGRAMS = {
    "smoke": "join the group, prove it and measure a small all_sum",
    "bench": "load a model over the ranks and measure prefill and decoding",
    "serve": "load a model over the ranks and serve OpenAI's API on rank 0",
    "resident": "stay, as engines for a notebook's cells",
}
GO_DEADLINE_S = 3600.0  # the host has deadlines of its own and ends our stdin: this bounds a host that hangs
PLAIN_JOIN_DEADLINE_S = 120.0


def main(argv: list[str] | None = None) -> None:
    """Run one rank program; the exit status is 0 only when its work is whole."""
    link = Link.open()
    try:
        returncode = _run(link, argv)
    except SystemExit as stop:  # argparse
        returncode = stop.code if isinstance(stop.code, int) else 2
    except BaseException as error:
        _tell(link, error)
        returncode = 1
    link.finish(returncode)


def _run(link: Link, argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaccl_kernel.ranks", description=__doc__)
    chosen = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    arguments = sys.argv[1:] if argv is None else argv
    # only the chosen program is imported: its imports are the slow part, and its stage is told first
    name = next((a for a in arguments if a in PROGRAMS), None)
    link.stage("import", f"importing {name or 'nothing'}")
    if link.wired:
        worlds.drop_overrides(os.environ.get("JACCL_KERNEL_BACKEND"))
    program: Any = None
    for key, text in PROGRAMS.items():
        sub = chosen.add_parser(key, help=text, description=text)
        if key == name:
            program = importlib.import_module(f"jaccl_kernel.ranks.{key}")
            importlib.import_module("mlx.core")  # before ready: ranks that meet late wait for each other
            program.add_arguments(sub)
    options = parser.parse_args(arguments)
    world = worlds.World.from_environment()
    go: dict[str, Any] = {}
    if link.wired:
        link.say("ready", rank_of=world.size, **facts())
        link.stage("wait", "waiting for the other ranks")
        go = link.receive("go", deadline=GO_DEADLINE_S)
    link.stage("join", f"joining as {world.name()}")
    deadline = float(go.get("join_deadline", PLAIN_JOIN_DEADLINE_S))
    group = worlds.join(world, deadline=deadline, log=link.log)
    link.say("joined", size=world.size, backend=world.backend)
    return int(program.run(options, world=world, group=group, link=link, payload=go.get("payload") or {}))


def facts() -> dict[str, Any]:
    """What this rank runs on, for the record: host, machine and versions."""
    import platform
    import socket
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "chip": _chip(),
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "build": _macos_build(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in ("mlx", "mlx-lm", "transformers", "jaccl-kernel")},
    }


def _chip() -> str:
    import platform
    from pathlib import Path

    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _macos_build() -> str:
    return _output("sw_vers", "-buildVersion") if sys.platform == "darwin" else ""


def _output(*command: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _tell(link: Link, error: BaseException) -> None:
    """Say what ended this rank: as an event, and in full in its log and on stderr."""
    text = "".join(traceback.format_exception(error))
    if link.log:
        link.log.write(text)
    if isinstance(error, JacclError):
        sys.stderr.write(f"error: {error}\n")
    else:
        sys.stderr.write(text)
    sys.stderr.flush()
    link.say(
        "error",
        type=type(error).__name__,
        message=error.what if isinstance(error, JacclError) else str(error) or repr(error),
        fix=error.fix if isinstance(error, JacclError) else "",
        stage=link.stage_name,
    )


if __name__ == "__main__":
    main()
