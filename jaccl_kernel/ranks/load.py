"""Loading a model onto the ranks: whole on one, by tensor or by pipeline over several.

Does what mlx_lm.utils.sharded_load does, with progress and without a hub: every rank reads the checkpoint in
its own folder and keeps its share. Weights are evaluated one by one, so that only one whole tensor is in
memory at a time beside the share.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

from jaccl_kernel.errors import ModelError

SHARDINGS = ("tensor", "pipeline")
TELL_EVERY_S = 0.25


def load(
    path: Path,
    *,
    group: Any = None,
    sharding: str = "tensor",
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a folder; with a group, this rank's share of it.

    Args:
        path: a folder with config.json, tokenizer and safetensors.
        group: the mx.distributed.Group to split over, or None.
        sharding: "tensor" (every layer split) or "pipeline" (layers dealt out).
        progress: told the bytes in words and the fraction loaded, a few times a second.

    Raises:
        ModelError: this architecture cannot be split this way.
    """
    pipelined = group is not None and sharding == "pipeline"
    # a pipeline's rank holds some layers only: the others' weights have nowhere to go
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
    if group is not None:  # the slowest disk is waited for here, not in the first prompt
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group, stream=mx.cpu))
    return model, tokenizer


def _evaluate(model: Any, progress: Callable[[str, float], None]) -> None:
    leaves = [leaf for _, leaf in tree_flatten(model.parameters())]
    total = max(1, sum(leaf.nbytes for leaf in leaves))
    done, told = 0, 0.0
    for leaf in leaves:
        mx.eval(leaf)
        done += leaf.nbytes
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            progress(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB", done / total)
    progress(f"{total / 1e9:.2f} GB", 1.0)
