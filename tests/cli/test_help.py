"""The help and the output of `jaccl`: groups, colour, control characters, and what is imported for them."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.cli.docs import markdown
from jaccl_kernel.cli.main import COMMANDS, run
from jaccl_kernel.cli.terminal import Reporter
from jaccl_kernel.core.options import GROUPS

JACCL = str(Path(sys.executable).with_name("jaccl"))
SMALL_IMPORTS = """
import sys
{code}
own = sys.stdlib_module_names
print(*sorted({{name.split(".")[0] for name in sys.modules}} - own), *sorted(sys.modules))
"""


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has imported after this code."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_IMPORTS.format(code=code)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


def test_the_help_has_a_group_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"─ {group} ─") for group in COMMANDS]
    assert places == sorted(places)
    for commands in COMMANDS.values():
        assert all(f"│ {name} " in shown for name in commands)


def test_a_command_s_help_groups_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"─ {group} ─") for group in GROUPS if f"─ {group} ─" in shown]
    assert len(places) == 4
    assert places == sorted(places)
    assert "--max-batch N" in shown
    assert "[default: 32]" in shown
    assert "--folder" not in shown  # only for the process that --detach starts


@pytest.mark.usefixtures("nothing_left")
def test_the_help_imports_no_step_and_no_heavy_module() -> None:
    modules = imported("from jaccl_kernel.cli.main import run; run(['--help'])")
    assert not modules & {"mlx", "numpy", "transformers", "pydantic", "rich.markdown", "asyncio", "fastapi"}
    assert not {name for name in modules if name.startswith(("jaccl_kernel.steps", "jaccl_kernel.launch"))}


@pytest.mark.usefixtures("nothing_left")
def test_the_package_alone_imports_no_other_distribution() -> None:
    before, after = imported("pass"), imported("import jaccl_kernel")
    assert {name.split(".")[0] for name in after - before} - sys.stdlib_module_names == {"jaccl_kernel"}


@pytest.mark.parametrize("words", [[], ["hostfile"], ["nonsense"], ["bench"], ["bench", "f", "--nonsense"]])
def test_an_incomplete_or_unknown_command_exits_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    shown = capsys.readouterr()
    assert "Usage: jaccl" in shown.out or "--help`" in shown.err


def on_a_terminal(words: list[str], **env: str) -> str:
    """What a command prints on a terminal."""
    main, side = pty.openpty()
    try:
        environment = {key: one for key, one in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        process = subprocess.Popen(
            [JACCL, *words], stdin=side, stdout=side, stderr=side,
            env=environment | {"TERM": "xterm-256color", "COLUMNS": "100"} | env,
        )  # fmt: skip
        os.close(side)
        chunks = []
        while True:
            try:
                chunk = os.read(main, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        process.wait(60)
    finally:
        os.close(main)
    return b"".join(chunks).decode()


@pytest.mark.usefixtures("nothing_left")
def test_a_terminal_has_colour_unless_no_color_is_set() -> None:
    assert "\x1b[" in on_a_terminal(["sync", "/nowhere", "m"])
    plain = on_a_terminal(["sync", "/nowhere", "m"], NO_COLOR="1")
    assert "error: /nowhere" in plain.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b[1;31m" not in plain


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["sync", "/nowhere", "m"]])
def test_piped_output_has_no_control_characters(words: list[str]) -> None:
    done = subprocess.run([JACCL, *words], capture_output=True, text=True, timeout=120, check=False)
    shown = done.stdout + done.stderr
    assert shown
    assert not [character for character in shown if ord(character) < 32 and character != "\n"]


def test_the_reference_in_the_docs_is_that_of_the_commands() -> None:
    path = Path(__file__).parents[2] / "docs" / "cli.md"
    assert path.read_text(encoding="utf-8") == markdown(), "run `make docs`"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bars_with_elapsed_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    reporter = Reporter(stream)
    reporter.progress("mac2", "copy: local copy", 0.25, "copy")
    reporter.note("a line beside the bar")
    reporter.progress("mac2", "copy: local copy", 1.0, "copy")
    reporter.close()
    shown = stream.getvalue()
    assert "[mac2] copy: local copy" in shown
    assert " 25%" in shown
    assert "0:00:00" in shown  # elapsed
    assert "-:--:--" in shown  # remaining: not known yet
    assert "a line beside the bar" in shown
    assert "[mac2] copy: local copy (100%)" in shown
