"""Rank programs under plain mlx.launch, without us."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.launch.ports import choose

pytestmark = pytest.mark.usefixtures("nothing_left")
LAUNCH = Path(sys.executable).with_name("mlx.launch")


def launch(*program: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(
                str(LAUNCH),
                "-n",
                str(ranks),
                "--python",
                sys.executable,
                "--starting-port",
                str(choose(ranks)),
            ),
            *("--env", "OMP_NUM_THREADS=1", "--", "-m", "jaccl_kernel.ranks", *program),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_bench_prints_tokens_per_second_as_plain_text(tiny_model: Path) -> None:
    done = launch(
        "bench", "--model", str(tiny_model), "--prompt", "Hi there", "--max-tokens", "8", "--repeats", "1"
    )
    assert "generation: 8 tokens, " in done.stdout, done.stderr
    assert "rank 0 of 2 over ring" in done.stdout
    assert "@@jaccl" not in done.stdout + done.stderr


def test_a_program_ends_when_done_with_no_stdin_at_all(tiny_model: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaccl_kernel.ranks", "bench", "--model", str(tiny_model)),
            *("--prompt-tokens", "40", "--max-tokens", "4", "--repeats", "1"),
        ],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "prompt: 40 tokens" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-tokens", "0", "--prompt", "x"], "--max-tokens must be at least 1 (got 0)"),
        (["--prompt", ""], "--prompt must not be empty"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be at least 1 (got 0)"),
    ],
)
def test_what_makes_no_sense_is_said_and_fails(options: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaccl_kernel.ranks", "bench", "--model", "/nowhere", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr
