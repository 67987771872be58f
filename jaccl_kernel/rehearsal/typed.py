"""The program behind a simulated Mac's ifconfig, route, networksetup and sysctl where they would change it.

    python -m jaccl_kernel.rehearsal.typed HOME TOOL ARGUMENTS…

Only the Mac's own sudo makes it do anything, and all that it changes is the Mac's description.
"""

import os
import sys
from pathlib import Path

from jaccl_kernel.errors import InputError, JacclError
from jaccl_kernel.rehearsal.folder import MacFolder
from jaccl_kernel.rehearsal.scripts import ROOT

_NOT_ALLOWED = {
    "ifconfig": "ifconfig: ioctl: permission denied",
    "route": "route: must be root to alter routing table",
    "networksetup": "** Error: Command requires admin privileges.",
    "sysctl": "sysctl: Operation not permitted",
}


def main(home: str, *line: str) -> str:
    """Do what the line says on the Mac that lives in `home`; the words of a refusal, or none."""
    if os.environ.get(ROOT) != "1":
        return _NOT_ALLOWED[line[0]]
    try:
        MacFolder(Path(home)).change(line)
    except InputError as refusal:
        return refusal.what
    except (JacclError, OSError) as error:
        return f"{line[0]}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) or 0)  # words go to stderr, and make it 1
