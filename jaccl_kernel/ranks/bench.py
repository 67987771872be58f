"""Measures one model on these ranks: load, prefill, decode and memory; greedy, so that runs are comparable.

Each run is a request to the engine. Rank 0 reports the numbers, and each rank a digest of all its tokens (the
digests must be equal) and its peak memory. For the parity check (see report/parity.py), the ranks also score
the tokens of the payload's `reference`, or their own if there is none.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from jaccl_kernel.core.codec import decode
from jaccl_kernel.core.errors import JobError, Stopped
from jaccl_kernel.core.events import BenchResult
from jaccl_kernel.core.messages import Payload
from jaccl_kernel.core.options import BenchProgram
from jaccl_kernel.core.results import BatchTimes, BenchRun, Reference, Score
from jaccl_kernel.inference.engine import Engine
from jaccl_kernel.inference.loaded import LoadedModel, prepare
from jaccl_kernel.inference.request import Chunk, Finish, Prefill, Request, RequestError, Sampling, Text
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.ranks import energy
from jaccl_kernel.ranks.control_plane import with_engine
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.host_channel import Link
from jaccl_kernel.ranks.loader import load

WARMUP_TOKENS = 8
REPORT_EVERY_S = 0.5  # the host ends a rank without progress
PREFILL_STEP = 2048  # prompt tokens per step; large, since no other sequence decodes meanwhile
TOP = 5  # number of most likely tokens that are compared at each position
PREFILL_CHUNK = 512  # tokens per forward pass while scoring; bounds the memory of a long prompt
SCORE_CHUNK = 64  # positions whose logits (positions x vocabulary, float32) are in memory at once
PASSAGE = (
    "Thunderbolt joins the machines, and the machines share one model. Each holds a slice of every layer, "
    "and after every layer they add up what they found. The cable is short, the sum is small, and it is done "
    "before the next word is due. "
)

Progress = Callable[[str, int, int, float], None]
"""Called with the name of what is counted, the count, the total, and 0..1 for this part of the work."""


def run(options: BenchProgram, *, world: World, group: Any, link: Link, payload: Payload) -> int:
    """Load, warm up, measure, score; 0 if everything was measured."""
    path = resolve(options.given_model)
    link.stage("load", f"loading {path.name}")
    began = time.perf_counter()
    model, tokenizer = load(
        path,
        group=group,
        sharding=options.sharding,
        progress=lambda text, fraction: link.stage("load", text, fraction),
    )
    load_s = time.perf_counter() - began
    loaded = prepare(model, tokenizer, group, max_sequences=1, prefill_step=PREFILL_STEP)
    link.watch(lambda: loaded.executor.mark[0])
    engine = None if world.rank else loaded.engine()
    result = measure(model, loaded, engine, options, payload.reference, world=world, group=group, link=link)
    if result is None:
        return 1  # rank 0 reports the error
    result = replace(result, load_s=load_s)
    link.send(result)
    if world.rank == 0 and not link.wired:
        _print(result, world)
    return 0


def measure(
    model: Any,
    loaded: LoadedModel,
    engine: Engine | None,
    options: BenchProgram,
    reference: Reference | None,
    *,
    world: World,
    group: Any,
    link: Link,
    stopping: Callable[[], bool] = lambda: False,
) -> BenchResult | None:
    """Warm up, run and score with a loaded model. Every rank calls it.

    Args:
        model: the model, or this rank's shard of it, for scoring.
        loaded: the model, prepared for the engine.
        engine: rank 0's engine.
        options: the options of this program.
        reference: the tokens to score; None for those of this run.
        world, group, link: the arguments of a rank program.
        stopping: called after each step on rank 0; true stops the run.

    Returns the result (rank 0's is complete); None on a worker if rank 0 stopped or failed.

    Raises:
        Stopped: it was stopped.
    """
    tokenizer = loaded.tokenizer
    prompt = encode_prompt(tokenizer, options.text, options.prompt_tokens)
    meter = energy.Meter()

    def work(engine: Engine) -> list[dict[str, Any]]:
        nonlocal meter
        warm_up = min(WARMUP_TOKENS, options.max_tokens)
        link.stage("warm-up", f"{warm_up} tokens")
        progress = _reporter(link, "warm-up", "")
        run_once(engine, prompt, warm_up, progress, stopping)
        meter = energy.Meter()
        runs = []
        for number in range(1, options.repeats + 1):
            name = f"run {number} of {options.repeats}"
            link.stage("measure", name, (number - 1) / options.repeats)
            progress = _reporter(
                link, "measure", f"{name}: ", (number - 1) / options.repeats, 1 / options.repeats
            )
            ignore_eos = not options.stop_at_eos
            run = run_once(engine, prompt, options.max_tokens, progress, stopping, ignore_eos=ignore_eos)
            runs.append(asdict(run))
        return runs

    measured = with_engine(loaded, engine, world, group, link, work)
    if measured is None:
        return None
    runs = tuple(decode(BenchRun, run) for run in measured)
    power = meter.read()
    link.stage("score", "log-probabilities for the parity check")
    # on the generation stream: collectives of two streams can cross, which gives wrong sums
    with mx.stream(generation_stream):
        progress = _reporter(link, "score", "")
        score = score_tokens(model, prompt, reference or Reference(runs[0].tokens), progress)
    steps, digest = loaded.executor.mark
    result = BenchResult(mx.get_peak_memory(), f"{steps}:{digest:08x}", power)
    if world.rank:
        return result
    text = tokenizer.decode(list(runs[0].tokens))
    return replace(result, prompt_tokens=len(prompt), runs=runs, text=text, score=score)


def measure_batch(
    loaded: LoadedModel,
    engine: Engine,
    batch: int,
    prompt_tokens: int,
    max_tokens: int,
    stopping: Callable[[], bool],
) -> BatchTimes:
    """Generate `batch` sequences at once, greedily, and time them. On rank 0.

    Args:
        loaded: the model.
        engine: its engine.
        batch: number of sequences.
        prompt_tokens: length of each prompt; the prompts differ from the first token on.
        max_tokens: length of each answer; none ends earlier.
        stopping: called after each step; true stops the run.

    Raises:
        Stopped: it was stopped.
    """
    passage = loaded.tokenizer.encode(PASSAGE)
    longest = passage * (prompt_tokens // len(passage) + 2)
    prompts = [longest[number % len(passage) :][:prompt_tokens] for number in range(batch)]
    began = time.perf_counter()
    times: dict[int, list[float]] = {}
    requests = [_request(prompt, max_tokens, ignore_eos=True) for prompt in prompts]
    for number, chunk in _chunks(engine, requests, stopping):
        if isinstance(chunk, Text):
            times.setdefault(number, []).extend(token.at for token in chunk.tokens)
    every = [at for some in times.values() for at in some]
    begun, ended = max(some[0] for some in times.values()), max(every)
    after = sum(at > begun for at in every)
    decode_tps = after / (ended - begun) if after else None
    return BatchTimes(len(every), ended - began, begun - began, decode_tps)


def encode_prompt(tokenizer: Any, text: str | None, length: int | None) -> list[int]:
    """The prompt as token ids: a text in the model's chat template, if any, or `length` generated ones."""
    if length is not None:
        passage = tokenizer.encode(PASSAGE)
        return (passage * (length // len(passage) + 1))[:length]
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    return list(tokenizer.encode(text))


def run_once(
    engine: Engine,
    prompt: list[int],
    max_tokens: int,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
    *,
    ignore_eos: bool = False,
) -> BenchRun:
    """One greedy run from an empty cache.

    Raises:
        Stopped: it was stopped.
    """
    tokens: list[int] = []
    times = [time.perf_counter()]
    for _, chunk in _chunks(engine, [_request(prompt, max_tokens, ignore_eos=ignore_eos)], stopping):
        if isinstance(chunk, Prefill):
            progress("tokens of the prompt", chunk.done, chunk.total, 0.0)
        elif isinstance(chunk, Text):
            [token] = chunk.tokens
            tokens.append(token.id)
            times.append(token.at)
            progress("tokens", len(tokens), max_tokens, len(tokens) / max_tokens)
    gaps = [after - before for before, after in itertools.pairwise(times[1:])]
    return BenchRun(tuple(tokens), times[1] - times[0], tuple(gaps))


def _request(prompt: list[int], max_tokens: int, *, ignore_eos: bool) -> Request:
    return Request(
        prompt,
        max_tokens,
        Sampling(temperature=0.0),
        ignore_eos=ignore_eos,
        use_cache=False,
        progress=True,
    )


def _chunks(
    engine: Engine, requests: list[Request], stopping: Callable[[], bool]
) -> Iterator[tuple[int, Chunk]]:
    """The engine's chunks; raises Stopped if they end early, and JobError for a request error."""
    try:
        for number, chunk in engine.generate(*requests, stopping=stopping):
            if isinstance(chunk, Finish) and chunk.reason == "stopped":
                raise Stopped("stopped", fix="Run it again.")
            yield number, chunk
    except RequestError as error:
        raise JobError(error.message) from error


def score_tokens(model: Any, prompt: list[int], reference: Reference, progress: Progress) -> Score:
    """Run the reference's tokens through the model and return the log-probabilities at each position.

    Args:
        model: the model, or this rank's shard of it.
        prompt: the prompt's token ids.
        reference: the tokens; without `top`, this model's TOP most likely ids are taken.
        progress: reports the progress.
    """
    cache = make_prompt_cache(model)
    tokens = reference.tokens
    inputs = [*prompt, *tokens[:-1]]
    context = len(prompt) - 1
    for start in range(0, context, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, context)
        model(mx.array(inputs[start:stop])[None], cache=cache)
        mx.eval([layer.state for layer in cache])
        progress("tokens of the prompt", stop, context, 0.0)
    top: list[tuple[int, ...]] = []
    logprobs: list[tuple[float, ...]] = []
    dtype = ""
    for start in range(0, len(tokens), SCORE_CHUNK):
        stop = min(start + SCORE_CHUNK, len(tokens))
        logits = model(mx.array(inputs[context + start : context + stop])[None], cache=cache)[0]
        dtype = str(logits.dtype).removeprefix("mlx.core.")
        logits = logits.astype(mx.float32)
        normal = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if reference.top is not None:
            ids = mx.array(reference.top[start:stop])
        else:
            ids = mx.argsort(-normal, axis=-1)[:, :TOP]
        picked = mx.take_along_axis(normal, ids, axis=-1)
        top.extend(map(tuple, ids.tolist()))
        logprobs.extend(map(tuple, picked.tolist()))
        progress("tokens", stop, len(tokens), stop / len(tokens))
    return Score(tuple(top), tuple(logprobs), dtype)


def _reporter(link: Link, stage: str, prefix: str, begin: float = 0.0, share: float = 1.0) -> Progress:
    """A Progress for a part of the work, which begins at `begin` and is `share` of the stage."""
    last = time.monotonic()

    def report(what: str, done: int, total: int, part: float) -> None:
        nonlocal last
        if time.monotonic() - last < REPORT_EVERY_S:
            return
        last = time.monotonic()
        link.stage(stage, f"{prefix}{done} of {total} {what}", begin + part * share)

    return report


def _print(result: BenchResult, world: World) -> None:
    """Print the result as text, as rank 0 does under plain mlx.launch."""
    write, prompt = sys.stdout.write, result.prompt_tokens
    write(f"{result.text}\n\n{world.name()}; loaded in {result.load_s:.2f} s\n")
    for run in result.runs:
        rate = f"{len(run.itl_s) / sum(run.itl_s):.1f}" if run.itl_s else "-"
        write(
            f"prompt: {prompt} tokens, {prompt / run.ttft_s:.1f} tokens/s, TTFT {run.ttft_s:.3f} s; "
            f"generation: {len(run.tokens)} tokens, {rate} tokens/s\n"
        )
    write(f"peak memory: {mx.get_peak_memory() / 1e9:.3f} GB on rank 0\n")
