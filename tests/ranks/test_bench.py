"""What a measuring rank tells while it works."""

import json
import subprocess
import sys
from pathlib import Path

# in a child, since the test process holds no mlx; every word that may be told is told
_MEASURE = """
import json, pathlib, sys
from jaccl_kernel.core.options import BenchProgram
from jaccl_kernel.inference.loaded import prepare
from jaccl_kernel.ranks import bench
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.loader import load
bench.REPORT_EVERY_S = 0.0
stages = []
class Link:
    def stage(self, name, text="", fraction=None):
        stages.append((name, text, fraction))
folder = pathlib.Path(sys.argv[1])
model, tokenizer = load(folder, group=None, sharding="tensor", progress=lambda *_: None)
options = BenchProgram(model="m", prompt_tokens=2100, max_tokens=70, repeats=1)
loaded = prepare(model, tokenizer, None, prefill_step=bench.PREFILL_STEP)
world = World(0, 1, "none")
bench.measure(model, loaded, loaded.engine(), options, None, world=world, group=None, link=Link())
print(json.dumps(stages))
"""


def test_no_part_of_the_work_is_silent_not_even_a_long_prompt(tiny_model: Path) -> None:
    """A rank that tells nothing for ten minutes counts as stuck, and is ended."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tiny_model)],
        capture_output=True,
        text=True,
        timeout=300,
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
