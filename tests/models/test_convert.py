"""A GGUF becomes a model of the same function, padded or not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaccl_kernel.models.inspect import inspect
from tests.models.material import TinyGguf

pytestmark = pytest.mark.usefixtures("nothing_left")

# Tells of each folder on the command line what a model there makes of a prompt, and what its weights mean,
# unpacked.
_RUN = """
import json, sys
import mlx.core as mx, mlx.nn as nn, numpy as np
from mlx_lm import load
for folder in sys.argv[1:]:
    model, tokenizer = load(folder)
    ids = tokenizer.encode("the hello 12")
    np.save(folder + "/logits.npy", np.array(model(mx.array([ids])).astype(mx.float32)))
    plain = {}
    for name, module in model.named_modules():
        if hasattr(module, "bits"):
            packed = (module.weight, module.scales, module.biases, module.group_size, module.bits)
            plain[name] = np.array(mx.dequantize(*packed).astype(mx.float32))
    np.savez(folder + "/plain.npz", **plain)
    greedy, cache = list(ids), None
    for _ in range(8):
        greedy.append(int(mx.argmax(model(mx.array([greedy]))[0, -1])))
    print(json.dumps({"greedy": greedy, "eos": sorted(tokenizer.eos_token_ids)}))
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("-m", "jaccl_kernel.models.convert", *arguments)


@pytest.fixture(scope="module")
def converted(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """The tiny GGUF converted with and without padding, and what mlx-lm makes of both."""
    folder = tmp_path_factory.mktemp("converted")
    padded, plain = folder / "padded", folder / "plain"
    assert convert(tiny_gguf.file, padded).returncode == 0
    assert convert(tiny_gguf.file, plain, "--no-pad").returncode == 0
    answer = run("-c", _RUN, padded, plain)
    assert answer.returncode == 0, answer.stderr
    return padded, plain, [json.loads(line) for line in answer.stdout.splitlines()]


def test_unpadded_weights_mean_what_the_gguf_means_in_the_original_order(
    converted: tuple[Path, Path, list[Any]], tiny_gguf: TinyGguf
) -> None:
    found = np.load(converted[1] / "plain.npz")
    assert set(found) == set(tiny_gguf.weights)
    for name, meant in tiny_gguf.weights.items():
        np.testing.assert_allclose(found[name], meant, atol=1e-6, err_msg=name)


def test_padding_adds_zeros_and_changes_nothing_else(
    converted: tuple[Path, Path, list[Any]], tiny_gguf: TinyGguf
) -> None:
    found = np.load(converted[0] / "plain.npz")
    for name, meant in tiny_gguf.weights.items():
        padded = found[name]
        rows, columns = meant.shape
        np.testing.assert_allclose(padded[:rows, :columns], meant, atol=1e-6, err_msg=name)
        assert not padded[rows:].any()
        assert not padded[:, columns:].any()
    assert found["model.layers.0.self_attn.q_proj"].shape == (12 * 32, 192)
    assert found["model.layers.0.self_attn.k_proj"].shape == (4 * 32, 192)
    assert found["model.layers.0.self_attn.o_proj"].shape == (192, 12 * 32)


def test_a_padded_model_computes_the_same(converted: tuple[Path, Path, list[Any]]) -> None:
    padded, plain, answers = converted
    logits = np.load(plain / "logits.npy")
    assert logits.std() > 0.1  # no model of zeros
    np.testing.assert_allclose(np.load(padded / "logits.npy"), logits, atol=1e-4)
    assert answers[0] == answers[1]
    assert answers[0]["eos"] == [2]


def test_a_padded_model_splits_over_1_2_and_4_ranks(converted: tuple[Path, Path, list[Any]]) -> None:
    padded, plain, _ = converted
    over = [[n for n in range(1, 9) if inspect(folder).tensor_parallel(n).ok] for folder in (padded, plain)]
    assert over == [[1, 2, 4], [1, 2]]


def test_the_config_has_the_bits_of_each_module(converted: tuple[Path, Path, list[Any]]) -> None:
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (12, 4, 32)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 10000.0)
    assert json.loads((converted[0] / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_same_gguf_gives_the_same_bytes(
    converted: tuple[Path, Path, list[Any]], tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    assert convert(tiny_gguf.file, tmp_path / "again").returncode == 0
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (converted[0] / file.name).read_bytes(), file.name


def test_a_model_of_another_architecture_is_refused_in_one_line(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.file.read_bytes().replace(b"llama", b"lemma"))
    answer = convert(other, tmp_path / "out")
    assert answer.returncode == 1
    assert answer.stderr == "unsupported GGUF architecture 'lemma'; only 'llama' is supported\n"


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    answer = convert(tmp_path / "absent.gguf", tmp_path / "out")
    assert answer.returncode == 1
    assert "absent.gguf" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.demo
def test_the_demo_knows_the_capital_of_france(demo_model: Path) -> None:
    code = (
        "import sys; from mlx_lm import generate, load; model, tokenizer = load(sys.argv[1]);"
        "print(generate(model, tokenizer, prompt='The capital of France is', max_tokens=2))"
    )
    answer = run("-c", code, demo_model)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0].startswith("Paris")
