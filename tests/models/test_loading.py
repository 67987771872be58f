"""A checkpoint as mlx-lm loads it, from its config and the shapes of its tensors."""

import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.models import loading
from jaccl_kernel.models.describe import describe, to_json
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.loading import load
from jaccl_kernel.models.weights import BITS, Tensor
from tests.models.material import tiny_llama

Make = Callable[[dict[str, Any]], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a config, and a file named as weights."""

    def write(config: dict[str, Any]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").touch()
        return tmp_path

    return write


def tensors(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> list[Tensor]:
    return sorted(Tensor(name, kind, s, prod(s) * BITS[kind] // 8) for name, (kind, s) in shapes.items())


KIMI_K26: dict[str, Any] = {
    "model_type": "kimi_k2", "hidden_size": 7168, "num_hidden_layers": 61, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 163840,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "n_shared_experts": 1, "n_routed_experts": 384, "num_experts_per_tok": 8,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 2.827, "rope_theta": 50000.0, "max_position_embeddings": 262144,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
    "rope_scaling": {
        "type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
        "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
    },
    "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
}  # fmt: skip


def kimi(args: dict[str, Any]) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """The tensors of a published Kimi: packed experts, all else in 16 bits, a vision tower."""
    hidden, heads, dense, experts = (
        args[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size", "n_routed_experts")
    )
    narrow, rank, query = (args[key] for key in ("moe_intermediate_size", "kv_lora_rank", "q_lora_rank"))
    nope, rope, value = (args[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))

    def mlp(at: str, inner: int) -> Iterator[tuple[str, tuple[int, int]]]:
        yield from ((f"{at}.{name}_proj", (inner, hidden)) for name in ("gate", "up"))
        yield f"{at}.down_proj", (hidden, inner)

    plain: dict[str, tuple[int, ...]] = {"model.norm": (hidden,)}
    plain |= dict.fromkeys(("model.embed_tokens", "lm_head"), (args["vocab_size"], hidden))
    for layer in range(args["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        plain |= {f"{at}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
        plain[f"{at}.self_attn.q_a_proj"] = (query, hidden)
        plain[f"{at}.self_attn.q_a_layernorm"] = (query,)
        plain[f"{at}.self_attn.q_b_proj"] = (heads * (nope + rope), query)
        plain[f"{at}.self_attn.kv_a_proj_with_mqa"] = (rank + rope, hidden)
        plain[f"{at}.self_attn.kv_a_layernorm"] = (rank,)
        plain[f"{at}.self_attn.kv_b_proj"] = (heads * (nope + value), rank)
        plain[f"{at}.self_attn.o_proj"] = (hidden, heads * value)
        if not layer:
            plain |= mlp(f"{at}.mlp", dense)
            continue
        plain[f"{at}.mlp.gate"] = (experts, hidden)
        plain |= mlp(f"{at}.mlp.shared_experts", narrow)
        yield f"language_model.{at}.mlp.gate.e_score_correction_bias", ("F32", (experts,))
        for expert in range(experts):
            for name, (rows, columns) in mlp(f"language_model.{at}.mlp.experts.{expert}", narrow):
                yield f"{name}.weight_packed", ("I32", (rows, columns // 8))
                yield f"{name}.weight_scale", ("BF16", (rows, columns // 32))
                yield f"{name}.weight_shape", ("I32", (2,))
    yield from ((f"language_model.{name}.weight", ("BF16", shape)) for name, shape in plain.items())
    yield "vision_tower.encoder.blocks.0.wqkv.weight", ("BF16", (3456, 1152))


def small(**changes: int) -> dict[str, Any]:
    sizes = {
        "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128, "moe_intermediate_size": 128,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 64, "kv_lora_rank": 32,
        "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
        "n_routed_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    return {**KIMI_K26, **sizes, **changes}


def test_kimi_k26_has_a_trillion_parameters_and_the_biases_that_mlx_lm_adds(make: Make) -> None:
    folder = make({"model_type": "kimi_k25", "text_config": KIMI_K26})
    loaded = load(folder, "kimi_k25", tensors(dict(kimi(KIMI_K26))))
    assert (loaded.error, loaded.unknown) == ("", "")
    assert loaded.parameters == 1_026_408_232_448
    assert loaded.nbytes == 657_623_228_416
    assert loaded.shard(4).nbytes == 169_563_529_216


def test_sixteen_inputs_a_rank_split_a_group_of_32(make: Make) -> None:
    folder = make({"model_type": "kimi_k25", "text_config": small()})
    loaded = load(folder, "kimi_k25", tensors(dict(kimi(small()))))
    assert loaded.shard(4).uneven == ()
    modules = {(uneven.module, uneven.side, uneven.size, uneven.group) for uneven in loaded.shard(8).uneven}
    assert modules == {
        (f"language_model.model.layers.{layer}.mlp.switch_mlp.down_proj", "inputs", 128, 32)
        for layer in (1, 2, 3)
    }


def test_experts_that_repeat_are_loaded_as_all_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make({"model_type": "kimi_k25", "text_config": small()})
    given = tensors(dict(kimi(small())))
    whole = load(folder, "kimi_k25", given)
    monkeypatch.setattr(loading, "_MANY_TENSORS", 10)
    few, copies = loading._without_repeated_experts(tuple(given))
    assert copies == {2: 1, 3: 1}
    assert len(few) == len(given) - 2 * 8 * 3 * 3
    short = load(folder, "kimi_k25", given)
    assert (short.parameters, short.nbytes) == (whole.parameters, whole.nbytes)
    for ranks in (2, 3, 8):
        assert short.shard(ranks) == whole.shard(ranks)
        assert short.pipeline(2) == whole.pipeline(2)


@pytest.mark.parametrize("lost", ["3.mlp.experts.7.up_proj.weight_packed", "2.self_attn.o_proj.weight"])
def test_a_tensor_that_one_layer_lacks_is_noticed_among_repeated_ones(
    make: Make, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(loading, "_MANY_TENSORS", 10)
    folder = make({"model_type": "kimi_k25", "text_config": small()})
    given = dict(kimi(small()))
    del given[f"language_model.model.layers.{lost}"]
    assert load(folder, "kimi_k25", tensors(given)).error


def test_a_type_that_mlx_cannot_read_is_an_error(make: Make) -> None:
    model = tiny_llama()
    model.tensors["model.norm.weight"] = ("F8_E5M2", (64,))
    loaded = load(make(model.config), "llama", tensors(model.tensors))
    assert loaded.error == "mlx cannot read the type F8_E5M2 of model.norm.weight"


def test_a_key_that_the_config_lacks_is_an_error(make: Make) -> None:
    model = tiny_llama()
    del model.config["rms_norm_eps"]
    assert "'rms_norm_eps'" in load(make(model.config), "llama", tensors(model.tensors)).error


def test_what_the_check_cannot_follow_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a yes nor a no, in text and JSON."""
    folder = tiny_llama().save(tmp_path / "m")

    def fails(*_: Any) -> None:
        raise IndexError("a gap of the stand-in")

    source = loading.world()._sources.module("mlx_lm.models.llama")
    for method in ("__init__", "shard"):
        with monkeypatch.context() as patch:
            patch.setattr(source.Model, method, fails)
            facts = inspect(folder)
            counts = (1, 2) if method == "__init__" else (2,)
            for split in map(facts.tensor_parallel, counts):
                assert (split.ok, split.reasons, split.bytes_per_rank) == (False, (), ())
                assert "a gap of the stand-in" in split.unknown
            assert facts.problem == ""
            assert "not tested: this check cannot follow mlx-lm's llama (IndexError" in describe(facts)
            assert "a gap of the stand-in" in to_json(facts)["tensor_parallel"][1]["unknown"]
    assert inspect(folder).tensor_parallel(2).ok


def test_a_module_that_failed_halfway_fails_again(make: Make) -> None:
    sources = loading.world()._sources
    for _ in range(2):
        with pytest.raises(SystemExit):
            sources.module("mlx_lm.models.olmo")
        assert not hasattr(sources.module("mlx_lm.models"), "olmo")
    assert "ai2-olmo" in sources.printed[0]


def test_sources_of_mlx_lm_print_nothing(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(make({"model_type": "olmo"}), "olmo", ())
    assert "mlx-lm exits: " in loaded.error
    assert capsys.readouterr().out == ""


def test_an_exit_without_a_reason_does_not_cite_an_earlier_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ai2-olmo" in load(make({"model_type": "olmo"}), "olmo", ()).error

    def leave(*_: Any) -> None:
        raise SystemExit(1)

    model = tiny_llama()
    source = loading.world()._sources.module("mlx_lm.models.llama")
    monkeypatch.setattr(source.Model, "__init__", leave)
    assert load(make(model.config), "llama", tensors(model.tensors)).error == "SystemExit: 1"


def test_what_the_check_cannot_follow_is_no_refusal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make({"model_type": "kimi_k25", "text_config": small()})
    given = tensors(dict(kimi(small())))
    monkeypatch.delattr(loading.world()._sources.module("mlx.core"), "stack")
    loaded = load(folder, "kimi_k25", given)
    assert (loaded.error, loaded.unknown) == ("", "mlx.core.stack")
    assert loaded.nbytes == sum(tensor.nbytes for tensor in given)
