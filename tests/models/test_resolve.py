"""From a model's name to its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.demo import FORMAT, SMOLLM2, demo_path
from jaccl_kernel.models.resolve import resolve
from tests.models.material import tiny_llama

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_itself_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama().save(tmp_path / "my models" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(folder) == folder
    assert resolve("my models/tiny") == folder
    assert resolve("~/my models/tiny") == folder


def hub_cache(cache: Path, model: Any, name: str = "org/some-model") -> Path:
    """A cached model as huggingface_hub lays it out: refs name a revision, snapshots hold links to blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for file in model.save(repository / "blobs").iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return snapshot


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("variable", "below"),
    [("HF_HUB_CACHE", "."), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_a_hub_id_is_found_in_the_cache_that_the_environment_names(
    tmp_path: Path, variable: str, below: str
) -> None:
    snapshot = hub_cache(tmp_path / "cache" / below, tiny_llama())
    code = "from jaccl_kernel.models.resolve import resolve; print(resolve('org/some-model'))"
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "HUGGING"))
    }
    env |= {variable: str(tmp_path / "cache"), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    answer = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()).samefile(snapshot)


def test_an_unknown_hub_id_is_reported_with_the_searched_locations(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("org/absent-model")
    assert "Hugging Face cache (" in caught.value.what
    assert "hf download org/absent-model" in caught.value.fix


@pytest.mark.parametrize(
    "name", ["", "nothing", "no/such/folder", "/no/such", "../nothing", "a--b/c", "org/"]
)
def test_an_unknown_name_is_reported(name: str) -> None:
    with pytest.raises(ModelError, match=r"directory not found|not a local folder"):
        resolve(name)


def test_the_demo_resolves_only_when_it_is_complete() -> None:
    with pytest.raises(ModelError, match="does not exist yet"):
        resolve("demo")
    folder = demo_path()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    manifest = {"format": FORMAT, "gguf_sha256": SMOLLM2.gguf_sha256, "files": {"config.json": 2}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert resolve("demo") == folder
    (folder / "config.json").write_text("")
    with pytest.raises(ModelError, match="does not exist yet"):
        resolve("demo")


def test_a_name_is_a_folder_that_sync_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama().save(tmp_path / "home" / "models" / "some-model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert resolve("some-model") == folder
    assert resolve("org/some-model") == folder  # sync puts a model that is told by its id there
    here = tiny_llama().save(tmp_path / "some-model")
    assert resolve("some-model") == here
