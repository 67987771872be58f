"""The system programs that this machine needs, what fails without them, and how to install them.

Checks the PATH only. `.ci/system-tools` installs them if it has permission; it has the same messages in sh,
for a machine without Python.
"""

import os
import shutil
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """One program.

    Attributes:
        name: its command.
        package: the name of its Debian package.
        without: what fails without it.
    """

    name: str
    package: str
    without: str

    def __str__(self) -> str:
        return f"{self.name} is not installed: {self.without}"

    @property
    def fix(self) -> str:
        """The command that installs it on this machine."""
        return f"Install it: {install_command(self.package)}"


TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "rsync",
            "rsync",
            "copying to other machines fails (the rehearsal works without it)",
        ),
        Tool("ssh", "openssh-client", "connecting to other machines fails (the rehearsal works without it)"),
    )
}


def missing() -> list[Tool]:
    """Return the tools that are not in the PATH."""
    return [tool for tool in TOOLS.values() if shutil.which(tool.name) is None]


def install_command(package: str) -> str:
    """Return the shell command that installs a package, by its Debian name, on this machine."""
    if sys.platform == "darwin":
        return f"brew install {package.removesuffix('-client').removesuffix('-server')}"
    if shutil.which("apt-get"):
        return f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {package}"
    return f"install {package} with this system's package manager"
