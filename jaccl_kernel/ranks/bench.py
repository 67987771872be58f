"""Measure one model on these ranks: load, prefill, decoding, memory; greedy, so that runs can be compared.

Every rank runs the same steps; rank 0 tells the numbers, and each rank a digest of its tokens (they must be
equal) and its peak memory. With a `reference` in the payload it also scores another run's tokens, for the
correctness gate (see report/parity.py); without one it scores its own.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream, wired_limit
from mlx_lm.models.cache import make_prompt_cache

from jaccl_kernel.errors import InputError, Stopped
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.ranks import energy
from jaccl_kernel.ranks.link import Link
from jaccl_kernel.ranks.load import SHARDINGS, load
from jaccl_kernel.ranks.world import World

WARMUP_TOKENS = 8
TELL_EVERY_S = 0.5  # often enough for people, and for the host, which takes a silent rank for stuck
STOP_EVERY = 8  # tokens between two questions whether to stop: each costs a collective
TOP = 5  # how many of the likeliest tokens are compared at each position
PREFILL_CHUNK = 512  # tokens a forward pass while scoring: bounds the memory of a long prompt
SCORE_CHUNK = 64  # positions whose logits (positions x vocabulary, float32) are held at once
PASSAGE = (
    "Thunderbolt joins the machines, and the machines share one model. Each holds a slice of every layer, "
    "and after every layer they add up what they found. The cable is short, the sum is small, and it is done "
    "before the next word is due. "
)

Told = Callable[[str, int, int, float], None]
"""Hears progress: what is counted, how many are done, of how many, and 0..1 for this part of the work."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ranks bench`."""
    parser.add_argument("--model", required=True, help="a model folder, or a hub id in the local cache")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="the prompt, put into the model's chat template")
    what.add_argument("--prompt-tokens", type=int, help="a made-up prompt of this many tokens instead")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens to generate (default 128)")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs, after a warm-up (default 3)")
    parser.add_argument("--sharding", choices=SHARDINGS, default="tensor")
    parser.add_argument("--stop-at-eos", action="store_true", help="end at the end-of-text token")


def run(options: argparse.Namespace, *, world: World, group: Any, link: Link, payload: dict[str, Any]) -> int:
    """Load, warm up, measure, score; 0 when all was measured."""
    check(options)
    path = resolve(options.model)
    link.stage("load", f"loading {path.name}")
    began = time.perf_counter()
    model, tokenizer = load(
        path,
        group=group,
        sharding=options.sharding,
        progress=lambda text, fraction: link.stage("load", text, fraction),
    )
    load_s = time.perf_counter() - began
    result = measure(model, tokenizer, options, link, payload.get("reference"), whole=world.rank == 0)
    link.say("result", load_s=load_s, **result)
    if world.rank == 0 and not link.wired:
        _print(result["runs"], result["prompt_tokens"], load_s, result["text"], world)
    return 0


def measure(
    model: Any,
    tokenizer: Any,
    options: argparse.Namespace,
    link: Link,
    reference: dict[str, Any] | None,
    *,
    whole: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Warm up, run, score, with a model that is loaded. On every rank alike.

    Args:
        model: the model, or this rank's share of it.
        tokenizer: its tokenizer.
        options: as of this program.
        link: hears the stages.
        reference: another run's tokens and their rivals, to be scored; None to score this one's.
        whole: tell all (rank 0), not only what every rank has to.
        stopping: asked now and then, on every rank after the same token, whether to stop.

    Raises:
        Stopped: it was stopped.
    """
    prompt = encode_prompt(tokenizer, options.prompt, options.prompt_tokens)
    eos = set(tokenizer.eos_token_ids) if options.stop_at_eos else set()
    with wired_limit(model, [generation_stream]):
        link.stage("warm-up", f"{min(WARMUP_TOKENS, options.max_tokens)} tokens")
        told = _teller(link, "warm-up", "")
        generate(model, prompt, min(WARMUP_TOKENS, options.max_tokens), eos, told, stopping)
        runs = []
        meter = energy.Meter()
        for number in range(1, options.repeats + 1):
            name = f"run {number} of {options.repeats}"
            link.stage("measure", name, (number - 1) / options.repeats)
            told = _teller(link, "measure", f"{name}: ", (number - 1) / options.repeats, 1 / options.repeats)
            runs.append(generate(model, prompt, options.max_tokens, eos, told, stopping))
        drawn = meter.read()
        link.stage("score", "log-probabilities for the correctness gate")
        # on generation's own stream: collectives of two streams can cross, and then the sums are wrong
        with mx.stream(generation_stream):
            told = _teller(link, "score", "")
            score = score_tokens(model, prompt, reference or {"tokens": runs[0]["tokens"]}, told)
    digest = hashlib.sha256(json.dumps([one["tokens"] for one in runs]).encode()).hexdigest()
    result = {"peak_memory_bytes": mx.get_peak_memory(), "tokens_digest": digest, "power": drawn}
    if whole:
        text = tokenizer.decode(runs[0]["tokens"])
        result |= {"prompt_tokens": len(prompt), "runs": runs, "text": text, "score": score}
    return result


def check(options: argparse.Namespace) -> None:
    """Refuse options that make no sense (InputError)."""
    if options.max_tokens < 1:
        raise InputError(f"--max-tokens is {options.max_tokens}", fix="Ask for at least 1 token.")
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}", fix="At least 1 run has to be measured.")
    if options.prompt_tokens is not None and options.prompt_tokens < 1:
        raise InputError(f"--prompt-tokens is {options.prompt_tokens}", fix="A prompt has at least 1 token.")
    if options.prompt_tokens is None and not options.prompt:
        raise InputError("the prompt is empty", fix="Give --prompt a text, or --prompt-tokens a number.")


def encode_prompt(tokenizer: Any, text: str | None, length: int | None) -> list[int]:
    """The prompt as token ids: a text in the model's chat template, if any, or `length` made-up ones."""
    if length is not None:
        passage = tokenizer.encode(PASSAGE)
        return (passage * (length // len(passage) + 1))[:length]
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    return list(tokenizer.encode(text))


def generate(
    model: Any,
    prompt: list[int],
    max_tokens: int,
    eos: set[int],
    told: Told,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """One greedy run from an empty cache; `stopping` is asked after each STOP_EVERY tokens.

    Returns its tokens, `ttft_s` (from the prompt to the first token in hand) and `itl_s` (the seconds
    between each token and the next, one fewer than tokens).

    Raises:
        Stopped: it was stopped.
    """
    tokens: list[int] = []
    times = [time.perf_counter()]

    def prefilled(done: int, total: int) -> None:
        told("tokens of the prompt", done, total, 0.0)
        if done < total:
            _stop_if(stopping)

    steps = generate_step(mx.array(prompt), model, max_tokens=max_tokens, prompt_progress_callback=prefilled)
    for token, _ in steps:
        tokens.append(int(token))
        times.append(time.perf_counter())
        told("tokens", len(tokens), max_tokens, len(tokens) / max_tokens)
        if tokens[-1] in eos:
            break
        if len(tokens) % STOP_EVERY == 0:
            _stop_if(stopping)
    gaps = [after - before for before, after in itertools.pairwise(times[1:])]
    return {"tokens": tokens, "ttft_s": times[1] - times[0], "itl_s": gaps}


def _stop_if(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise Stopped("stopped", fix="Run it again when you like.")


def score_tokens(model: Any, prompt: list[int], reference: dict[str, Any], told: Told) -> dict[str, Any]:
    """Feed a run's tokens through the model and take the log-probabilities at each position.

    Args:
        model: the model, or this rank's share of it.
        prompt: the prompt's token ids.
        reference: `tokens` (T ids), and `top` (T lists of TOP ids) or none to take this model's likeliest.
        told: hears how far it is.

    Returns `top` (T x TOP ids), `logprobs` (T x TOP, natural logarithms) and `dtype`, that of the logits.
    """
    cache = make_prompt_cache(model)
    tokens = reference["tokens"]
    inputs = [*prompt, *tokens[:-1]]
    context = len(prompt) - 1
    for start in range(0, context, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, context)
        model(mx.array(inputs[start:stop])[None], cache=cache)
        mx.eval([layer.state for layer in cache])
        told("tokens of the prompt", stop, context, 0.0)
    top: list[list[int]] = []
    logprobs: list[list[float]] = []
    dtype = ""
    for start in range(0, len(tokens), SCORE_CHUNK):
        stop = min(start + SCORE_CHUNK, len(tokens))
        logits = model(mx.array(inputs[context + start : context + stop])[None], cache=cache)[0]
        dtype = str(logits.dtype).removeprefix("mlx.core.")
        logits = logits.astype(mx.float32)
        normal = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if "top" in reference:
            ids = mx.array(reference["top"][start:stop])
        else:
            ids = mx.argsort(-normal, axis=-1)[:, :TOP]
        picked = mx.take_along_axis(normal, ids, axis=-1)
        top.extend(ids.tolist())
        logprobs.extend(picked.tolist())
        told("tokens", stop, len(tokens), stop / len(tokens))
    return {"top": top, "logprobs": logprobs, "dtype": dtype}


def _teller(link: Link, stage: str, prefix: str, begin: float = 0.0, share: float = 1.0) -> Told:
    """Tells a part of the work as it goes on, which begins at `begin` and is `share` of the whole stage."""
    last = time.monotonic()

    def told(what: str, done: int, total: int, part: float) -> None:
        nonlocal last
        if time.monotonic() - last < TELL_EVERY_S:
            return
        last = time.monotonic()
        link.stage(stage, f"{prefix}{done} of {total} {what}", begin + part * share)

    return told


def _print(runs: list[dict[str, Any]], prompt: int, load_s: float, text: str, world: World) -> None:
    """The plain form: what `mlx.launch … -m jaccl_kernel.ranks bench` prints on rank 0."""
    write = sys.stdout.write
    write(f"{text}\n\n{world.name()}; loaded in {load_s:.2f} s\n")
    for one in runs:
        decode = f"{len(one['itl_s']) / sum(one['itl_s']):.1f}" if one["itl_s"] else "-"
        write(
            f"prompt: {prompt} tokens, {prompt / one['ttft_s']:.1f} tokens/s, TTFT {one['ttft_s']:.3f} s; "
            f"generation: {len(one['tokens'])} tokens, {decode} tokens/s\n"
        )
    write(f"peak memory: {mx.get_peak_memory() / 1e9:.3f} GB on rank 0\n")
