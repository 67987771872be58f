"""What is read of mlx-lm's source, against mlx-lm itself: pytest tests/models/test_architecture.py."""

import json
import subprocess
import sys

import pytest

from jaccl_kernel.errors import ModelError
from jaccl_kernel.models.architecture import architecture

# Imports every architecture that can be imported, and tells which models have shard(). For a pipeline it
# would take an instance: it tells whether any class of the module has one.
_ASK_MLX_LM = """
import importlib, json, pathlib
import mlx_lm.models
answers = {}
for file in sorted(pathlib.Path(mlx_lm.models.__path__[0]).glob("*.py")):
    try:
        module = importlib.import_module(f"mlx_lm.models.{file.stem}")
    except (ImportError, SystemExit):  # some want packages that are not ours
        continue
    if hasattr(module, "Model"):
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        some_pipeline = any(hasattr(value, "pipeline") for value in classes)
        answers[file.stem] = [hasattr(module.Model, "shard"), some_pipeline]
print(json.dumps(answers))
"""
# They inherit a whole model: the class with the pipeline stands in another module.
_INHERIT_PIPELINE = {"glm_moe_dsa", "prism_hadamard_qwen35", "qwen3_5_moe", "solar_open"}
_OUT_OF_REACH = {"kimi_vl"}  # has such a class, but no `model.model`, where mlx-lm looks for it


def test_what_can_shard_and_pipeline_is_what_mlx_lm_says() -> None:
    command = [sys.executable, "-c", _ASK_MLX_LM]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=120)
    real = json.loads(answer.stdout.splitlines()[-1])  # before it, some complain of missing packages
    assert len(real) > 100
    read = {name: architecture(name) for name in real}
    shards = {name for name, (has_shard, _) in real.items() if has_shard}
    assert {name for name in read if read[name].shard} == shards
    somewhere = {name for name, (_, some_pipeline) in real.items() if some_pipeline}
    pipelines = (somewhere | _INHERIT_PIPELINE) - _OUT_OF_REACH
    assert {name for name in read if read[name].pipeline} == pipelines


def test_every_shard_is_understood() -> None:
    for name in (
        "llama",
        "qwen3",
        "qwen3_moe",
        "deepseek_v3",
        "gpt_oss",
        "glm4_moe",
        "minimax",
        "kimi_k25",
        "qwen3_5",
    ):
        rules = architecture(name).shard
        assert rules is not None
        assert {"up_proj", "gate_proj"} <= rules.rows
        assert {"down_proj", "o_proj"} <= rules.columns
        assert any("heads" in count for count in rules.counts)


def test_llamas_rules_are_these() -> None:
    rules = architecture("llama").shard
    assert rules is not None
    assert rules.rows == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert rules.columns == {"o_proj", "down_proj"}
    assert rules.counts == {"n_heads", "n_kv_heads"}
    assert not rules.slices
    assert not rules.repeats_kv


def test_first_axes_are_told_from_rows() -> None:
    rules = architecture("deepseek_v3").shard
    assert rules is not None
    assert rules.slices == {"embed_q", "unembed_out"}
    assert architecture("gpt_oss").shard.slices == {"sinks"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "shards", "pipelines"),
    [
        ("glm_moe_dsa", True, True),  # both inherited from deepseek_v32
        ("solar_open", True, True),  # the class itself imported from glm4_moe
        ("prism_hadamard_qwen35", True, True),  # a base named as qwen3_5.Model
        ("kimi_k25", True, True),  # shard() hands on to deepseek_v3's; `model` is a property
        ("mistral3", False, False),  # its llama inside has shard(), it has not
        ("qwen3_next", False, True),
        ("llama", True, False),
    ],
)
def test_inheritance_and_delegation_are_followed(name: str, shards: bool, pipelines: bool) -> None:
    found = architecture(name)
    assert (found.shard is not None, found.pipeline) == (shards, pipelines)


def test_a_model_type_is_mapped_as_mlx_lm_maps_it() -> None:
    assert architecture("mistral").name == "llama"
    assert architecture("kimi_k2").name == "deepseek_v3"
    assert architecture("bailing_hybrid", ("BailingMoeV3ForCausalLM",)).name == "bailing_moe_v3"
    assert architecture("bailing_hybrid", ("Other",)).name == "bailing_hybrid"


@pytest.mark.parametrize("name", ["llamma", "../llama", "", "base", "cache"])
def test_an_unknown_architecture_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no architecture"):
        architecture(name)


def test_near_names_are_offered() -> None:
    with pytest.raises(ModelError, match="qwen3_moe"):
        architecture("qwen3moe")


def test_neither_mlx_nor_mlx_lm_is_imported() -> None:
    code = (
        "import sys; from jaccl_kernel.models.architecture import architecture; architecture('llama');"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers', 'numpy')])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == "[]"
