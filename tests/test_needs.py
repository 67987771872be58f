"""How tests say what they need, seen from outside: which are skipped, and what the last lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import fix

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.fixture
def never():
    raise AssertionError("a fixture of a test that cannot run")

@pytest.mark.needs("sh", "no-such-program")
@pytest.mark.parametrize("number", range(3))
def test_that_lacks_its_program(number, never): ...

@pytest.mark.sshd
@pytest.mark.needs("sh")
def test_that_has_none_of_ssh(never): ...

@pytest.mark.needs("sh")
def test_that_runs(): ...

@pytest.mark.skip(reason="of the moon")
def test_of_another_kind(): ...
"""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_one_line_says_how_many_were_skipped_and_why(
    tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    (tmp_path / "bin" / "apt-get").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    options = ["-p", "tests.needs", "-p", "no:cacheprovider", "-n", workers]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 5 skipped" in done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("Skipped")]
    head, _, reasons = line.partition(": ")
    assert head == "Skipped 5 tests"
    assert set(reasons.split("; ")) == {
        f"3 because no-such-program is not installed ({fix('no-such-program')})",
        f"1 because ssh is not installed ({fix('ssh')})",
        "1 because of the moon",
    }
