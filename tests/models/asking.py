"""Asks mlx-lm itself about models, in one child process with mlx."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect

Real = dict[str, tuple[ModelFacts, dict[str, Any]]]


def ask_mlx_lm(folder: Path, models: Mapping[str, tuple[dict[str, Any], Sequence[int]]]) -> Real:
    """Make each model (its config, the rank counts): what we say of it, and what mlx-lm made of it.

    Models that need packages that are not installed are left out.
    """
    places = {name: str(folder / str(number)) for number, name in enumerate(models)}
    questions = {name: (places[name], *models[name]) for name in models}
    answers = run("real_shards.py", questions)
    return {name: (inspect(places[name]), answers[name]) for name in answers}


def run(program: str, question: Any) -> Any:
    """The answer of a program beside this file."""
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).parent / program)],
        input=json.dumps(question),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])  # before it, some complain of missing packages
