"""What a model is: architecture, sizes, quantization, files, from config.json and the weights' headers.

No mlx and no weight data: it takes milliseconds for any size of model. Whether the model splits over N
ranks follows in `sharding.py`; how mlx-lm implements the architecture is read in `architecture.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaccl_kernel.errors import ModelError
from jaccl_kernel.models.architecture import Architecture, architecture
from jaccl_kernel.models.facts import ModelFacts, Quantization, quantization_entry, setting
from jaccl_kernel.models.sharding import layer_of
from jaccl_kernel.models.weights import Tensor, read_json, read_weights, refuse_other_formats, scales_of

_NOT_TEXT = frozenset(
    {"vision_tower", "vision_model", "visual", "audio_tower", "multi_modal_projector", "mm_projector"}
)
_WORD_BITS = 32  # MLX packs quantized weights into words of 32 bits
_KV_HEADS = ("num_key_value_heads", "num_attention_groups", "multi_query_group_num")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "hidden_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
_EXPERT_SIZE = ("moe_intermediate_size", "expert_ffn_hidden_size")


def inspect(path: str | Path) -> ModelFacts:
    """Read what there is to know about the model in folder `path` without loading it.

    Raises:
        ModelError: no such folder, no or broken config.json, no weights, a missing, truncated or damaged
            weight file, a form that mlx-lm does not read, or an architecture that it does not know.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, and a model is a folder" if folder.exists() else "is no folder here"
        raise ModelError(
            what, where=str(folder), fix="Give the folder that holds config.json and the weights."
        )
    config_file = folder / "config.json"
    if not config_file.exists():
        refuse_other_formats(folder)
        raise ModelError(
            "holds no config.json", where=str(folder), fix="Give the folder of a model in mlx-lm's form."
        )
    config = read_json(config_file)
    support = _support(config_file, config)
    weights = read_weights(folder)
    digest = hashlib.sha256(config_file.read_bytes() + weights.digest.encode()).hexdigest()
    facts = _facts(folder, config, support)
    tensors = _loaded(weights.tensors, facts)
    return replace(
        facts,
        parameters=_parameters(tensors, facts),
        bytes=sum(tensor.nbytes for tensor in weights.tensors),
        dtype=_dtype(tensors),
        tied=not any(".lm_head." in f".{tensor.name}" for tensor in tensors),
        shards=weights.files,
        digest=digest,
        indexed=weights.indexed,
        tensors=tensors,
    )


def _support(config_file: Path, config: Mapping[str, Any]) -> Architecture:
    if "model_file" in config:
        what = f"brings code of its own ({config['model_file']}), which is not run here"
        raise ModelError(
            what, where=str(config_file.parent), fix="Take a model whose architecture mlx-lm has."
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("names no model_type", where=str(config_file))
    names = config.get("architectures") or ()
    names = (names,) if isinstance(names, str) else names
    try:
        return architecture(model_type, tuple(name for name in names if isinstance(name, str)))
    except ModelError as error:
        raise ModelError(error.what, where=str(config_file), fix=error.fix) from None


def _facts(folder: Path, config: Mapping[str, Any], support: Architecture) -> ModelFacts:
    """What config.json alone tells; the rest is filled in from the weights."""

    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = setting(config, key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is None:
            raise ModelError(
                f"does not state {keys[0]}, or not as a number above 0", where=str(folder / "config.json")
            )
        return default

    heads = number("num_attention_heads", "n_heads", "n_head", default=1)
    hidden = number("hidden_size", "n_embd", "d_model", "model_dim")
    experts = number(*_EXPERTS, default=0)
    return ModelFacts(
        path=folder,
        architecture=support.name,
        parameters=0,
        bytes=0,
        quantization=_quantization(config),
        layers=number("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_transformer_layers"),
        heads=heads,
        kv_heads=number(*_KV_HEADS, default=heads),
        head_dim=number("head_dim", default=max(hidden // heads, 1)),
        hidden=hidden,
        intermediate=number(*_INTERMEDIATE, default=0),
        experts=experts,
        experts_per_token=number(*_EXPERTS_USED, default=0) if experts else 0,
        moe_intermediate=number(*_EXPERT_SIZE, *_INTERMEDIATE, default=0) if experts else 0,
        vocab=number("vocab_size", default=0),
        dtype="",
        tied=setting(config, "tie_word_embeddings") is True,
        context=number("max_position_embeddings", "n_positions", "max_seq_len", default=0),
        shards=(),
        digest="",
        indexed=False,
        support=support,
        tensors=(),
        config=config,
    )


def _quantization(config: Mapping[str, Any]) -> Quantization | None:
    """mlx-lm's own entry, or one of the published forms that it loads packed (mlx_lm.utils.load_model)."""
    entry = quantization_entry(config)
    bits, group_size = entry.get("bits"), entry.get("group_size")
    if isinstance(bits, int) and isinstance(group_size, int):
        return Quantization(bits, group_size, str(entry.get("mode", "affine")))
    published = {
        "mxfp4": Quantization(4, 32, "mxfp4"),
        "mxfp8": Quantization(8, 32, "mxfp8"),
        "nvfp4-pack-quantized": Quantization(4, 16, "nvfp4"),
        "mxfp4-pack-quantized": Quantization(4, 32, "mxfp4"),
        "pack-quantized": Quantization(4, 32),
        "modelopt": Quantization(4, 16, "nvfp4"),
    }
    return next(
        (published[word] for key in ("quant_method", "format") if (word := entry.get(key)) in published), None
    )


def _loaded(tensors: tuple[Tensor, ...], facts: ModelFacts) -> tuple[Tensor, ...]:
    """The tensors that mlx-lm keeps of a checkpoint, each with the bytes that it has in memory.

    Dropped: vision and audio towers, layers past the last (multi-token prediction), rotary tables, a tied
        head. fp8 weights with a scale per block are unpacked to 16 bits on loading (mlx-lm's
        deepseek_v3.py), and their scales dropped.
    """
    unpacked = {t.name.removesuffix("_scale_inv") for t in tensors if t.name.endswith(".weight_scale_inv")}
    kept = []
    for tensor in tensors:
        parts = frozenset(tensor.name.split("."))
        layer = layer_of(tensor)
        drop = (
            parts & _NOT_TEXT
            or tensor.name.endswith((".inv_freq", ".weight_scale_inv"))
            or (facts.tied and "lm_head" in parts)
            or (layer is not None and layer >= facts.layers)
        )
        if not drop:
            kept.append(replace(tensor, nbytes=2 * tensor.nbytes) if tensor.name in unpacked else tensor)
    return tuple(kept)


def _parameters(tensors: tuple[Tensor, ...], facts: ModelFacts) -> int:
    """Weights and biases of the layers, each packed word counted as the numbers that it holds."""
    scales = scales_of(tensors)
    total = 0
    for tensor in tensors:
        module, parameter = tensor.module, tensor.parameter
        if parameter in ("scales", "biases", "qzeros", "g_idx") or parameter.endswith(
            ("_scales", "global_scale")
        ):
            continue  # what quantization adds
        if parameter.endswith("_blocks"):  # gpt-oss as published: two 4-bit numbers a byte
            total += 2 * tensor.size
        elif parameter == "qweight":  # AWQ, GPTQ
            total += tensor.size * _WORD_BITS // (facts.quantization.bits if facts.quantization else 4)
        elif parameter == "weight" and module in scales:
            total += scales[module].size * facts.group_size(module)
        else:
            total += tensor.size
    return total


def _dtype(tensors: tuple[Tensor, ...]) -> str:
    """The type that most unpacked tensors have, in mlx's words."""
    words = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = Counter(tensor.dtype for tensor in tensors if tensor.dtype in words)
    return words[found.most_common(1)[0][0]] if found else "unknown"
