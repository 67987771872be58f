"""Which splits work, against mlx-lm itself."""

from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.models.inspect import inspect
from tests.models.asking import Real, ask_mlx_lm
from tests.models.material import tiny_llama

RANKS = (2, 3, 4, 8)
PACKED = {"group_size": 32, "bits": 4}
DENSE = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
EXPERTS = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
    "norm_topk_prob": True,
}
GPT_OSS = {
    **DENSE,
    "model_type": "gpt_oss",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 1.0,
    "rope_theta": 1e4,
    "rope_scaling": None,
    "max_position_embeddings": 512,
    "attention_bias": False,
}
MINIMAX = {
    **DENSE,
    "model_type": "minimax",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 64,
    "shared_intermediate_size": 0,
    "rotary_dim": 16,
    "scoring_func": "sigmoid",
    "use_qk_norm": True,
    "tie_word_embeddings": False,
}
QWEN3_5 = {
    "model_type": "qwen3_5",
    "text_config": {
        **DENSE,
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "num_key_value_heads": 2,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {"type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
        | {"mrope_section": [2, 1, 1]},
        "tie_word_embeddings": False,
    },
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**DENSE, "tie_word_embeddings": False},
    "llama, 4 bit": {**DENSE, "quantization": PACKED},
    "llama with biases": {**DENSE, "attention_bias": True, "mlp_bias": True},
    "llama, 9 heads on 3": {**DENSE, "num_attention_heads": 9, "num_key_value_heads": 3},
    "llama, 9 heads on 9": {**DENSE, "num_attention_heads": 9, "num_key_value_heads": 9},
    "llama, 6 heads on 3": {**DENSE, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64},
    "llama, hidden 100": {**DENSE, "hidden_size": 100, "num_key_value_heads": 8},
    "qwen2, 4 bit": {**DENSE, "model_type": "qwen2", "quantization": PACKED},
    "experts, 4 bit": {**EXPERTS, "quantization": PACKED},
    "narrow experts, 4 bit": {**EXPERTS, "moe_intermediate_size": 96, "quantization": PACKED},
    "gpt-oss": GPT_OSS,
    "gpt-oss, 4 bit": {**GPT_OSS, "quantization": PACKED},
    "deepseek": DEEPSEEK,
    "deepseek, 6 heads": {**DEEPSEEK, "num_attention_heads": 6, "num_key_value_heads": 6},
    "minimax, sharded norms": MINIMAX,
    "qwen3.5, repeated key-value heads": QWEN3_5,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return ask_mlx_lm(tmp_path_factory.mktemp("real"), {name: (MODELS[name], RANKS) for name in MODELS})


@pytest.mark.processes
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_tensor_parallel_is_what_mlx_lm_really_does(real: Real, name: str, ranks: int) -> None:
    facts, answers = real[name]
    split = facts.tensor_parallel(ranks)
    sizes = answers["tensor"][str(ranks)]
    if split.ok:
        assert sizes == [split.bytes_per_rank[0], split.bytes_per_rank[-1]]
        assert len(split.bytes_per_rank) == ranks
    else:
        said_to_run = any("wrong text without an error" in reason for reason in split.reasons)
        assert said_to_run == (sizes is not None)


@pytest.mark.processes
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", MODELS)
def test_pipeline_is_what_mlx_lm_really_does(real: Real, name: str, ranks: int) -> None:
    facts, answers = real[name]
    split = facts.pipeline(ranks)
    assert (list(split.bytes_per_rank) or None) == answers["pipeline"][str(ranks)]
    assert split.ok == (not split.reasons)


@pytest.mark.processes
def test_some_of_these_split_and_some_do_not(real: Real) -> None:
    over = {name: [n for n in RANKS if facts.tensor_parallel(n).ok] for name, (facts, _) in real.items()}
    assert over["llama"] == [2, 4]
    assert over["llama, hidden 100"] == [2, 4, 8]
    assert over["experts, 4 bit"] == [2, 4]
    assert over["narrow experts, 4 bit"] == []
    assert over["qwen3.5, repeated key-value heads"] == [2, 4]


@pytest.mark.processes
def test_a_silently_wrong_split_is_refused_with_the_reason(real: Real) -> None:
    facts, answers = real["llama, 9 heads on 9"]
    split = facts.tensor_parallel(2)
    assert answers["tensor"]["2"] is not None  # mlx-lm runs it
    assert not split.ok
    assert split.reasons[0].startswith("9 query heads are not divisible by 2 ranks, but their rows are")
    assert split.reasons[1:] == ("9 key-value heads are not divisible by 2 ranks",)


def reasons(folder: Path, ranks: int) -> tuple[str, ...]:
    return inspect(folder).tensor_parallel(ranks).reasons


def test_each_failed_rule_is_reported_once_not_once_per_layer(tmp_path: Path) -> None:
    folder = tiny_llama(heads=6, kv_heads=2, head_dim=16, inner=100, layers=5).save(tmp_path / "m")
    assert reasons(folder, 3) == (
        "the model has 2 key-value heads, fewer than 3 ranks",
        "100 inputs (intermediate_size) of mlp.down_proj are not divisible by 3 ranks",
        "100 outputs (intermediate_size) of mlp.gate_proj, mlp.up_proj are not divisible by 3 ranks",
        "32 outputs of self_attn.k_proj, self_attn.v_proj are not divisible by 3 ranks",
    )


def test_a_split_through_a_quantization_group_is_reported(tmp_path: Path) -> None:
    folder = tiny_llama(heads=4, kv_heads=4, head_dim=32, inner=192, group=64).save(tmp_path / "m")
    assert reasons(folder, 2) == (
        (
            "192 inputs (intermediate_size) of mlp.down_proj give 96 per rank, "
            "which is not a multiple of the group size 64"
        ),
    )


def test_a_module_with_a_group_of_its_own_is_judged_by_it(tmp_path: Path) -> None:
    model = tiny_llama(heads=4, kv_heads=4, head_dim=32, inner=192, group=64)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj"
        model.config["quantization"][name] = {"group_size": 32, "bits": 4}
        for part in ("scales", "biases"):
            model.tensors[f"{name}.{part}"] = ("BF16", (64, 192 // 32))
    assert inspect(model.save(tmp_path / "m")).tensor_parallel(2).ok


def test_an_architecture_without_shard_is_reported(tmp_path: Path) -> None:
    folder = tiny_llama(model_type="gemma").save(tmp_path / "m")
    assert reasons(folder, 2) == ("mlx-lm's gemma has no shard(), so it does not support tensor parallelism",)
    assert inspect(folder).tensor_parallel(1).ok


def test_a_pipeline_needs_an_index_and_a_layer_for_each_rank(tmp_path: Path) -> None:
    facts = inspect(tiny_llama(model_type="qwen2", layers=3).save(tmp_path / "m", index=False))
    assert facts.pipeline(1).ok
    split = facts.pipeline(4)
    assert not split.ok
    assert "model.safetensors.index.json" in split.reasons[0]
    assert split.reasons[1] == "the model has 3 layers, fewer than 4 ranks"


def test_no_ranks_make_no_sense(tmp_path: Path) -> None:
    facts = inspect(tiny_llama().save(tmp_path / "m"))
    for ask in (facts.tensor_parallel, facts.pipeline):
        with pytest.raises(InputError, match=r"at least 1 \(got 0\)"):
            ask(0)
