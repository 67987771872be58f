"""A whole model has what loading needs besides the weights: config and tokenizer. Others are no source."""

import os
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import InputError, ModelError
from jaccl_kernel.steps.sync.events import NodesFound
from tests.steps.shards import make_shards
from tests.steps.sync.test_sync import NAME, Macs, flip_last_byte, states

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def macs(tmp_path: Path) -> Macs:
    return Macs(tmp_path, 2, "no rsync", os.environ["PATH"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "here" / NAME)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("tokenizer.json", "the tokenizer is missing: tokenizer.json"),
        ("config.json", "config.json is missing"),
        ("model-00002-of-00003.safetensors", "1 of 3 weight files are missing"),
    ],
)
async def test_a_source_that_lacks_what_loading_needs_is_refused(
    macs: Macs, model: Path, gone: str, told: str
) -> None:
    (model / gone).unlink()
    with pytest.raises(ModelError, match=told):
        await macs.sync(model)
    assert not macs.model(0).exists()


async def test_an_empty_tokenizer_is_none(macs: Macs, model: Path) -> None:
    (model / "tokenizer.json").write_text("")
    with pytest.raises(ModelError, match=r"tokenizer\.json is empty"):
        await macs.sync(model)


async def test_half_a_tokenizer_is_none(macs: Macs, model: Path) -> None:
    (model / "tokenizer.json").rename(model / "vocab.json")
    with pytest.raises(ModelError, match=r"merges\.txt, a part of the tokenizer, is missing"):
        await macs.sync(model)
    (model / "merges.txt").write_text("a b\n")
    assert (await macs.sync(model)).ok


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "vocab.txt", "qwen.tiktoken"])
async def test_each_kind_of_vocabulary_is_whole(macs: Macs, model: Path, name: str) -> None:
    (model / "tokenizer.json").rename(model / name)
    assert (await macs.sync(model, check=True)).nodes[0].state == "missing"


async def test_a_node_without_the_tokenizer_is_completed_not_a_source(macs: Macs) -> None:
    make_shards(macs.model(0))
    (macs.model(0) / "tokenizer.json").unlink()
    make_shards(macs.model(1))
    report = await macs.sync(NAME)
    assert states(report) == ["copied", "identical"]
    assert macs.told(NodesFound)[0].nodes[0].detail == "missing: tokenizer.json"


async def test_the_copies_to_choose_from_are_named(macs: Macs, model: Path) -> None:
    make_shards(macs.model(0))
    flip_last_byte(macs.model(0) / "model-00001-of-00003.safetensors")
    make_shards(macs.model(1))
    with pytest.raises(InputError) as caught:
        await macs.sync(NAME)
    assert caught.value.fix == "Name the copy to use: --from mac1 or --from mac2."
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as refused:
        await macs.sync(model)
    assert refused.value.fix.endswith("or name a complete copy: --from mac1 or --from mac2.")


async def test_this_machine_is_named_localhost(
    macs: Macs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    make_shards(tmp_path / "own" / "models" / NAME)
    make_shards(macs.model(0), seed=2)
    with pytest.raises(InputError) as caught:
        await macs.sync(NAME)
    assert "--from localhost" in caught.value.fix
    assert "--from mac1" in caught.value.fix
    assert states(await macs.sync(NAME, source="localhost")) == ["copied", "copied"]
