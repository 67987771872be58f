"""`python -m jaccl_kernel.ranks PROGRAM …`: one rank, from its start to its exit status.

Wired (started by a `Job`): send hello, import, send ready, join on the host's go, run, exit on its ack.
Plain (under mlx.launch, cron or a shell): the same work, with text output.
"""

import argparse
import importlib
import os
import sys
import traceback
from typing import Any

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.events import Joined, RankError, Ready
from jaccl_kernel.core.messages import Go
from jaccl_kernel.ranks import group as worlds
from jaccl_kernel.ranks.host_channel import Link

PROG = "python -m jaccl_kernel.ranks"
PROGRAMS = {  # and the names of their options in core/options.py
    "smoke": "SmokeProgram",
    "bench": "BenchProgram",
    "serve": "ServeProgram",
    "resident": "ResidentProgram",
}
GO_DEADLINE_S = 3600.0  # only for a host that hangs: otherwise its own deadlines end this rank's stdin
PLAIN_JOIN_DEADLINE_S = 120.0


def main(argv: list[str] | None = None) -> None:
    """Run one rank program; the exit status is 0 only if it completes."""
    link = Link.open()
    try:
        returncode = _run(link, argv)
    except SystemExit as stop:  # argparse
        returncode = stop.code if isinstance(stop.code, int) else 2
    except BaseException as error:
        _report(link, error)
        returncode = 1
    link.finish(returncode)


def _run(link: Link, argv: list[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else ""
    # only the chosen program and its options are imported: that is slow, and the stage is reported first
    link.stage("import", f"importing {name if name in PROGRAMS else 'nothing'}")
    if link.wired:
        worlds.drop_overrides(os.environ.get("JACCL_KERNEL_BACKEND"))
    chosen = argparse.ArgumentParser(prog=PROG, description=__doc__, usage="%(prog)s PROGRAM …")
    chosen.add_argument("program", choices=PROGRAMS, metavar=f"{{{','.join(PROGRAMS)}}}")
    chosen.parse_args(words[:1])
    from jaccl_kernel.core import options as models
    from jaccl_kernel.core.declare import from_argv

    model = getattr(models, PROGRAMS[name])
    need = ("model",) if "model" in model.model_fields else ()
    options = from_argv(model, words[1:], prog=f"{PROG} {name}", need=need)
    program: Any = importlib.import_module(f"jaccl_kernel.ranks.{name}")
    importlib.import_module("mlx.core")  # before ready: otherwise the other ranks wait in the join
    world = worlds.World.from_environment()
    go = Go(PLAIN_JOIN_DEADLINE_S)
    if link.wired:
        link.send(facts(world.size))
        link.stage("wait", "waiting for the other ranks")
        go = link.receive(Go, deadline=GO_DEADLINE_S)
    world.check_size(go.size)
    link.stage("join", f"joining as {world.name()}")
    group = worlds.join(world, deadline=go.join_deadline, log=link.log)
    link.send(Joined(world.size, world.backend))
    return int(program.run(options, world=world, group=group, link=link, payload=go.payload))


def facts(size: int) -> Ready:
    """This rank's machine and versions, for the record; `size` is the number of ranks."""
    import platform
    import socket
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return Ready(
        rank_of=size,
        host=socket.gethostname(),
        machine=platform.machine(),
        chip=_chip(),
        system=f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        build=_macos_build(),
        python=platform.python_version(),
        packages={name: installed(name) for name in ("mlx", "mlx-lm", "transformers", "jaccl-kernel")},
    )


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


def _report(link: Link, error: BaseException) -> None:
    """Report the error that ended this rank: as an event, and in full in its log and on stderr."""
    text = "".join(traceback.format_exception(error))
    if link.log:
        link.log.write(text)
    if isinstance(error, JacclError):
        sys.stderr.write(f"error: {error}\n")
    else:
        sys.stderr.write(text)
    sys.stderr.flush()
    what, fix = (error.what, error.fix) if isinstance(error, JacclError) else (str(error) or repr(error), "")
    link.send(RankError(type(error).__name__, what, fix, link.stage_name))


if __name__ == "__main__":
    main()
