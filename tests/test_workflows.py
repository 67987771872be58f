"""The workflow files of public CI, which cannot run here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    """GitHub's own schema, as check-jsonschema carries it: no network."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_it_is_a_workflow_as_github_takes_it(path: Path) -> None:
    done = lint(path)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("nothing_left")
def test_a_misspelt_key_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(WORKFLOWS[0].read_text("utf-8").replace("runs-on:", "run-on:"), "utf-8")
    assert lint(wrong).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_it_can_do_no_harm(path: Path) -> None:
    """It reads the code and nothing else, needs no secret, ends by itself, and names each action's major."""
    text = path.read_text("utf-8")
    workflow = YAML(typ="safe").load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert "secrets." not in text
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_every_python_that_we_support_is_tried_and_a_mac() -> None:
    workflow = YAML(typ="safe").load((FOLDER / "ci.yml").read_text("utf-8"))
    tried = workflow["jobs"]["suite"]["strategy"]["matrix"]["include"]
    assert {one["python"] for one in tried if "ubuntu" in one["os"]} == {"3.11", "3.12", "3.13"}
    assert "macos-26" in {one["os"] for one in tried}


def test_the_make_targets_and_commands_that_it_calls_exist() -> None:
    text = (FOLDER / "ci.yml").read_text("utf-8")
    makefile = (FOLDER.parents[1] / "Makefile").read_text("utf-8")
    for target in re.findall(r"make (\w+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
