"""The weight files of a model folder, by their headers: names, shapes, types, sizes. The data is never read.

Knows the safetensors format (8 bytes of header length, a JSON header, then the data) and which files mlx-lm
loads; what the tensors mean is `inspect.py`'s business. Every way in which a folder is not whole is an
error that names the file.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import ModelError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
MAX_JSON = 64 * 2**20  # bytes of config.json or of the index: a trillion-parameter index has about 10 MB
_LENGTH_BYTES = 8
_LFS_POINTER = b"version "  # how the text begins that `git clone` leaves without Git LFS
_GET_ONE = (
    "mlx-lm reads safetensors only: get the model in that form, or make it with "
    "`mlx_lm.convert --hf-path ORG/NAME -q`."
)
_COPY_AGAIN = "The copy or download is not whole: fetch this file again."
_SERIES = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.safetensors")  # model-00001-of-00003.safetensors

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor as its file's header tells it, `dtype` in safetensors' words (F16, U32 …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def module(self) -> str:
        """The module that it belongs to: the name without its last part."""
        return self.name.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """What it is to its module: weight, scales, biases, bias …"""
        return self.name.rpartition(".")[2]

    @property
    def size(self) -> int:
        """How many elements it stores (a packed word counts as one)."""
        return prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """All weights of a folder.

    Attributes:
        files: names of the files that mlx-lm loads, sorted.
        tensors: by name, sorted; a name that stands in two files counts once, as when loading.
        indexed: whether there is an index, which a pipeline over ranks needs.
        digest: sha256 over names, types and shapes of the tensors, and over the sizes of the files.
    """

    files: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    indexed: bool
    digest: str


def read_weights(folder: Path) -> Weights:
    """The weights of `folder`, checked to be whole as far as headers and sizes can tell.

    Raises:
        ModelError: no weights, a missing shard, a truncated or damaged file, an index that does not fit.
    """
    files = _weight_files(folder)
    headers = {file.name: read_header(file) for file in files}
    index = folder / INDEX
    if index.exists():
        _check_index(index, headers)
    tensors = {tensor.name: tensor for header in headers.values() for tensor in header}
    ordered = tuple(tensors[name] for name in sorted(tensors))
    digest = hashlib.sha256()
    for tensor in ordered:
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return Weights(tuple(file.name for file in files), ordered, index.exists(), digest.hexdigest())


def scales_of(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """The scales of each quantized module, by its name: one per row and group, groups on the last axis."""
    return {t.name.removesuffix(".scales"): t for t in tensors if t.name.endswith(".scales")}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of the model folder; raises ModelError with line and column."""
    try:
        if (size := file.stat().st_size) > MAX_JSON:
            raise ModelError(f"has {size} bytes, as no such file does", where=str(file), fix=_COPY_AGAIN)
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ModelError(what, where=str(file), fix=_COPY_AGAIN) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ModelError("is not JSON in UTF-8", where=str(file), fix=_COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError("holds no JSON object", where=str(file), fix=_COPY_AGAIN)
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm loads (`model*.safetensors`), with none missing from a numbered series."""
    files = sorted(folder.glob("model*.safetensors"))
    present = {file.name for file in files}
    for name in sorted(present):
        if found := _SERIES.fullmatch(name):
            stem, total = found[1], int(found[3])
            _refuse_missing(
                folder, [f"{stem}{i:05}-of-{found[3]}.safetensors" for i in range(1, total + 1)], present
            )
    if files:
        return files
    if (folder / INDEX).exists():
        _refuse_missing(folder, sorted(set(_weight_map(folder / INDEX).values())), present)
    if others := sorted(folder.glob("*.safetensors")):
        what = f"holds {others[0].name}, but mlx-lm loads only files called model*.safetensors"
        raise ModelError(
            what, where=str(folder), fix="Rename the weights, or convert them with `mlx_lm.convert`."
        )
    refuse_other_formats(folder)
    raise ModelError(
        "holds no weights (model*.safetensors)",
        where=str(folder),
        fix="The copy or download is not whole: fetch the model again.",
    )


def refuse_other_formats(folder: Path) -> None:
    """Raise ModelError if what the folder holds is a model in a form that mlx-lm does not read."""
    for patterns, form in (
        (("*.gguf",), "GGUF"),
        (("*.bin", "*.pth", "*.pt"), "PyTorch"),
        (("*.npz",), "npz"),
    ):
        if found := next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None):
            raise ModelError(f"holds {form} weights only ({found.name})", where=str(folder), fix=_GET_ONE)


def _refuse_missing(folder: Path, wanted: list[str], present: set[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        what = f"lacks {len(missing)} of its {len(wanted)} weight files: {some}"
        raise ModelError(what, where=str(folder), fix="The copy or download is not whole: fetch these files.")


def _weight_map(index: Path) -> dict[str, str]:
    """The index's `weight_map`: tensor name -> file name."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise ModelError("has no weight_map of tensor names to files", where=str(index), fix=_COPY_AGAIN)
    return entries


def _check_index(index: Path, headers: dict[str, tuple[Tensor, ...]]) -> None:
    entries = _weight_map(index)
    _refuse_missing(index.parent, sorted(set(entries.values())), set(headers))
    held = {file: {tensor.name for tensor in header} for file, header in headers.items()}
    for tensor, file in entries.items():
        if tensor not in held[file]:
            what = f"does not hold {tensor}, as the index says"
            raise ModelError(
                what,
                where=str(index.parent / file),
                fix="Index and weights are of different models: fetch both again.",
            )


def read_header(file: Path) -> tuple[Tensor, ...]:
    """The tensors of one safetensors file, after checking that all their data is there.

    Raises:
        ModelError: unreadable, not safetensors, or shorter than its header says (both sizes are told).
    """
    try:
        actual = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if start == _LFS_POINTER:
                what = "is a Git LFS pointer in place of the weights"
                raise ModelError(what, where=str(file), fix="In that folder: git lfs pull")
            if length > MAX_HEADER:
                raise _damaged(file, f"its header would have {length} bytes")
            if actual < _LENGTH_BYTES + length:
                raise _truncated(file, _LENGTH_BYTES + length, actual)
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors, end = [], 0
    for name, entry in header.items():
        tensor, last = _tensor(file, name, entry)
        tensors.append(tensor)
        end = max(end, last)
    if actual < (expected := _LENGTH_BYTES + length + end):
        raise _truncated(file, expected, actual)
    return tuple(tensors)


def _tensor(file: Path, name: str, entry: Any) -> tuple[Tensor, int]:
    """One header entry, and where its data ends (bytes after the header)."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            bits = BITS.get(dtype)
            if start < 0 or end < start or (bits and prod(shape) * bits != (end - start) * 8):
                raise _damaged(
                    file, f"{name} of type {dtype} and shape {shape} cannot have {end - start} bytes"
                )
            return Tensor(name, dtype, tuple(shape), end - start), end
    raise _damaged(file, f"its header entry {name!r} makes no sense")


def _truncated(file: Path, expected: int, actual: int) -> ModelError:
    what = f"is truncated: its header asks for {expected} bytes, the file has {actual}"
    return ModelError(what, where=str(file), fix=_COPY_AGAIN)


def _damaged(file: Path, how: str) -> ModelError:
    return ModelError(f"is no safetensors file, or damaged: {how}", where=str(file), fix=_COPY_AGAIN)
