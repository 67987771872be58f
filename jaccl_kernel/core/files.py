"""Atomic writes: records under a name with the date, and other files of the workbench.

A reader never finds a partial file. No mlx.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.paths import results_dir


def stamp() -> str:
    """Return the current time for a file name: 20261122-235959."""
    return time.strftime("%Y%m%d-%H%M%S")


def save_json(kind: str, data: Any, *, folder: Path | None = None) -> Path:
    """Write `results/KIND-DATE.json` without replacing another file, and return its path.

    Raises:
        JacclError: the folder is not writable.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return save_text(f"{kind}-{stamp()}", ".json", text, folder=folder)


def save_text(stem: str, suffix: str, text: str, *, folder: Path | None = None) -> Path:
    """Write a text under `stem` and `suffix`, with a number between them if that file exists.

    Raises:
        JacclError: the folder is not writable.
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
    """Write or replace this file.

    Raises:
        JacclError: it cannot be written; the old file is unchanged.
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
            f"cannot save the file: {error.strerror or error}",
            where=str(path),
            fix="Free space, or choose a writable folder (JACCL_RESULTS, JACCL_CACHE).",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
