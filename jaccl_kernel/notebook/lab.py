"""`jaccl lab`: JupyterLab on the workbench's notebooks, from this environment, nothing fetched from afar."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from jaccl_kernel.errors import JacclError
from jaccl_kernel.notebook import kernelspec

# JupyterLab asks the network for news and for newer extensions: the workbench works without either
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/extensionmanager-extension:plugin": {"enabled": False},
}
START = "00_start.ipynb"


def open_lab(arguments: list[str]) -> NoReturn:
    """Become JupyterLab on notebooks/00_start.ipynb; `arguments` go to `jupyter lab`.

    In this process's place, not as its child: then Ctrl-C and SIGTERM are JupyterLab's own, which asks first,
    or ends its kernels before it goes.

    Raises:
        JacclError: the notebooks are not where this package was installed from.
    """
    folder = Path(__file__).resolve().parents[2] / "notebooks"
    if not (folder / START).exists():
        raise JacclError(
            "the notebooks are not here",
            where=str(folder),
            fix="Install the package from a clone of the project (pip install -e .), which has them.",
        )
    settings = Path(sys.prefix) / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    if not settings.exists():  # a person's own choices stay
        settings.write_text(json.dumps(OVERRIDES, indent=1), encoding="utf-8")
    with contextlib.suppress(JacclError):  # an environment that cannot be written: Lab works without it
        kernelspec.install()
    root = folder.parent
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", *arguments]
    if not any(not argument.startswith("-") and argument.endswith(".ipynb") for argument in arguments):
        command.append(f"--LabApp.default_url=/lab/tree/notebooks/{START}")
    if os.geteuid() == 0 and "--allow-root" not in arguments:
        # in a container there is often no one else; it still listens on loopback and asks for its token
        command.append("--allow-root")
    # a kernel's working folder is notebooks/: records belong beside it
    environ = {"JACCL_RESULTS": str(root / "results"), **os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    sys.stdout.flush()
    os.chdir(root)
    os.execve(sys.executable, command, environ)
