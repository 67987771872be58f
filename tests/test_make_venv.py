"""`make` on a machine without a usable Python: .ci/make-venv."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")
SCRIPT = Path(__file__).parents[1] / ".ci" / "make-venv"


def stand_ins(folder: Path, **programs: str) -> str:
    """A PATH that leads to the shell's own tools and to these scripts, and to nothing else."""
    folder.mkdir()
    for tool in ("rm", "cat"):
        (folder / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def make_venv(tmp_path: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "make-venv"
    # the Pythons that this machine may have where a Mac's are
    script.write_text(
        SCRIPT.read_text().replace("/usr/local/bin", "/nowhere").replace("/opt/homebrew/bin", "/nowhere")
    )
    return subprocess.run(
        ["/bin/sh", script, tmp_path / "venv"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("home", [True, False], ids=["", "no HOME"])
def test_an_old_python_gets_the_install_command(tmp_path: Path, home: bool) -> None:
    path = stand_ins(tmp_path / "bin", python3='[ "$1" = -c ] && exit 1; echo "Python 3.9.6"')
    done = make_venv(tmp_path, {"PATH": path, **({"HOME": str(tmp_path)} if home else {})})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        "error: no Python >= 3.11 with the venv module was found, and no conda.\n  Fix:"
    )
    assert not (tmp_path / "venv").exists()


def test_a_python_of_a_version_manager_is_found_and_used(tmp_path: Path) -> None:
    path = stand_ins(tmp_path / "bin", python3="exit 1")
    python = tmp_path / ".pyenv" / "versions" / "3.12.4" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.12.4"\n[ "$1" = -m ] && echo "made: $*"\nexit 0\n'
    )
    python.chmod(0o755)
    done = make_venv(tmp_path, {"PATH": path, "HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"made: -m venv {tmp_path / 'venv'}" in done.stdout
