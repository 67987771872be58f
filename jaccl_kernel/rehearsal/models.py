"""Models in the model folders of simulated Macs: copied, made incomplete for a fault, and restored.

Files are copied, never linked, so that a rehearsal cannot change the original model.
"""

import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaccl_kernel.models.demo import demo_path, demo_ready
from jaccl_kernel.rehearsal.folder import MacFolder

_SHELF = "withheld"


def place_model(
    mac: MacFolder, source: Path, name: str | None = None, *, without: Iterable[str] = ()
) -> Path:
    """Copy a model to a Mac's model folder atomically; an existing model of that name is replaced.

    Args:
        mac: the Mac.
        source: a model folder on this machine.
        name: the name of the copy; that of `source` by default.
        without: names of files to omit, for an incomplete copy.

    Raises:
        OSError: the copy failed; it leaves no files.
    """
    target = mac.models / (name or source.name)
    scratch = mac.models / f".{target.name}.{secrets.token_hex(4)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, scratch, ignore=shutil.ignore_patterns(*without))
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def withhold(mac: MacFolder) -> None:
    """Remove the last weights file of each model, once: a copy that the user completes stays complete.

    A Mac without a model gets the demo model first, if that is in the cache; otherwise a later call removes
    the file.

    Raises:
        OSError: the folder cannot be written.
    """
    shelf = mac.state / _SHELF
    if shelf.exists():
        return
    if not list(_models(mac)) and demo_ready():
        place_model(mac, demo_path())
    for model in _models(mac):
        if weights := sorted(model.glob("*.safetensors")):
            folder = shelf / model.relative_to(mac.models)
            folder.mkdir(parents=True, exist_ok=True)
            weights[-1].rename(folder / weights[-1].name)


def give_back(mac: MacFolder) -> None:
    """Restore the files that `withhold` removed, where they are still missing.

    Raises:
        OSError: the folder cannot be written.
    """
    shelf = mac.state / _SHELF
    if not shelf.exists():
        return
    for kept in list(shelf.rglob("*.safetensors")):
        target = mac.models / kept.relative_to(shelf)
        if target.parent.is_dir() and not target.exists():
            kept.rename(target)
    shutil.rmtree(shelf)


def _models(mac: MacFolder) -> Iterator[Path]:
    """The model folders in order, without those of unfinished copies, whose names start with a dot."""
    for config in sorted(mac.models.rglob("config.json")):
        if not any(part.startswith(".") for part in config.relative_to(mac.models).parts):
            yield config.parent
