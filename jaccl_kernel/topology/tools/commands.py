"""The read-only commands of a probe, and the type of their raw results. Runs nothing itself.

Commands have bare names and are found through PATH, which `nodes.node.SEARCH_PATH` extends: a non-login ssh
shell on macOS has a short PATH, and a simulated Mac puts its own commands first.
"""

from dataclasses import dataclass

PACKAGES = ("mlx", "mlx-lm", "transformers", "jaccl-kernel")

# Reads package metadata: importing mlx would take seconds and GPU memory.
PYTHON_PROBE = f"""
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

# Runs $1 with the other arguments. macOS's own Python is not run: without Xcode's tools it opens a dialog on
# that Mac's screen, and with them it is 3.9, too old for jobs.
_GUARDED = """
system=$(uname)
places=$PATH
case $1 in */*) places=${1%/*} ;; esac
IFS=:
for folder in $places; do
  found=$folder/${1##*/}
  [ -x "$found" ] && [ ! -d "$found" ] && [ "$found:$system" != /usr/bin/python3:Darwin ] || continue
  shift
  exec "$found" "$@"
done
echo "$1 was not found, except for /usr/bin/python3, which is not run" >&2
exit 127
""".strip()


@dataclass(frozen=True)
class Command:
    """One read-only command and its deadline in seconds."""

    id: str
    argv: tuple[str, ...]
    deadline_s: float = 5.0


@dataclass(frozen=True)
class CommandResult:
    """The raw result of a command.

    `returncode` is None if the command did not end. `at` is the time when it ran, by our clock, in seconds
    since 1970, or None if unknown.
    """

    stdout: str = ""
    stderr: str = ""
    returncode: int | None = 0
    timed_out: bool = False
    at: float | None = None


def commands(python: str = "python3") -> tuple[Command, ...]:
    """All commands of a probe.

    Args:
        python: the interpreter that jobs will use, preferably an absolute path.
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
        Command("python", ("sh", "-c", _GUARDED, "sh", python, "-c", PYTHON_PROBE), 20.0),
    )


COMMANDS = commands()
