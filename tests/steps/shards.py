"""A llama of random bytes in several weight files with an index, of any size, made without mlx."""

import json
import random
import struct
from pathlib import Path

HIDDEN = 64
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def make_shards(folder: Path, *, files: int = 3, total: int = 600_000, seed: int = 1) -> Path:
    """Write a model of about `total` bytes in `files` weight files, its tensors dealt out, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = total // (4 * HIDDEN)  # embeddings and head, 2 bytes a number
    shapes = _shapes(vocab)
    names = sorted(shapes)
    shards = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    weight_map = {name: shards[position % files] for position, name in enumerate(names)}
    noise = random.Random(seed)
    for shard in shards:
        _write(folder / shard, {name: shapes[name] for name in names if weight_map[name] == shard}, noise)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": vocab}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, HIDDEN),
        "lm_head.weight": (vocab, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (128, HIDDEN) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, 128)
        shapes |= {f"{at}.{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
    return shapes


def _write(file: Path, shapes: dict[str, tuple[int, ...]], noise: random.Random) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + noise.randbytes(end))


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by the paths of its files, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
