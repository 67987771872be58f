"""What a rank makes of its environment, and the group's proof."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.ranks.group import World, drop_overrides


def test_the_size_comes_from_the_files_that_mlx_launch_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hosts"
    file.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]]))
    monkeypatch.setenv("MLX_RANK", "2")
    monkeypatch.setenv("MLX_HOSTFILE", str(file))
    assert World.from_environment() == World(2, 3, "ring")
    monkeypatch.setenv("MLX_IBV_DEVICES", str(file))
    assert World.from_environment() == World(2, 3, "jaccl")


def test_the_ranks_know_whether_they_may_send_to_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX names both JACCL topologies jaccl; with a ring, a message to a rank that is no neighbour hangs."""
    assert World(0, 4, "jaccl").topology == "mesh"
    assert World(0, 4, "ring").topology == "ring"
    assert World(0, 1, "none").topology == "none"
    monkeypatch.setenv("MLX_JACCL_RING", "1")
    assert World(0, 4, "jaccl").topology == "ring"


@pytest.mark.parametrize("text", ["", "\n", '[["127.0.0.1:1"]]'])
def test_one_host_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "hosts").write_text(text)
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert World.from_environment() == World(0, 1, "none")


def test_a_file_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_HOSTFILE", "/nowhere/hosts")
    with pytest.raises(JobError, match="MLX_HOSTFILE"):
        World.from_environment()


def test_inherited_overrides_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JACCL_RANK", "JACCL_RING", "MLX_JACCL_RING"):
        monkeypatch.setenv(name, "0")
    drop_overrides("jaccl-ring")
    assert "JACCL_RANK" not in os.environ
    assert "JACCL_RING" not in os.environ
    assert os.environ["MLX_JACCL_RING"] == "0"
    drop_overrides("jaccl")
    assert "MLX_JACCL_RING" not in os.environ


@pytest.mark.usefixtures("nothing_left")
def test_a_group_whose_sums_are_wrong_is_refused() -> None:
    """A stand-in group of another size than was asked for, and one whose sums are those of one rank."""
    script = """
import mlx.core as mx
from jaccl_kernel.ranks.group import World, prove

class Group:
    def __init__(self, size): self._size = size
    def size(self): return self._size
    def rank(self): return 0

for group, world in ((Group(1), World(0, 2, "ring")), (mx.distributed.init(), World(0, 1, "none"))):
    try:
        prove(group, world)
        print("proved")
    except Exception as error:
        print(type(error).__name__, error.what)
mx.distributed.all_sum = lambda x, **_: x
mx.distributed.all_gather = lambda x, **_: x
try:
    prove(Group(2), World(0, 2, "ring"))
except Exception as error:
    print(type(error).__name__, error.what)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    wrong_size, alone, wrong_sum = done.stdout.splitlines()
    assert wrong_size == "JobError joined as rank 0 of 1, not as rank 0 of 2 over ring"
    assert alone == "proved"
    assert wrong_sum.startswith("JobError all_sum over 2 ranks gave wrong values")
