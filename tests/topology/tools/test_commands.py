"""The probe's commands: macOS's own Python is never run."""

import os
import subprocess
from pathlib import Path

import pytest

from jaccl_kernel.topology.tools.commands import commands

pytestmark = pytest.mark.usefixtures("nothing_left")
SYSTEM_PYTHON = Path("/usr/bin/python3")


def probe(folder: Path, system: str, python: str) -> "subprocess.CompletedProcess[str]":
    """The probe's Python command where `uname` says this system, and PATH has this folder first."""
    folder.mkdir(exist_ok=True)
    (folder / "uname").write_text(f"#!/bin/sh\necho {system}\n")
    (folder / "uname").chmod(0o755)
    [command] = [one for one in commands(python) if one.id == "python"]
    path = f"{folder}:/usr/bin"
    return subprocess.run(
        command.argv, env={"PATH": path}, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.skipif(not os.access(SYSTEM_PYTHON, os.X_OK), reason="has no /usr/bin/python3")
@pytest.mark.parametrize("python", ["python3", "/usr/bin/python3"])
def test_the_python_of_macos_is_not_run(tmp_path: Path, python: str) -> None:
    done = probe(tmp_path / "bin", "Darwin", python)
    assert (done.returncode, done.stdout) == (127, "")
    assert "/usr/bin/python3, which is not run" in done.stderr
    assert probe(tmp_path / "bin", "Linux", python).returncode == 0


def test_another_python_in_path_is_run(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    assert probe(tmp_path / "bin", "Darwin", "python3").stdout == "mine\n"


def test_a_python_that_comes_later_in_path_is_run(tmp_path: Path) -> None:
    test_another_python_in_path_is_run(tmp_path)
    [command] = [one for one in commands("python3") if one.id == "python"]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "first" / "uname").chmod(0o755)
    path = f"{tmp_path}/first:/usr/bin:{tmp_path}/bin"
    done = subprocess.run(command.argv, env={"PATH": path}, capture_output=True, timeout=240, check=False)
    assert done.stdout == b"mine\n"


def test_a_python_that_is_missing_is_no_python(tmp_path: Path) -> None:
    assert probe(tmp_path / "bin", "Darwin", "/nowhere/python").returncode == 127
