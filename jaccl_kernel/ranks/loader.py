"""Loads a model onto the ranks: the complete model on one, tensor or pipeline parallel on several.

Like mlx_lm.utils.sharded_load, but with progress and without a hub: every rank reads the checkpoint in its
own folder and keeps its shard. Weights are evaluated one by one, so that besides the shard only one complete
tensor is in memory at a time.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from jaccl_kernel.core.errors import ModelError

REPORT_EVERY_S = 0.25


def load(
    path: Path,
    *,
    group: Any = None,
    sharding: str = "tensor",
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a folder; with a group, this rank's shard of the model.

    Args:
        path: a folder with config.json, tokenizer and safetensors.
        group: the mx.distributed.Group to split over, or None.
        sharding: "tensor" (each layer is split) or "pipeline" (layers are distributed).
        progress: called with the loaded bytes as text and their fraction, a few times per second.

    Raises:
        ModelError: the architecture cannot be split this way.
    """
    pipelined = group is not None and sharding == "pipeline"
    # a pipeline rank has only some layers; the other weights match no parameter
    model, config = load_model(path, lazy=True, strict=not pipelined)
    if pipelined:
        if not hasattr(getattr(model, "model", None), "pipeline"):
            raise ModelError(f"{config.get('model_type')} does not support pipelining", where=str(path))
        model.model.pipeline(group)
    elif group is not None:
        if not hasattr(model, "shard"):
            raise ModelError(f"{config.get('model_type')} does not support tensor parallel", where=str(path))
        model.shard(group)
    _evaluate(model, progress)
    tokenizer = load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id"))
    if group is not None:  # wait for the slowest disk here, not in the first prompt
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group, stream=mx.cpu))
    return model, tokenizer


def _evaluate(model: Any, progress: Callable[[str, float], None]) -> None:
    leaves = [leaf for _, leaf in tree_flatten(model.parameters())]
    total = max(1, sum(leaf.nbytes for leaf in leaves))
    done, reported = 0, 0.0
    for leaf in leaves:
        mx.eval(leaf)
        done += leaf.nbytes
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            progress(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB", done / total)
    progress(f"{total / 1e9:.2f} GB", 1.0)
