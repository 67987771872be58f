"""`jaccl sync` as a process: what it prints, its exit status, and how it stops."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.rehearsal.homes import macs, make_hostfile
from tests.steps.shards import contents, make_shards

pytestmark = pytest.mark.usefixtures("nothing_left")

RUN = """
import argparse, sys
from jaccl_kernel.commands import sync, terminal
from jaccl_kernel.errors import JacclError
parser = argparse.ArgumentParser()
sync.add(parser.add_subparsers())
options = parser.parse_args(["sync", *sys.argv[1:]])
try:
    sys.exit(options.run(options))
except JacclError as error:
    sys.exit(terminal.fail(error, 1))
"""


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "rehearsal.json"
    make_hostfile(2).write(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "a model")


def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **more)


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_check_then_a_sync_then_a_check(hostfile: Path, model: Path) -> None:
    code, out, err = run(hostfile, model, "--check")
    assert (code, "missing" in out, "REHEARSAL" in err) == (1, True, True)
    code, out, err = run(hostfile, model)
    assert code == 0, err
    assert "Whole and identical on every node: ~/models/a model" in out
    assert "100 % on the same machine" in err
    code, out, _ = run(hostfile, "a model", "--check", "--json")
    record = json.loads(out)
    assert (code, record["ok"], record["checked_only"]) == (0, True, True)
    assert [node["state"] for node in record["nodes"]] == ["identical"] * 2


def test_a_model_that_nobody_has_is_an_error(hostfile: Path) -> None:
    code, out, err = run(hostfile, "nothing")
    assert (code, out) == (1, "")
    assert "nobody has it whole" in err
    assert "Fix:" in err


def test_ctrl_c_stops_it_and_says_what_is_kept(hostfile: Path, model: Path, tmp_path: Path) -> None:
    """The second Mac's rsync is slow; afterwards a sync goes on from there."""
    assert run(hostfile, model, "--check")[0] == 1  # makes the Macs
    second = macs(make_hostfile(2))[1]
    slow = second.home / "bin" / "rsync"
    slow.write_text('#!/bin/sh\nexec /usr/bin/rsync --bwlimit=200 "$@"\n')
    slow.chmod(0o755)
    process = start(hostfile, model)
    partial = second.models / ".a model.partial"
    end = time.monotonic() + 30
    while not any(path.stat().st_size > 0 for path in partial.glob("*.safetensors")):
        assert time.monotonic() < end, "nothing arrives"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"are kept in {partial}: the next sync goes on from there" in err
    assert not (second.models / "a model").exists()
    slow.unlink()
    assert run(hostfile, model)[0] == 0
    assert contents(second.models / "a model") == contents(model)
