"""The README's commands, pasted: every block runs here, with the rehearsal in place of four Macs.

What a test puts in place of something stands in its table, and nothing else is changed. Long runs are cut
short, ports are free ones, and a tiny random model stands in for the real ones: so no network, no Mac and no
particular speed is needed. `make lab` and `make test` are dry runs: this is that suite.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jaccl_kernel.cli.main import make_app
from jaccl_kernel.launch.ports import choose
from jaccl_kernel.models.demo import FORMAT, SMOLLM2
from tests.tiny import make_tiny_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QWEN = "Qwen3-4B-Instruct-2507-4bit"
FOUR = "mac1.local,mac2.local,mac3.local,mac4.local"
DEADLINE_S = 240  # for one pasted line; only a hang takes that long


# --- what the README says


def blocks() -> list[str]:
    """Its indented blocks, in order, without the indentation."""
    found = re.findall(r"(?:^|\n)\n((?: {4,}\S.*\n|\n(?= {4,}\S))+)", README)
    return [re.sub(r"^ {4}(?:  (?=mlx|  ))?", "", text, flags=re.MULTILINE) for text in found]


def block(start: str) -> str:
    """The block that begins so."""
    [found] = [text for text in blocks() if text.startswith(start)]
    return found


def lines(text: str) -> Iterator[str]:
    """A block's command lines: continuations joined, comments cut off."""
    for line in text.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s+)# .*", "", re.sub(r" {2,}", " ", line)).strip():
            yield command


def spans() -> Iterator[str]:
    """The code spans of its prose and tables, in one line each."""
    prose = re.sub(r"^ {4,}.*$", "", README, flags=re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        yield re.sub(r"\s+", " ", span)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The single commands of a shell line."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)  # an operator may stick to a word
    reader.whitespace_split = True
    command: list[str] = []
    for word in [*reader, ";"]:
        if word not in (";", "&&"):
            command.append(word)
        elif command:
            yield command
            command = []


def told_commands(program: str) -> list[tuple[str, ...]]:
    """Every command line of a program that the README shows, in a block or a span."""
    shown = [line for text in blocks() for line in lines(text)] + list(spans())
    mentions = [line for line in shown if re.search(rf"(^|[;&] ?){program} ", line)]
    found = {tuple(command) for line in mentions for command in simple_commands(line)}
    return sorted(command for command in found if command[0] == program.split()[0])


# --- what only has to be understood


def test_the_readme_shows_commands_in_blocks_and_spans() -> None:
    assert len(blocks()) >= 5
    assert {command[1] for command in told_commands("jaccl")} >= {
        *("rehearse", "enable", "environment", "hostfile", "network", "verify", "sync", "bench", "serve"),
        *("status", "stop", "logs", "report", "troubleshoot", "model", "kernel", "lab"),
    }


@pytest.mark.parametrize("command", told_commands("jaccl"), ids=shlex.join)
def test_every_jaccl_command_is_understood(command: tuple[str, ...]) -> None:
    """With a number for N, and the options that stand in brackets."""
    words = ["2" if word == "N" else word.strip("[]") for word in command[1:]]
    if words == ["COMMAND", "--help"]:
        words = ["serve", "--help"]
    make_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("command", told_commands("make"), ids=shlex.join)
def test_every_make_command_is_understood(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*command, "--dry-run"],
        cwd=ROOT, env={**os.environ, "MAKEFLAGS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {"lab": "jaccl lab", "test-fast": "-m fast", "test-slow": "-m slow"}
    assert next((expected[word] for word in command if word in expected), "ruff") in done.stdout


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("command", told_commands("python -m"), ids=shlex.join)
def test_every_benchmark_has_the_options_that_are_named(command: tuple[str, ...]) -> None:
    told = subprocess.run(
        [sys.executable, "-m", command[2], "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    for word in command[3:]:
        assert not word.startswith("--") or word in told.stdout


def test_files_that_are_named_exist() -> None:
    """In the project, or in the package; but for those that it makes, and those of other projects."""
    named = {span for span in spans() if re.fullmatch(r"(\.?\w[\w-]*/)+[\w.-]*|[\w-]+\.yml", span)}
    made = {"results/", "results/cable-baselines.json", "ranks/", "hostfiles/rehearsal.local.json"}
    named = {name for name in named - made if not name.startswith("scripts/")}
    assert "hostfiles/rehearsal.json" in named
    assert [
        name for name in named if not (ROOT / name).exists() and not (ROOT / "jaccl_kernel" / name).exists()
    ] == []


# --- what is pasted


class Desk:
    """A folder such as a clone, a home with the models of the README's examples, and a terminal in it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "clone"
        (self.folder / "hostfiles").mkdir(parents=True)
        self.home = root / "home"
        self.model = make_tiny_model(self.home / "models" / QWEN)
        demo = Path(os.environ["JACCL_CACHE"]) / "models" / SMOLLM2.name
        shutil.copytree(self.model, demo)
        manifest = {
            "format": FORMAT,
            "gguf_sha256": SMOLLM2.gguf_sha256,
            "files": {file.name: file.stat().st_size for file in demo.iterdir()},
        }
        (demo / "manifest.json").write_text(json.dumps(manifest))
        self.env = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def type(self, text: str) -> "subprocess.Popen[str]":
        """What a shell makes of it."""
        return subprocess.Popen(
            ["/bin/sh", "-c", text],
            cwd=self.folder, env=self.env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def paste(self, text: str) -> str:
        """Paste it, see it succeed, and return what it printed."""
        with self.type(text) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, f"{text}\n{out}\n{err}"
        return out


def put(text: str, instead: Mapping[str, str]) -> str:
    """The text with these words in place of those, each of which must be there."""
    for old, new in instead.items():
        assert old in text, f"the README no longer has {old!r}"
        text = text.replace(old, new)
    return text


@pytest.fixture
def desk(tmp_path: Path, nothing_left: None) -> Desk:
    return Desk(tmp_path)


def free_ports() -> tuple[str, str]:
    first = choose(2)
    return str(first), str(first + 1)


@pytest.mark.timeout(900)  # nine commands, four ranks: a bound for a hang on a busy machine
def test_the_path_with_four_macs_is_pasted_over_the_rehearsal(desk: Desk) -> None:
    """`~` is expanded by the shell, and each simulated Mac has another home."""
    port, control = free_ports()
    text = put(
        block("jaccl enable"),
        {
            f"--hosts {FOUR}": "hostfiles/rehearsal.local.json",
            "--python PATH": f"--python {sys.executable}",
            "--ranks 1,2,4": "--ranks 1,2,4 --max-tokens 4 --repeats 1",
            "jaccl serve": f"jaccl serve --port {port} --ctrl-port {control}",
        },
    )
    desk.paste("jaccl rehearse")
    *most, last = lines(text)
    out = {line.split()[1]: desk.paste(line) for line in most}
    assert list(out) == ["enable", "hostfile", "environment", "network", "verify", "sync", "bench"]
    assert "4 of 4 Macs ready" in out["enable"]
    assert "Wrote hostfiles/four.local.json" in out["hostfile"]
    assert "all 11 checks are ok" in out["verify"]
    assert f"Complete on every node, checksums match: ~/models/{QWEN}" in out["sync"]
    assert "Parity: " in out["bench"]
    assert "decode tok/s" in desk.paste(
        f"jaccl bench hostfiles/four.local.json --model {QWEN} --ranks 2 --max-tokens 2 --repeats 1"
    )
    with desk.type(f"exec {last}") as server:
        assert server.stderr
        said = []
        for line in server.stderr:
            said.append(line)
            if "serving" in line:
                break
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=DEADLINE_S)
    assert "serving" in said[-1], "".join(said)
    assert server.returncode == 128 + signal.SIGINT


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_server_s_block_is_pasted(desk: Desk) -> None:
    port, control = free_ports()
    text = put(
        block("jaccl rehearse --macs 2"),
        {"--detach": f"--detach --port {port} --ctrl-port {control}", "127.0.0.1:8080": f"127.0.0.1:{port}"},
    )
    start, models, chat, end = lines(text)
    try:
        assert f"http://127.0.0.1:{port}" in desk.paste(start)
        assert [one["id"] for one in json.loads(desk.paste(models))["data"]] == [SMOLLM2.name]
        answer = json.loads(desk.paste(chat))
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert 1 <= answer["usage"]["completion_tokens"] <= 64
    finally:
        told = desk.paste(end)
    assert "ready" in told
    assert "serving" in told
    assert "stopped" in told


def test_the_plain_launch_is_pasted(desk: Desk) -> None:
    """mlx.launch alone, with MLX's ring where there is no RDMA."""
    desk.paste("jaccl rehearse --macs 2")
    text = put(
        block("mlx.launch"),
        {
            "--backend jaccl": f"--backend ring --starting-port {choose(4)}",
            "--hostfile F": "--hostfile hostfiles/rehearsal.local.json",
            "--python P": f"--python {sys.executable}",
            "--model DIR": f"--model {shlex.quote(str(desk.model))}",
            "--max-tokens 256": "--max-tokens 4 --repeats 1",
        },
    )
    out = desk.paste(text)
    assert "generation: 4 tokens" in out
    assert "rank 0 of 2 over ring" in out


def test_the_python_block_runs(desk: Desk) -> None:
    port, control = free_ports()
    text = put(block("import os"), {"port=8080": f"port={port}, ctrl_port={control}"})
    (desk.folder / "block.py").write_text(text, encoding="utf-8")
    desk.paste(shlex.join([sys.executable, "block.py"]))


def test_every_block_is_covered() -> None:
    """Whoever adds a block to the README adds a test that pastes it."""
    pasted = ["make lab", "jaccl enable", "mlx.launch", "jaccl rehearse --macs 2", "import os"]
    pasted.append("pip install 'jaccl_kernel")  # in tests/test_wheel.py, which builds the wheel first
    assert [text for text in blocks() if not text.startswith(tuple(pasted))] == []
    assert len(blocks()) == len(pasted)
