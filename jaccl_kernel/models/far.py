"""What `inspect` tells of a model on another node, from the heads of its files: no weight travels.

The heads are laid out in a scratch folder as files with holes, each as long as the real one, so that the one
reader of models judges all of them. What fetches the heads is not known here.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaccl_kernel.errors import ModelError
from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect


def inspect_heads(sizes: Mapping[str, int], heads: Mapping[str, bytes], *, where: str) -> ModelFacts:
    """As `inspect`, for a folder whose files have these sizes and begin with these bytes.

    Args:
        sizes: bytes of every file, by its path in the folder.
        heads: config.json and the index whole, weight files up to the end of their header.
        where: what errors call the folder.

    Raises:
        ModelError: as `inspect`; or this machine has no room for the scratch folder.
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
                place = error.where.replace(scratch, where)
                what = error.what.replace(scratch, where)
                raise ModelError(what, where=place, fix=error.fix.replace(scratch, where)) from None
    except OSError as error:
        fix = "Free some space there, or set TMPDIR to another folder."
        raise ModelError(
            f"cannot be judged: {error.strerror}", where=tempfile.gettempdir(), fix=fix
        ) from error
