"""What is asked of a Mac, and the raw answer: a table of read-only commands, and their results.

Bare names, to be found through the PATH that `SEARCH_PATH` extends: a non-login ssh shell on macOS has a
short one, and a simulated Mac has commands of its own in front of it. Runs nothing itself.
"""

from dataclasses import dataclass

SEARCH_PATH = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/opt/homebrew/bin", "/usr/local/bin")
"""Folders to append to a node's PATH before the commands run."""

PACKAGES = ("mlx", "mlx-lm", "transformers", "jaccl-kernel")

# Reads the installed packages' own records: importing mlx would take seconds, and memory on the GPU.
_PYTHON_PROBE = f"""
import json, platform, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({{"executable": sys.executable, "version": platform.python_version(),
                  "packages": {{name: version(name) for name in {PACKAGES!r}}}}}))
""".strip()


@dataclass(frozen=True)
class Command:
    """One read-only command: `deadline_s` is how long it may take on a Mac that is well."""

    id: str
    argv: tuple[str, ...]
    deadline_s: float = 5.0


@dataclass(frozen=True)
class CommandResult:
    """What a command gave. `returncode` is None when it never ended; `at` is when, on our own clock
    (seconds since 1970), it ran, or None if no one noted it."""

    stdout: str = ""
    stderr: str = ""
    returncode: int | None = 0
    timed_out: bool = False
    at: float | None = None


def commands(python: str = "python3") -> tuple[Command, ...]:
    """The whole scan of a Mac.

    Args:
        python: the interpreter that jobs will run on, preferably as an absolute path.
    """
    return (
        Command("hostname", ("hostname",)),
        Command("uname", ("uname", "-m")),
        Command("sw_vers", ("sw_vers",)),
        Command(
            "sysctl", ("sysctl", "hw.memsize", "hw.model", "machdep.cpu.brand_string", "iogpu.wired_limit_mb")
        ),
        Command("rdma_ctl", ("rdma_ctl", "status")),
        Command("ibv_devices", ("ibv_devices",)),
        Command("ibv_devinfo", ("ibv_devinfo", "-v")),  # known to hang
        Command("system_profiler", ("system_profiler", "SPThunderboltDataType", "-json"), 20.0),
        Command("networksetup", ("networksetup", "-listallhardwareports"), 10.0),
        Command("ifconfig", ("ifconfig", "-a")),
        Command("getifaddr_en0", ("ipconfig", "getifaddr", "en0")),
        Command("getifaddr_en1", ("ipconfig", "getifaddr", "en1")),
        Command("pmset", ("pmset", "-g")),
        Command("pmset_batt", ("pmset", "-g", "batt")),
        Command("pmset_ac", ("pmset", "-g", "ac")),
        Command("pmset_assertions", ("pmset", "-g", "assertions")),
        Command("df", ("df", "-kP", ".")),
        Command("date", ("date", "+%s")),
        Command("rsync", ("rsync", "--version")),
        Command("ssh", ("ssh", "-V")),
        Command("python", (python, "-c", _PYTHON_PROBE), 20.0),
    )


COMMANDS = commands()
