"""What a step leaves in the results folder: JSON, whole or not at all, under a name with the date."""

import contextlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import JacclError
from jaccl_kernel.paths import results_dir


def stamp() -> str:
    """Now, for a file name: 20261122-235959."""
    return time.strftime("%Y%m%d-%H%M%S")


def save_json(kind: str, data: Any) -> Path:
    """Write `results/KIND-DATE.json`, never over another, and return its path.

    Raises:
        JacclError: the folder cannot be written.
    """
    return save_text(f"{kind}-{stamp()}", ".json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def save_text(stem: str, suffix: str, text: str, *, folder: Path | None = None) -> Path:
    """Write a text under `stem` and `suffix`, with a number between them if that file is there already.

    Raises:
        JacclError: the folder cannot be written.
    """
    folder = folder or results_dir()
    scratch = folder / f".{stem}.{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        number, path = 1, folder / f"{stem}{suffix}"
        while True:
            try:
                os.link(scratch, path)  # unlike a rename, it never replaces a file
            except FileExistsError:
                number += 1
                path = folder / f"{stem}-{number}{suffix}"
            else:
                return path
    except OSError as error:
        raise JacclError(
            f"could not be saved: {error.strerror}",
            where=str(folder / f"{stem}{suffix}"),
            fix="Free some space, or set JACCL_RESULTS to a folder that can be written.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
