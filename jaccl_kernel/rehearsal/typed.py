"""The program behind a simulated Mac's ifconfig, route, networksetup and sysctl when they change the Mac.

    python -m jaccl_kernel.rehearsal.typed HOME TOOL ARGUMENTS…

It needs the Mac's simulated sudo, and changes only the Mac's description.
"""

import os
import sys
from pathlib import Path

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.rehearsal.folder import MacFolder
from jaccl_kernel.rehearsal.scripts import ROOT

_NOT_ALLOWED = {
    "ifconfig": "ifconfig: ioctl: permission denied",
    "route": "route: must be root to alter routing table",
    "networksetup": "** Error: Command requires admin privileges.",
    "sysctl": "sysctl: Operation not permitted",
}


def main(home: str, *line: str) -> str:
    """Apply the command line to the Mac with that home; return an error message, or ""."""
    if os.environ.get(ROOT) != "1":
        return _NOT_ALLOWED[line[0]]
    try:
        MacFolder(Path(home)).change(line)
    except InputError as error:
        return error.what
    except (JacclError, OSError) as error:
        return f"{line[0]}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) or 0)  # a message goes to stderr, with status 1
