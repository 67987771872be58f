"""Reads the headers of a model's weight files: names, shapes, types and sizes, never the data.

Covers the safetensors format (8 bytes of header length, a JSON header, then the data) and the choice of files
that mlx-lm loads; `inspect.py` interprets the tensors. Every missing or damaged file is an error with its
name.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from jaccl_kernel.core.errors import ModelError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_JSON = 64 * 2**20  # bytes of config.json or of the index: a trillion-parameter index has about 10 MB
_LENGTH_BYTES = 8
_LFS_POINTER = b"version "  # the start of a pointer file that `git clone` writes without Git LFS
_GET_ONE = (
    "mlx-lm reads only safetensors: download the model in that format, or convert it with "
    "`mlx_lm.convert --hf-path ORG/NAME -q`."
)
_COPY_AGAIN = "The copy or download is incomplete: download this file again."
_SERIES = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.safetensors")  # model-00001-of-00003.safetensors

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}


class Tensor(NamedTuple):
    """One tensor in a file header; `dtype` is safetensors' name (F16, U32 …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def size(self) -> int:
        """Number of stored elements (a packed word counts as one)."""
        return prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """The weights of a folder.

    Attributes:
        files: sorted names of the files that mlx-lm loads.
        tensors: sorted by name; a name in two files counts once, as in mlx-lm.
        indexed: whether there is an index, which a pipeline needs.
        digest: SHA-256 of the tensors' names, types and shapes, and of the file sizes.
    """

    files: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    indexed: bool
    digest: str


def read_weights(folder: Path) -> Weights:
    """Read the weights of `folder` and check their completeness by headers and sizes.

    Raises:
        ModelError: no weights, a missing shard, a truncated or damaged file, or an index that does not match.
    """
    files = _weight_files(folder)
    headers = {file.name: read_header(file) for file in files}
    places = {tensor[0]: file for file, header in headers.items() for tensor in header}
    index = folder / INDEX
    if index.exists():
        _check_index(index, headers, places)
    found: Iterable[Tensor] = chain.from_iterable(headers.values())
    if len(places) < sum(map(len, headers.values())):
        found = {tensor[0]: tensor for tensor in found}.values()
    ordered = tuple(sorted(found, key=itemgetter(0)))
    endings: dict[tuple[str, tuple[int, ...]], str] = {}  # few kinds, however many tensors there are
    lines = []
    for name, dtype, shape, _ in ordered:
        if (ending := endings.get((dtype, shape))) is None:
            ending = endings[dtype, shape] = f" {dtype} {shape}\n"
        lines.append(name + ending)
    digest = hashlib.sha256("".join(lines).encode())
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return Weights(tuple(file.name for file in files), ordered, index.exists(), digest.hexdigest())


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of the model folder; raise ModelError with line and column."""
    try:
        if (size := file.stat().st_size) > MAX_JSON:
            raise ModelError(f"implausible size of {size} bytes", where=str(file), fix=_COPY_AGAIN)
        content = _parse(file.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read the file: {error.strerror}", where=str(file)) from error
    except json.JSONDecodeError as error:
        what = f"invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ModelError(what, where=str(file), fix=_COPY_AGAIN) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ModelError("invalid JSON or UTF-8", where=str(file), fix=_COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelError("the content is not a JSON object", where=str(file), fix=_COPY_AGAIN)
    return content


def _parse(text: bytes) -> Any:
    """JSON as `json.loads` reads it, several times as fast if it is valid."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm loads (`model*.safetensors`); raises if a numbered series is incomplete."""
    files = sorted(folder.glob("model*.safetensors"))
    present = {file.name for file in files}
    series = {(found[1], found[3]) for name in present if (found := _SERIES.fullmatch(name))}
    for stem, total in sorted(series):
        numbers = range(1, int(total) + 1)
        _refuse_missing(folder, [f"{stem}{number:05}-of-{total}.safetensors" for number in numbers], present)
    if files:
        return files
    if (folder / INDEX).exists():
        _refuse_missing(folder, sorted(set(_weight_map(folder / INDEX).values())), present)
    if others := sorted(folder.glob("*.safetensors")):
        what = f"found {others[0].name}, but mlx-lm loads only files named model*.safetensors"
        raise ModelError(
            what, where=str(folder), fix="Rename the weights, or convert them with `mlx_lm.convert`."
        )
    refuse_other_formats(folder)
    raise ModelError(
        "no weights found (model*.safetensors)",
        where=str(folder),
        fix="The copy or download is incomplete: download the model again.",
    )


def refuse_other_formats(folder: Path) -> None:
    """Raise ModelError if the folder has a model in a format that mlx-lm does not read."""
    for patterns, file_format in (
        (("*.gguf",), "GGUF"),
        (("*.bin", "*.pth", "*.pt"), "PyTorch"),
        (("*.npz",), "npz"),
    ):
        if found := next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None):
            what = f"found only {file_format} weights ({found.name})"
            raise ModelError(what, where=str(folder), fix=_GET_ONE)


def _refuse_missing(folder: Path, wanted: list[str], present: set[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        what = f"{len(missing)} of {len(wanted)} weight files are missing: {some}"
        raise ModelError(
            what, where=str(folder), fix="The copy or download is incomplete: download these files."
        )


def _weight_map(index: Path) -> dict[str, str]:
    """The index's `weight_map`: tensor name -> file name."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or set(map(type, entries.values())) - {str}:
        raise ModelError(
            "the weight_map (tensor names to files) is missing or invalid", where=str(index), fix=_COPY_AGAIN
        )
    return entries


def _check_index(index: Path, headers: dict[str, tuple[Tensor, ...]], places: dict[str, str]) -> None:
    entries = _weight_map(index)
    _refuse_missing(index.parent, sorted(set(entries.values())), set(headers))
    if entries == places:
        return
    present = {file: {tensor.name for tensor in header} for file, header in headers.items()}
    for tensor, file in entries.items():
        if tensor not in present[file]:
            what = f"{tensor} is missing, although the index lists it"
            raise ModelError(
                what,
                where=str(index.parent / file),
                fix="Index and weights are of different models: download both again.",
            )


def read_header(file: Path) -> tuple[Tensor, ...]:
    """Read the tensors of one safetensors file and check that the file has all their data.

    Raises:
        ModelError: the file is unreadable, not safetensors, or shorter than its header requires.
    """
    try:
        actual = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if start == _LFS_POINTER:
                what = "the file is a Git LFS pointer instead of weights"
                raise ModelError(what, where=str(file), fix="Run `git lfs pull` in that folder.")
            if length > MAX_HEADER:
                raise _damaged(file, f"implausible header size of {length} bytes")
            if actual < _LENGTH_BYTES + length:
                raise _truncated(file, _LENGTH_BYTES + length, actual)
            header = _parse(stream.read(length))
    except OSError as error:
        raise ModelError(f"cannot read the file: {error.strerror}", where=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, "the header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, "the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = tuple(_tensors(file, header))
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if actual < (expected := _LENGTH_BYTES + length + end):
        raise _truncated(file, expected, actual)
    return tensors


def _tensors(file: Path, header: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors of a header, of which there may be hundreds of thousands in a model."""
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            start, end = entry["data_offsets"]
            bits = _bits(dtype, shape)
            valid = type(start) is type(end) is int and 0 <= start <= end
        except (TypeError, ValueError, KeyError):
            valid, bits = False, None
        if not valid:
            raise _damaged(file, f"invalid header entry {name!r}")
        if bits is not None and bits != (end - start) * 8:
            size = end - start
            raise _damaged(file, f"{name} of type {dtype} and shape {list(shape)} cannot have {size} bytes")
        yield Tensor(name, dtype, shape, end - start)


@lru_cache(maxsize=10_000)
def _bits(dtype: str, shape: tuple[int, ...]) -> int | None:
    """The bits of a tensor; None for an unknown type.

    Raises:
        ValueError: this is no type, or no shape.
    """
    if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(dtype, shape)
    return prod(shape) * BITS[dtype] if dtype in BITS else None


def _truncated(file: Path, expected: int, actual: int) -> ModelError:
    what = f"truncated file: the header requires {expected} bytes, the file has {actual}"
    return ModelError(what, where=str(file), fix=_COPY_AGAIN)


def _damaged(file: Path, how: str) -> ModelError:
    return ModelError(f"not a safetensors file, or damaged: {how}", where=str(file), fix=_COPY_AGAIN)
