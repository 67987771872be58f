"""Installs the kernelspec of the JACCL kernel in an environment's or a user's data folder."""

import json
import sys
import tempfile
from pathlib import Path

from jaccl_kernel.core.errors import JacclError

NAME = "jaccl"
SPEC = {
    "argv": [sys.executable, "-m", "jaccl_kernel.notebook.kernel", "-f", "{connection_file}"],
    "display_name": "JACCL",
    "language": "python",
    "interrupt_mode": "signal",
    "metadata": {"debugger": False},
}


def install(*, user: bool = False, prefix: str | None = None) -> Path:
    """Install the kernelspec, replacing an older one; returns its folder.

    Args:
        user: install for this user, in all environments.
        prefix: the environment to install in; None for this one.

    Raises:
        JacclError: the folder cannot be written.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(SPEC, indent=1), encoding="utf-8")
        try:
            where = KernelSpecManager().install_kernel_spec(
                folder, NAME, user=user, prefix=None if user else prefix or sys.prefix
            )
        except OSError as error:
            raise JacclError(
                f"cannot install the JACCL kernel: {error.strerror}",
                where=str(error.filename or prefix or sys.prefix),
                fix="Install it for this user: jaccl kernel --user.",
            ) from error
    return Path(where)


def remove() -> Path | None:
    """Remove the kernelspec that Jupyter finds first; returns its folder, or None if there is none."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        return Path(KernelSpecManager().remove_kernel_spec(NAME))
    except (NoSuchKernel, KeyError):
        return None
