"""Converts a llama GGUF to a model folder for mlx-lm, with padded heads so that it splits over ranks.

Runs as a child process (`python -m jaccl_kernel.models.convert GGUF FOLDER`), since it is the only file in
this room that imports mlx. Covers GGUF's names and llama.cpp's layout; `demo.py` provides the file and the
folder. Quantized weights are never unpacked: rows and groups are moved unchanged.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.vocabulary import Vocabulary, write_tokenizer

GROUP_SIZE = 32  # weights that share a scale and a bias: the block size of GGUF's Q4_1 and Q8_0
WORD_BITS = 32  # MLX packs quantized weights into 32-bit words
SPLITS = 4  # the padded head counts are multiples of this, so that 1, 2 and 4 ranks get whole heads
# Type of scales, biases and norms, and so of all computations. GGUF has float16, which a CPU emulates: on one
# x86 core, the demo model generates 7 tok/s in float32, 1 in bfloat16, 0.2 in float16. float32 is also
# lossless.
DTYPE = mx.float32

# GGUF's names for llama's layers, and mlx-lm's (llama.cpp: gguf-py/gguf/tensor_mapping.py)
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)")

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Llama:
    """The sizes and constants of a llama in its GGUF metadata."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float
    rope_theta: float

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any]) -> "Llama":
        """Read `llama.*`; raise ModelError for another architecture or a missing value."""

        def value(key: str) -> Any:
            try:
                return metadata[f"llama.{key}"].item()
            except KeyError:
                raise ModelError(f"llama.{key} is missing in the GGUF file") from None

        if (architecture := metadata.get("general.architecture")) != "llama":
            raise ModelError(f"unsupported GGUF architecture {architecture!r}; only 'llama' is supported")
        heads = int(value("attention.head_count"))
        return cls(
            layers=int(value("block_count")),
            hidden=int(value("embedding_length")),
            intermediate=int(value("feed_forward_length")),
            heads=heads,
            kv_heads=int(value("attention.head_count_kv")),
            head_dim=int(value("embedding_length")) // heads,
            vocab=int(value("vocab_size")),
            context=int(value("context_length")),
            norm_eps=round(
                float(value("attention.layer_norm_rms_epsilon")), 12
            ),  # 1e-5 is inexact in float32
            rope_theta=float(value("rope.freq_base")),
        )

    def padded(self) -> "Llama":
        """The model with added heads of zeros and the same number of query heads per key-value head."""
        kv_heads = -(-self.kv_heads // SPLITS) * SPLITS
        return replace(self, heads=kv_heads * (self.heads // self.kv_heads), kv_heads=kv_heads)


def convert(gguf: Path, folder: Path, *, pad: bool = True) -> None:
    """Write `gguf` into the existing `folder` as config, weights, index, tokenizer and generation config.

    Args:
        gguf: a llama quantized in blocks of 32 (Q4_1, Q4_0 or Q8_0, mixed as it likes).
        folder: where the files go.
        pad: add heads of zeros, so that the model splits over 2 and 4 ranks. A padded head's keys and
            values are zero and so is what the output projection makes of it: the function stays the same.

    Raises:
        ModelError: the GGUF is of another architecture or quantization, or states too little.
    """
    arrays, metadata = cast("tuple[Arrays, dict[str, Any]]", mx.load(str(gguf), return_metadata=True))
    model = Llama.from_metadata(metadata)
    weights = pair_rotary_halves(renamed(arrays), model)
    if pad:
        weights = pad_heads(weights, model, model.padded())
        model = model.padded()
    weights = {
        name: value if value.dtype == mx.uint32 else value.astype(DTYPE) for name, value in weights.items()
    }
    write_weights(folder, weights)
    vocabulary = Vocabulary.from_gguf(
        {key: value.tolist() if isinstance(value, mx.array) else value for key, value in metadata.items()}
    )
    write_tokenizer(folder, vocabulary, context=model.context)
    write_config(folder, model, weights, vocabulary)


def renamed(arrays: Arrays) -> Arrays:
    """The tensors under mlx-lm's names, sorted by name."""
    result = {}
    for name, value in arrays.items():
        module, _, kind = name.rpartition(".")
        if found := _LAYER_NAME.fullmatch(module):
            target = f"model.layers.{found[1]}.{_LAYER[found[2]]}" if found[2] in _LAYER else None
        else:
            target = _TOP.get(module)
        if target is None:
            raise ModelError(f"unexpected tensor {name!r} in the GGUF file")
        result[f"{target}.{kind}"] = value
    return dict(sorted(result.items()))


def _of_module(weights: Arrays, module: str, change: Callable[[mx.array], mx.array]) -> Arrays:
    """The weights, with `change` applied to weight, scales and biases of every module named `module`."""
    return {
        name: change(value) if name.split(".")[-2] == module else value for name, value in weights.items()
    }


def pair_rotary_halves(weights: Arrays, model: Llama) -> Arrays:
    """Reorder the rows of queries and keys into halves.

    llama.cpp rotates neighbouring rows (0,1), (2,3) …, mlx-lm (as the original weights) the halves (0,d/2),
    (1,d/2+1) …. Scales and biases belong to rows, so they move alike.
    """

    def halves(heads: int) -> Callable[[mx.array], mx.array]:
        def change(value: mx.array) -> mx.array:
            rows = value.reshape(heads, model.head_dim // 2, 2, -1)
            return mx.contiguous(rows.swapaxes(1, 2).reshape(value.shape))

        return change

    weights = _of_module(weights, "q_proj", halves(model.heads))
    return _of_module(weights, "k_proj", halves(model.kv_heads))


def pad_heads(weights: Arrays, model: Llama, padded: Llama) -> Arrays:
    """Add rows of zeros to queries, keys and values, and columns of zeros to the output projection.

    A group with scale 0 and bias 0 is zero whatever its bits. New query heads come after the old ones and
    belong to new key-value heads, so the pairs of old heads do not change.
    """

    def more_rows(heads: int) -> Callable[[mx.array], mx.array]:
        return lambda value: mx.pad(value, [(0, heads * model.head_dim), (0, 0)])

    def more_columns(value: mx.array) -> mx.array:
        columns_per_head = value.shape[-1] // model.heads
        return mx.pad(value, [(0, 0), (0, (padded.heads - model.heads) * columns_per_head)])

    weights = _of_module(weights, "q_proj", more_rows(padded.heads - model.heads))
    weights = _of_module(weights, "k_proj", more_rows(padded.kv_heads - model.kv_heads))
    weights = _of_module(weights, "v_proj", more_rows(padded.kv_heads - model.kv_heads))
    return _of_module(weights, "o_proj", more_columns)


def quantization(weights: Arrays) -> dict[str, Any]:
    """mlx-lm's `quantization` entry: the common values, then each module that differs, by name.

    Bits follow from the shapes: a row of n groups holds 32 n weights in `columns` words of 32 bits.
    """
    bits = {
        name.removesuffix(".scales"): weights[name.removesuffix("scales") + "weight"].shape[-1]
        * WORD_BITS
        // (scales.shape[-1] * GROUP_SIZE)
        for name, scales in weights.items()
        if name.endswith(".scales")
    }
    if not bits:
        raise ModelError("the GGUF file is not quantized in blocks of 32 (Q4_0, Q4_1 or Q8_0)")
    common = max(set(bits.values()), key=list(bits.values()).count)
    odd = {module: {"group_size": GROUP_SIZE, "bits": own} for module, own in bits.items() if own != common}
    return {"group_size": GROUP_SIZE, "bits": common, "mode": "affine", **odd}


def write_weights(folder: Path, weights: Arrays) -> None:
    """Write `model.safetensors`, and the index that a pipeline needs even for a single file."""
    file = folder / "model.safetensors"
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in weights.values())},
        "weight_map": dict.fromkeys(weights, file.name),
    }
    _write_json(folder / "model.safetensors.index.json", index)


def write_config(folder: Path, model: Llama, weights: Arrays, vocabulary: Vocabulary) -> None:
    """Write `config.json` and `generation_config.json`."""
    ends = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": str(DTYPE).removeprefix("mlx.core."),
        "vocab_size": model.vocab,
        "quantization": quantization(weights),
        **ends,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", ends)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the command line; return 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m jaccl_kernel.models.convert", description=__doc__)
    parser.add_argument("gguf", type=Path, help="the file to convert")
    parser.add_argument("folder", type=Path, help="folder for the model; created if missing")
    parser.add_argument("--no-pad", action="store_true", help="do not pad the heads")
    arguments = parser.parse_args()
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        convert(arguments.gguf, arguments.folder, pad=not arguments.no_pad)
    except (ModelError, OSError, RuntimeError, ValueError) as error:  # mx.load raises the last two
        print(error, file=sys.stderr)  # noqa: T201 - output of a command line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
