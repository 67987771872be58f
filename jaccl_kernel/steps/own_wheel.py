"""This package, as it runs here, packed into a wheel for the other nodes.

A wheel is a zip of the package and its metadata, so no build tool, no network and no source tree is needed:
an installed copy, a checkout and one with changes of your own all pack alike. The same files give the same
bytes (times are left out), so `digest` tells whether a node's copy is this one.
"""

import base64
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jaccl_kernel
from jaccl_kernel.errors import JacclError

DISTRIBUTION = "jaccl-kernel"
_OLDEST_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell
_OF_THIS_INSTALLATION = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "WHEEL"}
_WHEEL = "Wheel-Version: 1.0\nGenerator: jaccl-kernel\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def pack(folder: Path) -> Path:
    """Write the wheel into that folder, which is made if need be; its path.

    Raises:
        JacclError: this package is not installed here, or the wheel cannot be written.
    """
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise JacclError(
            "this package is not installed here, so its metadata is not known",
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
            (Path(work) / path.name).replace(path)  # a copy that runs right now keeps the old one
    except OSError as error:
        raise JacclError(f"the wheel cannot be written: {error.strerror}", where=str(path)) from error
    return path


def digest(wheel: Path) -> str:
    """What tells this wheel's content from others': 16 hexadecimal digits.

    Of the list of its files' hashes, not of its bytes, which compressors make differently.
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
    """The package's files by their names in the wheel, in a fixed order."""
    package = Path(jaccl_kernel.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path.relative_to(package.parent).as_posix(), path.read_bytes()


def _metadata(installed: metadata.Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    for file in sorted(installed.files or ()):
        if file.parts[0] == info and file.name not in _OF_THIS_INSTALLATION:
            yield file.as_posix(), Path(str(file.locate())).read_bytes()


def _add(wheel: zipfile.ZipFile, name: str, data: bytes) -> str:
    """Put a file into the wheel; its line of RECORD."""
    entry = zipfile.ZipInfo(name, _OLDEST_TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    wheel.writestr(entry, data)
    shown = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={shown},{len(data)}\n"
