"""Models in the model folders of simulated Macs: put there, made partial on purpose, and made whole again.

Files are copied, never linked: what a rehearsal does to them must not reach the model that they came from.
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
    """Copy a model into a Mac's model folder, in place of one of that name; it is there when it is whole.

    Args:
        mac: whose folder.
        source: a model folder on this machine.
        name: what it is called there; as `source` by default.
        without: names of files to leave out, for a copy that lacks something.

    Raises:
        OSError: it cannot be copied; nothing is left of it then.
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
    """Take the last weights file of each model away, once: a copy that somebody completes stays complete.

    A Mac without any model gets the demo model first, if it is in the cache; else there is nothing to take
    yet, and a later call does it.

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
            place = shelf / model.relative_to(mac.models)
            place.mkdir(parents=True, exist_ok=True)
            weights[-1].rename(place / weights[-1].name)


def give_back(mac: MacFolder) -> None:
    """Put back what `withhold` took, where it is still missing.

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
    """The model folders, in order; those of an unfinished copy begin with a dot."""
    for config in sorted(mac.models.rglob("config.json")):
        if not any(part.startswith(".") for part in config.relative_to(mac.models).parts):
            yield config.parent
