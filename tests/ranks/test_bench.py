"""What a measuring rank tells while it works. pytest tests/ranks/test_bench.py."""

import json
import subprocess
import sys
from pathlib import Path

# in a child, since the test process holds no mlx; every word that may be told is told
_MEASURE = """
import argparse, json, pathlib, sys
from jaccl_kernel.ranks import bench
from jaccl_kernel.ranks.load import load
bench.TELL_EVERY_S = 0.0
stages = []
class Link:
    def stage(self, name, text="", fraction=None):
        stages.append((name, text, fraction))
folder = pathlib.Path(sys.argv[1])
model, tokenizer = load(folder, group=None, sharding="tensor", progress=lambda *_: None)
parser = argparse.ArgumentParser()
bench.add_arguments(parser)
options = parser.parse_args("--model m --prompt-tokens 2100 --max-tokens 70 --repeats 1".split())
bench.measure(model, tokenizer, options, Link(), None, whole=True)
print(json.dumps(stages))
"""


def test_no_part_of_the_work_is_silent_not_even_a_long_prompt(tiny_model: Path) -> None:
    """A rank that tells nothing for ten minutes counts as stuck, and is ended."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tiny_model)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    stages = json.loads(done.stdout)
    for told in (
        ["warm-up", "2048 of 2100 tokens of the prompt", 0.0],
        ["warm-up", "8 of 8 tokens", 1.0],
        ["measure", "run 1 of 1: 2048 of 2100 tokens of the prompt", 0.0],
        ["measure", "run 1 of 1: 35 of 70 tokens", 0.5],
        ["score", "1024 of 2099 tokens of the prompt", 0.0],
        ["score", "64 of 70 tokens", 64 / 70],
    ):
        assert told in stages
