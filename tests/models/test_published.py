"""Checkpoints as they are published: what is told of them is what mlx_lm.utils.load_model does with them."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import pytest

from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect
from tests.models import every
from tests.models.asking import run
from tests.models.material import Shapes, write_safetensors

Plain = dict[str, list[int]]
Publish = Callable[[Plain], Shapes]


def bf16(plain: Plain) -> Shapes:
    return {name: ("BF16", tuple(shape)) for name, shape in plain.items()}


def one_by_one(plain: Plain) -> Plain:
    """Experts of their own, which mlx-lm stacks."""
    result: Plain = {}
    for name, shape in plain.items():
        if found := re.fullmatch(r"(.+)\.switch_mlp\.(\w+)\.weight", name):
            block = found[1]
            names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"} if "block_sparse" in block else {}
            for expert in range(shape[0]):
                result[f"{block}.experts.{expert}.{names.get(found[2], found[2])}.weight"] = shape[1:]
        else:
            result[name] = shape
    return result


def is_packed(name: str, shape: list[int]) -> bool:
    return len(shape) == 2 and re.search(r"(_proj|\.w[123])\.weight$", name) is not None


def fp8(plain: Plain, *, block: int = 128) -> Shapes:
    result = bf16(one_by_one(plain))
    for name, (_, shape) in list(result.items()):
        if is_packed(name, list(shape)):
            result[name] = ("F8_E4M3", shape)
            result[f"{name}_scale_inv"] = ("F32", (ceil(shape[0] / block), ceil(shape[1] / block)))
    return result


def per_tensor(plain: Plain) -> Shapes:
    result = fp8(plain)
    return {name: ("BF16", ()) if name.endswith("_scale_inv") else value for name, value in result.items()}


def int4(plain: Plain, *, only: str = "") -> Shapes:
    """compressed-tensors, pack-quantized."""
    result = bf16(one_by_one(plain))
    for name, (_, (*rows, columns)) in [(name, value) for name, value in result.items() if len(value[1]) > 1]:
        if is_packed(name, [*rows, columns]) and only in name and "kv_b_proj" not in name:
            del result[name]
            result[f"{name}_packed"] = ("I32", (*rows, columns // 8))
            result[f"{name}_scale"] = ("BF16", (*rows, columns // 32))
            result[f"{name}_shape"] = ("I32", (2,))
    return result


def experts_int4(plain: Plain) -> Shapes:
    """Kimi: experts packed, kv_b_proj not yet split, a vision tower."""
    result = int4(latent(plain), only=".experts.")
    result["vision_tower.blocks.0.wqkv.weight"] = ("BF16", (64, 64))
    result["mm_projector.proj.0.weight"] = ("BF16", (64, 64))
    return result


def latent(plain: Plain) -> Plain:
    """One kv_b_proj, which mlx-lm splits into embed_q and unembed_out."""
    result = {}
    for name, shape in plain.items():
        if name.endswith(".embed_q.weight"):
            heads, rank, nope = shape
            value = plain[name.replace("embed_q", "unembed_out")][1]
            result[name.replace("embed_q", "kv_b_proj")] = [heads * (nope + value), rank]
        elif ".unembed_out." not in name:
            result[name] = shape
    return result


def fused_fp8(plain: Plain) -> Shapes:
    return fp8(latent(plain))


def awq(plain: Plain, *, more: str = "") -> Shapes:
    result = bf16(plain)
    for name, (_, shape) in list(result.items()):
        if is_packed(name, list(shape)):
            del result[name]
            module, (rows, columns) = name.removesuffix(".weight"), shape
            result[f"{module}.qweight"] = ("I32", (columns, rows // 8))
            result[f"{module}.qzeros"] = ("I32", (columns // 64, rows // 8))
            result[f"{module}.scales"] = ("F16", (columns // 64, rows))
            if more:
                result[f"{module}.{more}"] = ("I32", (columns,))
    return result


def gptq(plain: Plain) -> Shapes:
    return awq(plain, more="g_idx")


def nvfp4(plain: Plain) -> Shapes:
    result = bf16(plain)
    for name, (_, shape) in list(result.items()):
        if is_packed(name, list(shape)):
            result[name] = ("U8", (shape[0], shape[1] // 2))
            result[f"{name}_scale"] = ("F8_E4M3", (shape[0], shape[1] // 16))
            result[f"{name}_scale_2"] = ("F32", ())
    return result


def ternary(plain: Plain) -> Shapes:
    """Bitnet, whose model has four values in a byte from the start."""
    result = bf16(plain)
    packed = [name for name, shape in plain.items() if is_packed(name, shape)]
    return {**result, **{name: ("U8", tuple(plain[name])) for name in packed}}


def gpt_oss(plain: Plain) -> Shapes:
    """Experts in blocks of 32 values, gate and up together."""
    result = bf16(plain)
    for name, (_, shape) in list(result.items()):
        if found := re.fullmatch(r"(.+\.experts)\.(gate|up|down)_proj\.(weight|bias)", name):
            del result[name]
            if found[2] == "up":
                continue
            experts, rows, *columns = shape
            fused, rows = ("gate_up_proj", 2 * rows) if found[2] == "gate" else ("down_proj", rows)
            if found[3] == "bias":
                result[f"{found[1]}.{fused}_bias"] = ("BF16", (experts, rows))
            else:
                blocks = columns[0] // 32
                result[f"{found[1]}.{fused}_blocks"] = ("U8", (experts, rows, blocks, 16))
                result[f"{found[1]}.{fused}_scales"] = ("U8", (experts, rows, blocks))
    return result


def and_more(*names: str, publish: Publish = bf16) -> Publish:
    """With tensors that are no part of the model."""
    return lambda plain: {**publish(plain), **dict.fromkeys(names, ("BF16", (64, 64)))}


def stacked(plain: Plain) -> Shapes:
    return bf16(one_by_one(plain))


@dataclass(frozen=True)
class Case:
    """A checkpoint: its architecture, how it is published, its quantization_config, changes of the config."""

    name: str
    publish: Publish
    method: dict[str, Any] | None = None
    own: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        config = {**every.config(self.name), **self.own}
        config["text_config"] = {**config["text_config"], **self.own}
        return config


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
INT4 = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64}
LOADED = {
    "deepseek v3, fp8": Case("deepseek_v3", fused_fp8, FP8),
    "deepseek v3.2, fp8": Case("deepseek_v32", fused_fp8, FP8),
    "minimax, fp8": Case("minimax", fp8, FP8),
    "mimo v2, fp8": Case("mimo_v2_flash", fp8, FP8),
    "ministral 3, fp8": Case("ministral3", per_tensor, FP8),
    "mistral 4, fp8": Case("mistral4", fused_fp8, FP8),
    "deepseek v3, int4": Case("deepseek_v3", lambda plain: int4(latent(plain)), INT4),
    "kimi, int4 experts": Case("kimi_k25", experts_int4, INT4),
    "mistral 4, int4": Case("mistral4", lambda plain: int4(latent(plain)), INT4),
    "llama, awq": Case("llama", awq, AWQ),
    "gpt-oss, mxfp4": Case("gpt_oss", gpt_oss, {"quant_method": "mxfp4"}),
    "bitnet": Case(
        "bitnet", ternary, {"quant_method": "bitnet"}, own={"tie_word_embeddings": True}
    ),
    "llama, an unknown method": Case("llama", bf16, {"quant_method": "hqq"}),
    "qwen 3.5, tower and prediction": Case(
        "qwen3_5", and_more("model.visual.blocks.0.qkv.weight", "mtp.layers.0.mlp.up_proj.weight")
    ),
    "glm 4, layer after the last": Case(
        "glm4_moe", and_more("model.layers.2.mlp.experts.0.up_proj.weight", publish=stacked)
    ),
    "ernie, prediction": Case("ernie4_5_moe", and_more("mtp_block.0.mlp.up_proj.weight", publish=stacked)),
    "gemma 3, tower": Case(
        "gemma3", and_more("vision_tower.encoder.weight", "multi_modal_projector.weight")
    ),
    "gemma 4, towers": Case(
        "gemma4", and_more("model.audio_tower.conv.weight", "model.embed_vision.projection.weight")
    ),
    "llama, rotary tables": Case("llama", and_more("model.layers.0.self_attn.rotary_emb.inv_freq")),
    "qwen 3, tied head": Case(
        "qwen3", and_more("lm_head.weight"), own={"tie_word_embeddings": True}
    ),
}  # fmt: skip
REFUSED = {
    "llama, fp8": Case("llama", fp8, FP8),
    "qwen 3, fp8": Case("qwen3", fp8, FP8),
    "qwen 3 experts, fp8": Case("qwen3_moe", fp8, FP8),
    "glm 4, fp8": Case("glm4_moe", fp8, FP8),
    "llama, int4": Case("llama", int4, INT4),
    "qwen 3 experts, int4": Case("qwen3_moe", int4, INT4),
    "llama, int4 of a format that is not packed": Case(
        "llama", bf16, {"quant_method": "compressed-tensors", "format": "float-quantized"}
    ),
    "llama, awq in 8 bits": Case("llama", awq, {**AWQ, "bits": 8}),
    "llama, gptq with g_idx": Case("llama", gptq, {**AWQ, "quant_method": "gptq"}),
    "qwen 3, nvfp4": Case("qwen3", nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "qwen 3, fp8 of modelopt": Case("qwen3", bf16, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "llama, layer after the last": Case("llama", and_more("model.layers.2.mlp.up_proj.weight")),
    "gemma 3, another tower": Case("gemma3", and_more("vision_model.encoder.weight")),
}
CASES = {**LOADED, **REFUSED}


@dataclass(frozen=True)
class Answer:
    """What we say of a checkpoint; mlx-lm's bytes of it or its error; the number of its weights."""

    facts: ModelFacts
    real: int | str
    values: int


def values(plain: Plain, publish: Publish) -> int:
    bytes_of_four = publish is ternary
    return sum(prod(s) * (4 if bytes_of_four and is_packed(name, s) else 1) for name, s in plain.items())


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    folder = tmp_path_factory.mktemp("published")
    plain = run("real_loads.py", {"shapes": {name: case.config() for name, case in CASES.items()}})
    places = {name: folder / str(number) for number, name in enumerate(CASES)}
    for name, case in CASES.items():
        places[name].mkdir()
        config = case.config() | ({"quantization_config": case.method} if case.method else {})
        (places[name] / "config.json").write_text(json.dumps(config))
        write_safetensors(places[name] / "model.safetensors", case.publish(plain[name]))
    real = run("real_loads.py", {"load": [str(place) for place in places.values()]})
    return {
        name: Answer(inspect(place), real[str(place)], values(plain[name], CASES[name].publish))
        for name, place in places.items()
    }


@pytest.mark.processes
@pytest.mark.parametrize("name", LOADED)
def test_bytes_and_parameters_are_those_of_the_loaded_model(answers: dict[str, Answer], name: str) -> None:
    facts, real, values = answers[name].facts, answers[name].real, answers[name].values
    assert (facts.problem, facts.loaded.unknown) == ("", "")
    assert facts.tensor_parallel(1).bytes_per_rank == (real,)
    assert facts.parameters == values


@pytest.mark.processes
@pytest.mark.parametrize("name", REFUSED)
def test_what_mlx_lm_cannot_load_is_refused_with_the_reason(answers: dict[str, Answer], name: str) -> None:
    facts, real = answers[name].facts, answers[name].real
    assert isinstance(real, str), "mlx-lm loads it"
    for ranks in (1, 2):
        assert facts.tensor_parallel(ranks).reasons == facts.pipeline(ranks).reasons == (facts.problem,)
    if "quantization_config" in facts.config:
        assert (
            f"cannot unpack this {facts.config['quantization_config']['quant_method']} checkpoint"
            in facts.problem
        )
        assert "mlx_lm.convert" in facts.fix


@pytest.mark.processes
def test_the_tensors_that_cannot_be_unpacked_are_named(answers: dict[str, Answer]) -> None:
    assert "weight_scale_inv (" in answers["qwen 3, fp8"].facts.problem
    assert "weight_packed (" in answers["llama, int4"].facts.problem
    assert "g_idx" in answers["llama, gptq with g_idx"].facts.problem


@pytest.mark.processes
def test_the_type_is_that_of_the_unpacked_weights(answers: dict[str, Answer]) -> None:
    assert answers["deepseek v3, fp8"].facts.dtype == "bfloat16"  # most tensors of the files are scales


@pytest.mark.processes
def test_the_groups_of_packed_experts_are_not_split(answers: dict[str, Answer]) -> None:
    facts = answers["kimi, int4 experts"].facts
    assert facts.tensor_parallel(2).ok
    [reason] = [reason for reason in facts.tensor_parallel(4).reasons if "switch_mlp.down_proj" in reason]
    assert reason.endswith("give 16 per rank, which is not a multiple of the group size 32")
