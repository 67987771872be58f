"""A model's facts as data: `inspect.py` reads them, `sharding.py` checks splits, `describe.py` formats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaccl_kernel.models import sharding
from jaccl_kernel.models.loading import Loaded
from jaccl_kernel.models.sharding import Split


@dataclass(frozen=True)
class Quantization:
    """The quantization of most weights; individual modules may differ."""

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True)
class ModelFacts:
    """The facts of one model folder.

    Attributes:
        path: the folder.
        architecture: mlx-lm's module name, such as "llama".
        problem: why mlx-lm cannot load the model, or "".
        fix: what to do about it, or "".
        parameters: number of parameters of the model that mlx-lm loads; packed ones count as unpacked.
        bytes: size of all weights in the files; mlx-lm drops some of them, unpacks others, and adds biases.
        quantization: None for unquantized weights.
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: sizes from the config.
        experts, experts_per_token, moe_intermediate: 0 for a dense model.
        dtype: type of the unpacked tensors, such as "bfloat16".
        tied: whether the output head is the embedding table.
        context: maximum sequence length in tokens, 0 if unknown.
        shards: names of the weight files.
        digest: SHA-256 of config.json, the tensors' names, types and shapes, and the file sizes. It
            distinguishes models, conversions and incomplete copies, but not two trainings of the same
            architecture.
        indexed: whether there is an index of the files.
        loaded: the model as mlx-lm loads it.
        config: config.json.
    """

    path: Path
    architecture: str
    problem: str
    fix: str
    parameters: int
    bytes: int
    quantization: Quantization | None
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    experts: int
    experts_per_token: int
    moe_intermediate: int
    vocab: int
    dtype: str
    tied: bool
    context: int
    shards: tuple[str, ...]
    digest: str
    indexed: bool
    loaded: Loaded = field(repr=False, compare=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)

    def tensor_parallel(self, ranks: int) -> Split:
        """Whether each layer splits over `ranks` ranks, and if not why (see `sharding.py`)."""
        return sharding.tensor_parallel(self, ranks)

    def pipeline(self, ranks: int) -> Split:
        """Whether the layers can be distributed over `ranks` ranks, and if not why (see `sharding.py`)."""
        return sharding.pipeline(self, ranks)


def setting(config: Mapping[str, Any], key: str) -> Any:
    """A value of a config by its dotted name, first from the language model's part; None if absent."""
    text = config.get("text_config")
    for part in (text, config):
        value: Any = part
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def quantization_entry(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization part of the config, in mlx-lm's format or that of the published checkpoint."""
    for key in ("quantization", "quantization_config"):
        if isinstance(entry := setting(config, key), Mapping):
            return entry
    return {}
