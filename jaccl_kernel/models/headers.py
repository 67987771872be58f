"""Inspects a model on another node from the headers of its files, without a transfer of weights.

The headers are written to sparse files with the sizes of the real ones in a temporary folder, so that
`inspect` reads local and remote models alike.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect


def inspect_heads(sizes: Mapping[str, int], heads: Mapping[str, bytes], *, where: str) -> ModelFacts:
    """As `inspect`, for a folder whose files have these sizes and start with these bytes.

    Args:
        sizes: size of every file in bytes, by its path in the folder.
        heads: complete config.json and index, weight files up to the end of their header.
        where: the name of the folder in errors.

    Raises:
        ModelError: as `inspect`; or this machine has no disk space for the temporary folder.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="jaccl-heads-") as scratch:
            folder = Path(scratch)
            for name, size in sizes.items():
                if "/" not in name:  # mlx-lm reads no subfolders
                    (folder / name).write_bytes(heads.get(name, b"")[:size])
                    os.truncate(folder / name, size)
            try:
                return inspect(folder)
            except ModelError as error:
                location = error.where.replace(scratch, where)
                what = error.what.replace(scratch, where)
                raise ModelError(what, where=location, fix=error.fix.replace(scratch, where)) from None
    except OSError as error:
        fix = "Free disk space, or set TMPDIR to another folder."
        raise ModelError(
            f"cannot write temporary files: {error.strerror}", where=tempfile.gettempdir(), fix=fix
        ) from error
