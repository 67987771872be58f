"""A model judged from the heads of its files, as another node tells them."""

from pathlib import Path

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.headers import inspect_heads
from jaccl_kernel.models.inspect import inspect
from tests.steps.shards import make_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "m")


def heads(folder: Path) -> dict[str, bytes]:
    """The first bytes of each file, as a node tells them."""
    told = {}
    for file in folder.iterdir():
        data = file.read_bytes()
        told[file.name] = (
            data[: 8 + int.from_bytes(data[:8], "little")] if file.suffix == ".safetensors" else data
        )
    return told


def test_heads_tell_as_much_as_the_folder(folder: Path) -> None:
    model = inspect(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    far = inspect_heads({**sizes, "sub/other.bin": 5}, heads(folder), where="mac2:/m")
    assert (far.digest, far.parameters, far.bytes) == (model.digest, model.parameters, model.bytes)


def test_an_incomplete_remote_model_is_named_by_its_remote_path(folder: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    last = max(name for name in sizes if name.endswith(".safetensors"))
    with pytest.raises(ModelError, match="truncated") as cut:
        inspect_heads({**sizes, last: sizes[last] - 1}, heads(folder), where="mac2:/m")
    assert cut.value.where == f"mac2:/m/{last}"
    with pytest.raises(ModelError, match=f"1 of 3 weight files are missing: {last}"):
        inspect_heads({name: size for name, size in sizes.items() if name != last}, heads(folder), where="/m")
    with pytest.raises(ModelError, match=r"config\.json is missing") as empty:
        inspect_heads({}, {}, where="mac2:/m")
    assert empty.value.where == "mac2:/m"
