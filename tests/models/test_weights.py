"""Weight files, whole and broken."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.weights import MAX_HEADER, read_header, read_weights
from tests.models.material import Shapes, tiny_llama, write_safetensors

TENSORS: Shapes = {"a.weight": ("F32", (4, 8)), "b.weight": ("U32", (3, 2)), "b.scales": ("BF16", (3, 1))}


def test_a_header_has_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    found = {tensor.name: tensor for tensor in read_header(tmp_path / "model.safetensors")}
    assert {name: (t.dtype, t.shape, t.nbytes) for name, t in found.items()} == {
        "a.weight": ("F32", (4, 8), 128),
        "b.weight": ("U32", (3, 2), 24),
        "b.scales": ("BF16", (3, 1), 6),
    }


def test_a_file_written_by_safetensors_itself_is_read(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros((2, 3), np.float16), "s": np.zeros((), np.int8)}, tmp_path / "model.safetensors")
    found = {t.name: (t.dtype, t.shape) for t in read_weights(tmp_path).tensors}
    assert found == {"x": ("F16", (2, 3)), "s": ("I8", ())}


def test_every_truncation_is_reported_with_both_sizes(tmp_path: Path) -> None:
    whole = tmp_path / "model.safetensors"
    write_safetensors(whole, TENSORS)
    data = whole.read_bytes()
    for length in range(len(data)):
        whole.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            read_header(whole)
        assert caught.value.where == str(whole)
        if length >= 8:
            assert "truncated" in caught.value.what
            assert f"the file has {length}" in caught.value.what
    assert f"requires {len(data)} bytes" in caught.value.what


@given(st.binary(max_size=300))
def test_no_bytes_whatever_make_it_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert sum(tensor.nbytes for tensor in read_header(file)) <= len(content)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 15]},
        {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        ["F32"],
        None,
    ],
)
def test_an_invalid_entry_is_named(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"layer.weight": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(ModelError, match=r"layer\.weight"):
        read_header(file)


def test_a_header_too_long_to_be_one_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", MAX_HEADER + 1))
        stream.truncate(MAX_HEADER + 100)  # a sparse file: as long as it says
    with pytest.raises(ModelError, match="implausible header size"):
        read_header(file)


def test_a_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_header(file)


def test_shards_are_read_together(tmp_path: Path) -> None:
    model = tiny_llama()
    one = read_weights(model.save(tmp_path / "one"))
    three = read_weights(model.save(tmp_path / "three", files=3))
    assert one.tensors == three.tensors
    assert three.files == tuple(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3))
    assert one.indexed
    assert three.indexed


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    folder = tiny_llama().save(tmp_path / "m", files=3, index=index)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"1 of 3 weight files are missing: model-00002-of-00003\.safetensors"
    ):
        read_weights(folder)


def test_an_index_without_any_of_its_files_names_them(tmp_path: Path) -> None:
    folder = tiny_llama().save(tmp_path / "m", files=5)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"5 of 5 weight files are missing: model-00001.* and 2 more"):
        read_weights(folder)


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(layers=1).save(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.layers.9.mlp.up_proj.weight": "model.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"model\.layers\.9\.mlp\.up_proj\.weight is missing"):
        read_weights(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', "\xff"])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    folder = tiny_llama().save(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    index.write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError) as caught:
        read_weights(folder)
    assert caught.value.where == str(index)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "only GGUF weights"),
        ("pytorch_model.bin", "only PyTorch weights"),
        ("consolidated.00.pth", "only PyTorch weights"),
        ("weights.npz", "only npz weights"),
        ("adapters.safetensors", "loads only files named model"),
        ("README.md", "no weights found"),
    ],
)
def test_other_formats_of_weights_are_reported(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ModelError, match=words) as caught:
        read_weights(tmp_path)
    assert caught.value.fix


def test_the_digest_follows_shapes_names_and_sizes_only(tmp_path: Path) -> None:
    same = [read_weights(tiny_llama().save(tmp_path / name)).digest for name in ("a", "b")]
    wider = read_weights(tiny_llama(inner=256).save(tmp_path / "c")).digest
    sharded = read_weights(tiny_llama().save(tmp_path / "d", files=2)).digest
    assert same[0] == same[1]
    assert len({same[0], wider, sharded}) == 3
