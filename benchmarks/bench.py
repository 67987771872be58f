"""`ranks bench` at one rank against mlx-lm's bare stream_generate loop, side by side in one process.

    .venv/bin/python -m benchmarks.bench [--model DIR] [--pairs 7] [--prompt-tokens 512] [--tokens 128]

Two models: the demo model (or --model) and a micro model (4 layers of 256), where the cost of a step beside
the model shows most. Runs alternate in pairs, the first of a pair in turn, so that a busy machine affects
both alike. Prints the medians and the median of the pairs' ratios for prefill and decode; exits 1 if a ratio
is below the bar.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jaccl_kernel.models.demo import ensure_demo
from tests.tiny import make_tiny_model

BAR = 0.97
MICRO = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def measure(model_path: Path, pairs: int, prompt_tokens: int, tokens: int) -> list[dict[str, list[float]]]:
    """For each pair, and each of the two: tokens per second in prefill and in decode."""
    import time

    import mlx.core as mx
    from mlx_lm.generate import generation_stream, stream_generate

    from jaccl_kernel.inference.loaded import prepare
    from jaccl_kernel.ranks import bench
    from jaccl_kernel.ranks.loader import load

    model, tokenizer = load(model_path)
    engine = prepare(model, tokenizer, None, max_sequences=1, prefill_step=bench.PREFILL_STEP).engine()
    prompt = bench.encode_prompt(tokenizer, None, prompt_tokens)
    tokenizer._eos_token_ids = set()  # as mlx_lm.benchmark: no end before `tokens`

    def bare() -> list[float]:
        times = [time.perf_counter()]
        times += [time.perf_counter() for _ in stream_generate(model, tokenizer, prompt, max_tokens=tokens)]
        decode = (tokens - 1) / (times[tokens] - times[1])
        return [prompt_tokens / (times[1] - times[0]), decode]

    def ours() -> list[float]:
        with mx.stream(generation_stream):
            run = bench.run_once(engine, prompt, tokens, lambda *_: None, ignore_eos=True)
        return [prompt_tokens / run.ttft_s, len(run.itl_s) / sum(run.itl_s)]

    bare()
    ours()
    measured = []
    for number in range(pairs):
        first, second = (bare, ours) if number % 2 else (ours, bare)
        measured.append({first.__name__: first(), second.__name__: second()})
    return measured


def report(name: str, measured: list[dict[str, list[float]]]) -> bool:
    """Print a model's medians and ratios; whether the bar is held."""
    held = True
    for at, phase in enumerate(("prefill", "decode")):
        ours, bare = (statistics.median(pair[who][at] for pair in measured) for who in ("ours", "bare"))
        ratios = sorted(pair["ours"][at] / pair["bare"][at] for pair in measured)
        ratio = statistics.median(ratios)
        held &= ratio >= BAR
        print(
            f"{'PASS' if ratio >= BAR else 'FAIL'}  {name:<6} {phase:<8} ours {ours:8.1f} tok/s, "
            f"stream_generate {bare:8.1f} tok/s, ratio {ratio:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
            f"the bar is {BAR}",
            flush=True,
        )
    return held


def main() -> None:
    """Measure both models, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured = measure(options.child, options.pairs, options.prompt_tokens, options.tokens)
        sys.stdout.write(json.dumps(measured))
        return
    print(f"load average: {', '.join(f'{one:.1f}' for one in os.getloadavg())}", flush=True)
    held = True
    with tempfile.TemporaryDirectory() as folder:
        micro = make_tiny_model(Path(folder) / "micro", **MICRO)
        for name, model in (("micro", micro), ("demo", options.model or asyncio.run(ensure_demo()))):
            command = [
                sys.executable,
                "-m",
                "benchmarks.bench",
                f"--child={model}",
                f"--pairs={options.pairs}",
            ]
            command += [f"--prompt-tokens={options.prompt_tokens}", f"--tokens={options.tokens}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            held &= report(name, json.loads(done.stdout))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
