"""Reads a model's facts (architecture, sizes, quantization, files) from config.json and the weights' headers.

Uses neither mlx nor the weight data, so it takes less than a second for a model of any size. `loading.py`
runs mlx-lm's implementation of the architecture on the shapes; `sharding.py` checks the splits over ranks.
"""

import gc
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models import loading
from jaccl_kernel.models.architecture import architecture
from jaccl_kernel.models.facts import ModelFacts, Quantization, quantization_entry, setting
from jaccl_kernel.models.loading import Loaded
from jaccl_kernel.models.weights import Weights, read_json, read_weights, refuse_other_formats

_KV_HEADS = ("num_key_value_heads", "num_attention_groups", "multi_query_group_num")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "hidden_dim")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
_EXPERT_SIZE = ("moe_intermediate_size", "expert_ffn_hidden_size")
# The errors of mlx.nn.Module.load_weights, with the names of tensors.
_MISMATCH = re.compile(r"(Received|Missing) (\d+) parameters[^:]*: \n(.*)", re.DOTALL)
# Tensors of quantizations that are not mlx's: FP8, compressed-tensors, GPTQ and AWQ, ModelOpt, bitsandbytes.
_PACKED = re.compile(r"_scale_inv|weight_packed|weight_scale|qweight|qzeros|g_idx|input_scale|absmax")
_CONVERSION = (
    "Use an MLX conversion, such as mlx-community/NAME-4bit on Hugging Face, or convert the original with "
    "16-bit weights: mlx_lm.convert --hf-path ORG/NAME --mlx-path NAME-4bit -q"
)
_PACKAGE = "Install that package on every node."
_OTHER_WEIGHTS = (
    "The copy is incomplete, or it is for another version of mlx-lm: download the model again, or update "
    "mlx-lm on every node: pip install -U mlx-lm"
)


def inspect(path: str | Path) -> ModelFacts:
    """Read the facts of the model in the folder `path` without loading the model.

    Raises:
        ModelError: a missing folder, a missing or invalid config.json, no weights, a missing, truncated or
            damaged weight file, or a format or architecture that mlx-lm does not support.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "the path is a file, not a model folder" if folder.exists() else "directory not found"
        raise ModelError(
            what, where=str(folder), fix="Pass the folder that contains config.json and the weights."
        )
    config_file = folder / "config.json"
    if not config_file.exists():
        refuse_other_formats(folder)
        raise ModelError(
            "config.json is missing", where=str(folder), fix="Pass the folder of a model in mlx-lm's format."
        )
    config = read_json(config_file)
    name = _architecture(config_file, config)
    collecting = gc.isenabled()
    gc.disable()  # it would visit each of many tensors again and again, of which none is garbage
    try:
        return _facts(folder, config, name, read_weights(folder))
    finally:
        if collecting:
            gc.enable()


def _architecture(config_file: Path, config: Mapping[str, Any]) -> str:
    if "model_file" in config:
        what = f"the model needs custom code ({config['model_file']}), which is not supported"
        raise ModelError(
            what, where=str(config_file.parent), fix="Use a model with an architecture that mlx-lm supports."
        )
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("model_type is missing", where=str(config_file))
    names = config.get("architectures") or ()
    names = (names,) if isinstance(names, str) else names
    try:
        return architecture(model_type, tuple(name for name in names if isinstance(name, str)))
    except ModelError as error:
        raise ModelError(error.what, where=str(config_file), fix=error.fix) from None


def _facts(folder: Path, config: Mapping[str, Any], name: str, weights: Weights) -> ModelFacts:
    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = setting(config, key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is None:
            raise ModelError(
                f"{keys[0]} is missing or not a positive integer", where=str(folder / "config.json")
            )
        return default

    heads = number("num_attention_heads", "n_heads", "n_head", default=1)
    hidden = number("hidden_size", "n_embd", "d_model", "model_dim")
    layers = number("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_transformer_layers")
    experts = number(*_EXPERTS, default=0)
    loaded = loading.load(folder, name, weights.tensors)
    problem, fix = _problem(config, name, loaded)
    tied = setting(config, "tie_word_embeddings") is True
    return ModelFacts(
        path=folder,
        architecture=name,
        problem=problem,
        fix=fix,
        parameters=loaded.parameters,
        bytes=sum(tensor.nbytes for tensor in weights.tensors),
        quantization=_quantization(loaded.quantization or quantization_entry(config)),
        layers=layers,
        heads=heads,
        kv_heads=number(*_KV_HEADS, default=heads),
        head_dim=number("head_dim", default=max(hidden // heads, 1)),
        hidden=hidden,
        intermediate=number(*_INTERMEDIATE, default=0),
        experts=experts,
        experts_per_token=number(*_EXPERTS_USED, default=0) if experts else 0,
        moe_intermediate=number(*_EXPERT_SIZE, *_INTERMEDIATE, default=0) if experts else 0,
        vocab=number("vocab_size", default=0),
        dtype=loaded.dtype,
        tied=tied or not any("lm_head." in tensor.name for tensor in weights.tensors),
        context=number("max_position_embeddings", "n_positions", "max_seq_len", default=0),
        shards=weights.files,
        digest=hashlib.sha256((folder / "config.json").read_bytes() + weights.digest.encode()).hexdigest(),
        indexed=weights.indexed,
        loaded=loaded,
        config=config,
    )


def _problem(config: Mapping[str, Any], name: str, loaded: Loaded) -> tuple[str, str]:
    """Why mlx-lm cannot load the model, and what to do; two empty texts if it can."""
    if not loaded.error:
        return "", ""
    what = " ".join(loaded.error.split())
    if found := _MISMATCH.match(loaded.error):
        first = found[3].rstrip(".").partition(",")[0]
        what = f"the model has no {first} ({found[2]} such tensors)"
        if found[1] == "Missing":
            what = f"{first} is missing ({found[2]} such tensors)"
    packed = "quantized" if _PACKED.search(loaded.error) else ""
    method = quantization_entry(config).get("quant_method") or packed
    if loaded.error.startswith("mlx-lm exits: "):
        return f"{name} needs a package that is not installed: {what}", _PACKAGE
    if method and "quantization" not in config:
        return f"mlx-lm's {name} cannot unpack this {method} checkpoint: {what}", _CONVERSION
    return f"mlx-lm's {name} cannot load these weights: {what}", _OTHER_WEIGHTS


def _quantization(entry: Mapping[str, Any]) -> Quantization | None:
    """mlx-lm's entry; for a model that does not load, a format that mlx_lm.utils.load_model knows."""
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
