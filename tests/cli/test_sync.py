"""`jaccl sync` as a process: what it prints, its exit status, and how it stops."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.rehearsal.homes import macs, make_hostfile
from tests.steps import copying
from tests.steps.shards import contents, make_shards

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "rehearsal.json"
    make_hostfile(2).write(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "a model")


def start(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jaccl_kernel.cli", "sync", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **more)


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_a_check_then_a_sync_then_a_check(hostfile: Path, model: Path) -> None:
    code, out, err = run(hostfile, model, "--check")
    assert (code, "missing" in out, "REHEARSAL" in err) == (1, True, True)
    code, out, err = run(hostfile, model)
    assert code == 0, err
    assert "Complete on every node, checksums match: ~/models/a model" in out
    assert re.search(r"\[mac2\] copy: local copy.* \(100%\)", err)
    code, out, _ = run(hostfile, "a model", "--check", "--json")
    record = json.loads(out)
    assert (code, record["ok"], record["checked_only"]) == (0, True, True)
    assert [node["state"] for node in record["nodes"]] == ["identical"] * 2


def test_a_model_that_nobody_has_is_an_error(hostfile: Path) -> None:
    code, out, err = run(hostfile, "nothing")
    assert (code, out) == (1, "")
    assert "no node has a complete copy" in err
    assert "Fix:" in err


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("way", copying.WAYS)
def test_a_sync_that_was_stopped_half_way_goes_on_from_there(
    hostfile: Path,
    model: Path,
    way: str,
    ending: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    path_without_rsync: str,
) -> None:
    """The second Mac's copy stops in the middle; Ctrl-C says what is kept, SIGKILL cannot."""
    if way == "no rsync":
        monkeypatch.setenv("PATH", path_without_rsync)
    assert run(hostfile, model, "--check")[0] == 1  # makes the Macs
    second = macs(make_hostfile(2))[1]
    stopping = second.home / "bin" / "rsync"
    stopping.write_text(f"#!/bin/sh\n{copying.stopping_half_way(way)}\n")
    stopping.chmod(0o755)
    process = start(hostfile, model)
    assert process.stderr
    for line in process.stderr:
        if re.match(r"\[mac2\] copy: .*\([1-9]\d*%\)", line):
            break
    process.send_signal(ending)
    _, err = process.communicate(timeout=60)
    partial = second.models / ".a model.partial"
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert f"are kept in {partial}: the next sync resumes from there" in err
    assert any(path.stat().st_size > 0 for path in partial.glob("*.safetensors"))
    assert not (second.models / "a model").exists()
    stopping.unlink()
    code, out, err = run(hostfile, model)
    assert code == 0, err
    assert ("mac2: copied without rsync, which is not installed" in out) == (way == "no rsync")
    assert contents(second.models / "a model") == contents(model)
