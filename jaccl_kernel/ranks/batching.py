"""Several sequences at once on resident ranks, as the server steps them: what a batch brings in all."""

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from jaccl_kernel.errors import Stopped
from jaccl_kernel.ranks import energy
from jaccl_kernel.ranks.bench import PASSAGE
from jaccl_kernel.ranks.serve import Loaded
from jaccl_kernel.server.engine import Add, Plan
from jaccl_kernel.server.generation import Sampling
from jaccl_kernel.server.sampling import Row

FIRST = 1 << 20  # numbers of these sequences: apart from the prompts'


def measure(
    loaded: Loaded, batch: int, prompt_tokens: int, max_tokens: int, stopping: Callable[[], bool]
) -> dict[str, Any]:
    """Generate `batch` sequences together, greedily, and time the whole; on every rank alike.

    Args:
        loaded: the model, made ready for batches.
        batch: how many sequences.
        prompt_tokens: of each prompt, which differ from the first token on.
        max_tokens: of each answer; none ends sooner.
        stopping: asked after each step, on every rank.

    Returns `tokens` (of all answers), `wall_s` (from the first prompt to the last token), `ttft_s` (until
    every sequence had a token), `decode_tps` (tokens a second after that, of all together), `power` (see
    ranks/energy.py).

    Raises:
        Stopped: it was stopped.
    """
    share, chooser, tokenizer = loaded.share, loaded.chooser, loaded.tokenizer
    passage = tokenizer.encode(PASSAGE)
    longest = passage * (prompt_tokens // len(passage) + 2)
    ends = {token: -1e9 for token in tokenizer.eos_token_ids if token < loaded.vocabulary}
    plan = Plan()
    for number in range(batch):
        prompt = longest[number % len(passage) :][:prompt_tokens]
        chooser.rows[FIRST + number] = Row(Sampling(temperature=0.0, logit_bias=ends), prompt)
        plan.add.append(Add(FIRST + number, prompt, max_tokens))
    begun: set[int] = set()
    total = after = 0
    all_begun = 0.0
    with mx.stream(generation_stream):
        try:
            meter = energy.Meter()
            began = time.perf_counter()
            while True:
                made = share.apply(plan)
                plan = Plan()
                total += len(made)
                after += len(made) if all_begun else 0
                begun |= {one.sequence for one in made}
                if len(begun) == batch and not all_begun:
                    all_begun = time.perf_counter()
                if not len(share.batch):
                    break
                if stopping():
                    raise Stopped("stopped", fix="Run it again when you like.")
            ended = time.perf_counter()
            drawn = meter.read()
        finally:
            share.apply(Plan(remove=share.batch.sequences(), step=False))
            share.batch.held.clear()
            for number in range(batch):
                chooser.rows.pop(FIRST + number, None)
            mx.synchronize(generation_stream)
    return {
        "tokens": total,
        "wall_s": ended - began,
        "ttft_s": all_begun - began,
        "decode_tps": after / (ended - all_begun) if after else None,
        "power": drawn,
    }


def bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes a second that this rank reads from its memory: the best of a few sums over a large array."""
    large = mx.ones((megabytes << 18,), dtype=mx.float32)
    mx.eval(large)
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        mx.eval(mx.sum(large))
        best = max(best, large.nbytes / (time.perf_counter() - began))
    return best
