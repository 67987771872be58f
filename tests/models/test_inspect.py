"""What is read of a model folder, and when it is no model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.facts import Quantization
from jaccl_kernel.models.inspect import inspect
from tests.models.material import tiny_llama


def test_a_quantized_llama_has_complete_facts(tmp_path: Path) -> None:
    facts = inspect(tiny_llama(group=32).save(tmp_path / "m"))
    attention = 2 * 64 * 64 + 2 * 32 * 64  # q, o, k, v
    assert facts.architecture == "llama"
    assert facts.parameters == 2 * (attention + 3 * 64 * 128 + 2 * 64) + 96 * 64 + 64
    packed = attention + 3 * 64 * 128
    assert facts.bytes == 2 * (packed // 2 + 2 * 2 * packed // 32 + 2 * 2 * 64) + 2 * (96 * 64 + 64)
    assert facts.quantization == Quantization(bits=4, group_size=32, mode="affine")
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (2, 4, 2, 16)
    assert (facts.hidden, facts.intermediate, facts.vocab, facts.context) == (64, 128, 96, 512)
    assert (facts.experts, facts.experts_per_token, facts.moe_intermediate) == (0, 0, 0)
    assert (facts.dtype, facts.tied, facts.indexed) == ("bfloat16", True, True)
    assert facts.shards == ("model.safetensors",)


def test_a_separate_head_is_not_tied(tmp_path: Path) -> None:
    assert not inspect(tiny_llama(tied=False).save(tmp_path / "m")).tied


def test_a_saved_head_that_is_tied_all_the_same_is_not_counted(tmp_path: Path) -> None:
    model = tiny_llama(tied=False)
    model.config["tie_word_embeddings"] = True  # mlx-lm drops the tensor
    facts = inspect(model.save(tmp_path / "m"))
    assert facts.tied
    assert facts.tensor_parallel(1).bytes_per_rank == (facts.bytes - 96 * 64 * 2,)


def test_heads_default_as_in_mlx_lm(tmp_path: Path) -> None:
    model = tiny_llama(heads=4, kv_heads=4)
    del model.config["num_key_value_heads"], model.config["head_dim"]
    facts = inspect(model.save(tmp_path / "m"))
    assert (facts.kv_heads, facts.head_dim) == (4, 16)


def test_a_vision_model_is_read_by_its_language_part(tmp_path: Path) -> None:
    model = tiny_llama()
    text = dict(model.config)
    model.config = {"model_type": "mistral3", "text_config": text, "num_attention_heads": 99}
    model.tensors = {f"language_model.{name}": value for name, value in model.tensors.items()}
    model.tensors["vision_tower.blocks.0.attention.q_proj.weight"] = ("BF16", (256, 256))
    facts = inspect(model.save(tmp_path / "m"))
    assert (facts.architecture, facts.heads, facts.layers) == ("mistral3", 4, 2)
    assert facts.tensor_parallel(1).bytes_per_rank == (facts.bytes - 256 * 256 * 2,)


def test_experts_are_read(tmp_path: Path) -> None:
    model = tiny_llama(model_type="qwen3_moe")
    model.config |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    facts = inspect(model.save(tmp_path / "m"))
    assert (facts.experts, facts.experts_per_token, facts.moe_intermediate) == (8, 2, 48)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"quant_method": "mxfp4"}, Quantization(4, 32, "mxfp4")),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            Quantization(4, 16, "nvfp4"),
        ),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Quantization(4, 128)),
        ({"quant_method": "fp8"}, None),
    ],
)
def test_published_quantizations_are_known(
    tmp_path: Path, entry: dict[str, Any], expected: Quantization | None
) -> None:
    model = tiny_llama()
    model.config["quantization_config"] = entry
    assert inspect(model.save(tmp_path / "m")).quantization == expected


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    here, there = (inspect(tiny_llama().save(tmp_path / name)) for name in ("here", "there"))
    other = tiny_llama()
    other.config["rope_theta"] = 5e5
    assert here.digest == there.digest
    assert here.digest != inspect(other.save(tmp_path / "other")).digest
    assert len(here.digest) == 64


def test_a_model_through_links_is_read_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs = tiny_llama().save(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert inspect(tmp_path / "snapshot").digest == inspect(blobs).digest


def refused(folder: Path | str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect(folder)
    assert caught.value.where
    return caught.value


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert "directory not found" in str(refused(tmp_path / "nothing here"))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is a file" in str(refused(tmp_path / "model.gguf"))


def test_a_folder_without_config_is_reported(tmp_path: Path) -> None:
    assert "config.json is missing" in str(refused(tmp_path))


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_another_format_is_reported_with_the_conversion(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "mlx_lm.convert" in refused(tmp_path).fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "llama",}', "line 1, column 24"),
        ("[]", "not a JSON object"),
        ("", "invalid JSON"),
        ("{}", "model_type"),
        ('{"model_type": 3}', "model_type"),
        ('{"model_type": "llama"}', "hidden_size is missing"),
        ('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": "two"}', "num_hidden_layers"),
        ('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": -2}', "num_hidden_layers"),
        ('{"model_type": "klingon"}', "does not support the architecture 'klingon'"),
        ('{"model_type": "../../evil"}', "does not support the architecture"),
        ('{"model_type": "llama", "model_file": "mine.py"}', "needs custom code"),
        ("[" * 100_000, "invalid JSON"),
    ],
)
def test_an_invalid_config_is_reported_with_its_location(tmp_path: Path, text: str, words: str) -> None:
    folder = tiny_llama().save(tmp_path / "m")
    (folder / "config.json").write_text(text)
    assert words in str(refused(folder))


def test_a_model_without_weights_is_reported(tmp_path: Path) -> None:
    folder = tiny_llama().save(tmp_path / "m", index=False)
    (folder / "model.safetensors").unlink()
    assert "no weights found" in str(refused(folder))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_llama().save(tmp_path / "m", files=2)
    shard = folder / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    error = refused(folder)
    assert error.where == str(shard)
    assert f"requires {len(data)} bytes, the file has {len(data) - 1}" in error.what


@pytest.mark.usefixtures("nothing_left")
def test_inspecting_imports_no_mlx_and_reads_no_data(tmp_path: Path) -> None:
    folder = tiny_llama(tied=False).save(tmp_path / "m", index=False)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as stream:  # a hole of 1 TB behind a header that asks for it
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        size = 10**12
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        header["vast.weight"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        text = json.dumps(header).encode()
        stream.seek(0)
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end + size)
    code = (
        "import sys; from jaccl_kernel.models.inspect import inspect; facts = inspect(sys.argv[1]);"
        "print(facts.bytes > 10**12, 'mlx' in sys.modules, 'mlx_lm' in sys.modules, 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.split() == ["True", "False", "False", "False"]
