"""What is known of a model. Data only: `inspect.py` reads, `sharding.py` judges, `describe.py` shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaccl_kernel.models import sharding
from jaccl_kernel.models.architecture import Architecture
from jaccl_kernel.models.sharding import Split
from jaccl_kernel.models.weights import Tensor


@dataclass(frozen=True)
class Quantization:
    """How most of the weights are packed; single modules may differ."""

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True)
class ModelFacts:
    """One model folder.

    Attributes:
        path: the folder.
        architecture: mlx-lm's module for it, as "llama".
        parameters: of the language model, packed ones unpacked.
        bytes: of all weights in the files; what the ranks hold is less where there is more than a language
            model.
        quantization: None for weights as trained.
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: sizes as in the config.
        experts, experts_per_token, moe_intermediate: 0 for a dense model.
        dtype: of what is not packed, as "bfloat16".
        tied: the output head is the embedding table.
        context: the most tokens of a sequence, 0 if not told.
        shards: names of the weight files.
        digest: sha256 over config.json, the tensors' names, types and shapes, and the file sizes. It tells
            models and conversions apart, and a copy that is not whole; not two trainings of one
            architecture to the same sizes.
        support: what mlx-lm can do with the architecture.
        tensors: those that the ranks load (no vision tower, no layers past the last).
        indexed: there is an index of the files.
        config: config.json.
    """

    path: Path
    architecture: str
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
    support: Architecture = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)

    def tensor_parallel(self, ranks: int) -> Split:
        """Whether each layer can be cut over `ranks` ranks, and if not why (see `sharding.py`)."""
        return sharding.tensor_parallel(self, ranks)

    def pipeline(self, ranks: int) -> Split:
        """Whether the layers can be dealt out over `ranks` ranks, and if not why (see `sharding.py`)."""
        return sharding.pipeline(self, ranks)

    def setting(self, key: str) -> Any:
        """A value of the language model's config, nested names joined by dots; None if absent."""
        return setting(self.config, key)

    def group_size(self, module: str) -> int:
        """The quantization group of one module, which may differ from the model's."""
        own = quantization_entry(self.config).get(module)
        if isinstance(own, Mapping) and isinstance(own.get("group_size"), int):
            return int(own["group_size"])
        return self.quantization.group_size if self.quantization else 1


def setting(config: Mapping[str, Any], key: str) -> Any:
    """A value of a config by its dotted name, from the language model's part of it first; None if absent."""
    text = config.get("text_config")
    for part in (text, config):
        value: Any = part
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def quantization_entry(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's part on quantization, mlx-lm's own or the one that a checkpoint was published with."""
    for key in ("quantization", "quantization_config"):
        if isinstance(entry := setting(config, key), Mapping):
            return entry
    return {}
