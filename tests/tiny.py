"""A tiny random llama with a real byte-level tokenizer, made in a moment: the stand-in model of the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

# made in a child, as the product makes models: the test process itself holds no mlx
_MAKE = """
import importlib, json, sys
import mlx.core as mx
from mlx.utils import tree_flatten
config, folder = json.loads(sys.argv[1]), sys.argv[2]
kind = importlib.import_module("mlx_lm.models." + config["model_type"])
mx.random.seed(7)
model = kind.Model(kind.ModelArgs.from_dict(config))
weights = dict(tree_flatten(model.parameters()))
weights = {name: value if "norm" in name else value * 8 for name, value in weights.items()}
mx.save_safetensors(folder + "/model.safetensors", weights, metadata={"format": "mlx"})
"""

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 259,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "eos_token_id": 257,
    "bos_token_id": 256,
}

# a hybrid: one layer of attention, one of convolution, whose state cannot be cut back
HYBRID = {
    "model_type": "lfm2",
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "full_attn_idxs": [1],
}


def make_tiny_model(folder: Path, **changes: object) -> Path:
    """Write the model into `folder` (made if need be) and return it; `changes` go over its config."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", _MAKE, json.dumps(config), str(folder)], check=True, env=env, timeout=300
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    specials = ["<s>", "</s>", "<pad>"]
    vocabulary |= {name: len(alphabet) + number for number, name in enumerate(specials)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": template,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
