"""`jaccl lab`: JupyterLab on the workbench's notebooks, from this environment, without network access."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.notebook import kernelspec
from jaccl_kernel.notebook.workbench import START

# JupyterLab would fetch news and look for extensions over the network
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
}


def open_lab(root: Path, arguments: list[str]) -> NoReturn:
    """Replace this process with JupyterLab on 00_start.ipynb.

    Not a child process: JupyterLab itself must handle Ctrl-C and SIGTERM, to ask first or to end its kernels.

    Args:
        root: the workbench folder, or the clone.
        arguments: of `jupyter lab`.
    """
    with contextlib.suppress(OSError):  # JupyterLab works without them if the environment is read-only
        _write_settings()
    with contextlib.suppress(JacclError):
        kernelspec.install()
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", *arguments]
    if not any(not argument.startswith("-") and argument.endswith(".ipynb") for argument in arguments):
        command.append(f"--LabApp.default_url=/lab/tree/{START}")
    if os.geteuid() == 0 and "--allow-root" not in arguments:
        # in a container there is often no other user; it still listens on loopback and requires its token
        command.append("--allow-root")
    # a kernel's working directory is notebooks/: records belong beside it
    environ = {"JACCL_RESULTS": str(root / "results"), **os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    sys.stdout.flush()
    os.chdir(root)
    os.execve(sys.executable, command, environ)


def _write_settings() -> None:
    settings = Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    if not settings.exists():  # keep the user's settings
        settings.write_text(json.dumps(OVERRIDES, indent=1), encoding="utf-8")
