"""Packs this package, as it runs here, into a wheel for the other nodes.

A wheel is a zip of the package and its metadata, so this needs no build tool, network or source tree: it
works for an installed copy and for a checkout with local changes. The same files give the same bytes (times
are omitted), so `digest` shows whether a node's copy is identical.
"""

import base64
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jaccl_kernel
from jaccl_kernel.core.errors import JacclError

DISTRIBUTION = "jaccl-kernel"
_OLDEST_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip
_METADATA = ("METADATA", "entry_points.txt", "licenses")  # the rest describes this installation
_LEFT_OUT = {"__pycache__", "_workbench"}
_WHEEL = "Wheel-Version: 1.0\nGenerator: jaccl-kernel\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def pack(folder: Path) -> Path:
    """Write the wheel into that folder, which is created if missing. Returns its path.

    Raises:
        JacclError: this package is not installed here, or the wheel cannot be written.
    """
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise JacclError(
            "this package is not installed, so its metadata is unknown",
            where=str(Path(jaccl_kernel.__file__).parent),
            fix="In its source tree: python -m pip install -e .",
        ) from error
    stem = f"{DISTRIBUTION.replace('-', '_')}-{installed.version}"
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _write(Path(work) / path.name, installed, info)
            (Path(work) / path.name).replace(path)  # a running copy keeps the old file
    except OSError as error:
        raise JacclError(f"the wheel cannot be written: {error.strerror}", where=str(path)) from error
    return path


def digest(wheel: Path) -> str:
    """Return a digest of the wheel's content: 16 hexadecimal digits.

    It covers the list of file hashes, not the bytes, which depend on the compressor.
    """
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        return hashlib.sha256(archive.read(record)).hexdigest()[:16]


def _write(path: Path, installed: metadata.Distribution, info: str) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        files = (*_modules(), *_metadata(installed, info), (f"{info}/WHEEL", _WHEEL.encode()))
        records = [_add(wheel, name, data) for name, data in files]
        _add(wheel, f"{info}/RECORD", "".join([*records, f"{info}/RECORD,,\n"]).encode())


def _modules() -> Iterator[tuple[str, bytes]]:
    """Yield the package's files by their names in the wheel, in a fixed order, without the notebooks."""
    package = Path(jaccl_kernel.__file__).parent
    for path in sorted(package.rglob("*")):
        below = path.relative_to(package)
        if path.is_file() and not _LEFT_OUT & set(below.parts) and not path.name.startswith("."):
            yield Path(package.name, below).as_posix(), path.read_bytes()


def _metadata(installed: metadata.Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    """Yield the metadata that pip needs, without the description, which may be outdated in a checkout."""
    for file in sorted(installed.files or ()):
        if file.parts[0] == info and file.parts[1] in _METADATA:
            data = Path(str(file.locate())).read_bytes()
            yield file.as_posix(), data.partition(b"\n\n")[0] + b"\n" if file.name == "METADATA" else data


def _add(wheel: zipfile.ZipFile, name: str, data: bytes) -> str:
    """Add a file to the wheel. Returns its line of RECORD."""
    entry = zipfile.ZipInfo(name, _OLDEST_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    wheel.writestr(entry, data)
    shown = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={shown},{len(data)}\n"
