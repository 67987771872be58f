"""Files that are written whole or not at all: records under a name with the date, and files of our own.

The one place that writes what must never be found half-written. No mlx.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import JacclError
from jaccl_kernel.paths import results_dir


def stamp() -> str:
    """Now, for a file name: 20261122-235959."""
    return time.strftime("%Y%m%d-%H%M%S")


def save_json(kind: str, data: Any, *, folder: Path | None = None) -> Path:
    """Write `results/KIND-DATE.json`, never over another, and return its path.

    Raises:
        JacclError: the folder cannot be written.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return save_text(f"{kind}-{stamp()}", ".json", text, folder=folder)


def save_text(stem: str, suffix: str, text: str, *, folder: Path | None = None) -> Path:
    """Write a text under `stem` and `suffix`, with a number between them if that file is there already.

    Raises:
        JacclError: the folder cannot be written.
    """
    folder = folder or results_dir()

    def put(scratch: Path) -> Path:
        number, path = 1, folder / f"{stem}{suffix}"
        while True:
            try:
                os.link(scratch, path)  # unlike a rename, it never replaces a file
            except FileExistsError:
                number += 1
                path = folder / f"{stem}-{number}{suffix}"
            else:
                return path

    return _written(folder / f"{stem}{suffix}", text, put)


def write_text(path: Path, text: str) -> Path:
    """Write this very file, in the place of the one that is there.

    Raises:
        JacclError: it cannot be written; the old one stays.
    """
    return _written(path, text, lambda scratch: scratch.replace(path))


def _written(path: Path, text: str, put: Callable[[Path], Path]) -> Path:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        return put(scratch)
    except OSError as error:
        raise JacclError(
            f"could not be saved: {error.strerror or error}",
            where=str(path),
            fix="Free some space, or choose a folder that can be written (JACCL_RESULTS, JACCL_CACHE).",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
