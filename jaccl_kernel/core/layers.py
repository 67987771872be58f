"""The two layers of dependencies: a node needs the base layer; notebooks and figures also need `[workbench]`.

Finds a missing module of the workbench layer, and installs the layer. pyproject.toml defines both layers.
"""

import importlib
import importlib.util
import shlex
import subprocess
import sys

from jaccl_kernel import __version__
from jaccl_kernel.core.errors import JacclError

WORKBENCH = f"jaccl-kernel[workbench]=={__version__}"
MODULES = (
    "jupyterlab", "ipykernel", "jupyter_client", "ipywidgets", "anywidget", "traitlets", "matplotlib",
    "markdown_it",
)  # fmt: skip
"""The import names of the modules that the workbench layer adds."""


def first_missing() -> str | None:
    """Return the first module of the workbench layer that is not installed, or None; imports none of them."""
    return next((module for module in MODULES if importlib.util.find_spec(module) is None), None)


def missing(module: str, needed_by: str) -> JacclError:
    """Return the error for a module that is not installed.

    Args:
        module: its import name.
        needed_by: the feature that needs it, as the subject of a sentence.
    """
    return JacclError(
        f"{needed_by} needs the Python module {module}, which is not installed",
        where=sys.prefix,
        fix=f"Install the workbench layer: {install_command()}",
    )


def install_command() -> str:
    """Return the shell command that adds the workbench layer to this environment."""
    return shlex.join(_install_command())


def install() -> None:
    """Add the workbench layer to this environment; pip writes to this process's stdout and stderr.

    pip reads the layer's requirements from the installed copy of this package, which it does not replace.

    Raises:
        JacclError: pip is missing or failed.
    """
    if status := subprocess.run(_install_command(), stdin=subprocess.DEVNULL, check=False).returncode:
        raise JacclError(
            f"pip could not install the workbench layer (exit status {status})",
            where=sys.prefix,
            fix=f"See pip's error above. In an environment without pip: uv pip install '{WORKBENCH}'.",
        )
    importlib.invalidate_caches()


def _install_command() -> list[str]:
    return [sys.executable, "-m", "pip", "install", WORKBENCH]
