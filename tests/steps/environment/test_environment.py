"""Environment: the same Python everywhere, proven, drifted or made.

The environments here are real ones, made by real venv and pip, of a few tiny packages.
"""

import asyncio
import json
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import jaccl_kernel
from jaccl_kernel.cli.main import run
from jaccl_kernel.core.errors import Busy, InputError, JacclError
from jaccl_kernel.core.events import Done, Event, Line, Stage
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch import lock
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.rehearsal import tools
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment import environment
from jaccl_kernel.steps.environment import wheel as own_wheel
from jaccl_kernel.steps.environment.plan import plan_node
from jaccl_kernel.steps.environment.report import (
    MLX,
    MLX_LM,
    OLDEST_PYTHON,
    OLDEST_TRANSFORMERS,
    EnvironmentReport,
    NodeEnvironment,
    judge,
)
from jaccl_kernel.steps.environment.survey import Survey, choose_version, parse_survey
from jaccl_kernel.topology.facts import PythonFacts
from tests.conftest import until
from tests.events import bodies
from tests.sshd import start_macs

pytestmark = pytest.mark.usefixtures("nothing_left")

OWN = "{}.{}".format(*sys.version_info)
GOOD = PythonFacts("/env/bin/python", "3.12.11", "0.32.4", "0.32.2", "5.1.0", "0.1.0")
TINY = {
    "mlx": (
        "0.32.4",
        "mlx/core.py",
        "class array(list):\n sum = lambda self: array([sum(self)])\n item = lambda self: self[0]\n",
    ),
    "mlx_lm": ("0.32.2", "mlx_lm/__init__.py", ""),
    "transformers": ("5.1.0", "transformers/__init__.py", ""),
    "pydantic": ("2.10.0", "pydantic.pth", sysconfig.get_path("purelib") + "\n"),  # the real one
}
"""Packages that stand in for the big ones: their versions, their one file, and what is in it."""


# ---- what the nodes have, judged -----------------------------------------------------------------------


def node(name: str = "mac1", **changes: Any) -> NodeEnvironment:
    versions = {key: changes.pop(key) for key in list(changes) if key in PythonFacts.__dataclass_fields__}
    found = NodeEnvironment(name, None, replace(GOOD, **versions), True, "ok", "", "c0de")
    return replace(found, **changes)


def codes(report: EnvironmentReport) -> list[str]:
    return [problem.code for problem in report.problems]


def drifts(report: EnvironmentReport) -> dict[str, list[bool]]:
    return {row.package: [cell.differs for cell in row.cells] for row in report.rows if row.drifts}


def test_the_same_everywhere_is_fine_and_names_the_interpreter() -> None:
    report = judge("~/env/bin/python", [node(), node("mac2")])
    assert report.ok
    assert report.python == "/env/bin/python"
    assert drifts(report) == {}
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"mlx": "0.32.5"}, "mlx"),
        ({"mlx_lm": "0.32.3"}, "mlx-lm"),
        ({"transformers": "5.2.0"}, "transformers"),
        ({"version": "3.13.1"}, "python"),
        ({"jaccl_kernel": "0.2.0"}, "jaccl-kernel"),
        ({"code": "beef"}, "jaccl-kernel's code"),
    ],
)
def test_each_drift_is_marked_and_named_with_its_node(changes: dict[str, str], package: str) -> None:
    report = judge("p", [node(), node("mac2"), node("mac3", **changes)])
    assert drifts(report) == {package: [False, False, True]}
    [problem] = report.problems
    assert (problem.code, problem.where) == ("drift", "mac3")
    assert problem.message.startswith(f"{package} is ")
    assert "on mac1 (rank 0)" in problem.message
    assert not report.ok


def test_a_patch_level_of_python_is_no_drift() -> None:
    report = judge("p", [node(), node("mac2", version="3.12.1")])
    assert report.ok
    assert [cell.value for cell in report.rows[0].cells] == ["3.12.11", "3.12.1"]


def test_a_rank_0_that_does_not_answer_hides_no_drift_of_the_others() -> None:
    report = judge("p", [NodeEnvironment("mac1", error="asleep"), node("mac2"), node("mac3", mlx="0.32.5")])
    assert drifts(report) == {"mlx": [False, False, True]}
    assert codes(report) == ["not-tested", "drift"]
    assert report.python is None


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"mlx": "0.32.2"}, "refused-mlx", "from 0.32.3 on"),
        ({"mlx": "0.33.0"}, "refused-mlx", "0.33.0"),
        ({"mlx": "0.31.0"}, "refused-mlx", "0.31.0"),
        ({"mlx_lm": "0.33.0"}, "refused-mlx-lm", "0.33.0"),
        ({"mlx_lm": "0.30.5"}, "refused-mlx-lm", "0.30.5"),
        ({"transformers": "4.57.0"}, "refused-transformers", "4.57.0"),
        ({"version": "3.9.6"}, "old-python", "3.9.6"),
        ({"mlx": None, "mlx_lm": None}, "missing-package", "mlx, mlx-lm is not installed"),
        ({"jaccl_kernel": None}, "missing-package", "jaccl-kernel is not installed"),
        ({"finished": False}, "unfinished", "unfinished"),
        ({"python": None, "detail": "not found"}, "no-python", "not found"),
        ({"proof": "failed", "detail": "ImportError: no"}, "imports", "ImportError: no"),
        ({"proof": "not tested", "detail": "120 s"}, "imports", "did not finish"),
        ({"error": "Operation timed out"}, "not-tested", "Operation timed out"),
    ],
)
def test_each_problem_is_named_with_a_fix(changes: dict[str, Any], code: str, said: str) -> None:
    report = judge("p", [node(**changes)])
    assert codes(report) == [code]
    assert said in report.problems[0].message
    assert report.problems[0].fix or code == "not-tested"
    assert not report.ok


def test_the_ring_of_mlx_0_32_2_is_rejected_with_the_reason() -> None:
    [problem] = judge("p", [node(mlx="0.32.2")], backend="jaccl-ring").problems
    assert "wrong values" in problem.message


def test_a_path_that_differs_between_homes_is_a_problem() -> None:
    nodes = [node(executable="/Users/a/env/bin/python"), node("mac2", executable="/Users/b/env/bin/python")]
    report = judge("~/env/bin/python", nodes)
    assert codes(report) == ["paths-differ"]
    assert report.python is None
    assert "/Users/Shared" in report.problems[0].fix
    assert judge("~/env/bin/python", nodes, rehearsal=True).python == sys.executable


def test_version_skew_of_a_simulated_mac_is_drift_and_rejected() -> None:
    facts = tools.facts(with_faults(ClusterSpec.healthy(3), ["version-skew:2"]))
    report = judge("p", [NodeEnvironment(mac.name, python=mac.python, proof="ok") for mac in facts])
    assert drifts(report) == {"mlx": [False, True, False]}
    assert codes(report) == ["refused-mlx", "drift"]


def test_unsupported_versions_agree_with_the_requirements() -> None:
    told = metadata.metadata("jaccl-kernel")
    assert told["Requires-Python"] == f">={dotted(OLDEST_PYTHON)}"
    required = "\n".join(metadata.requires("jaccl-kernel") or ())
    assert f"mlx<{dotted(MLX[1])},>={dotted(MLX[0])};" in required
    assert f"mlx-lm<{dotted(MLX_LM[1])},>={dotted(MLX_LM[0])}" in required
    assert f"transformers>={dotted(OLDEST_TRANSFORMERS)}" in required


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


# ---- nodes ----------------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of installed packages: the tiny ones, and this one by a path to its sources."""
    folder = tmp_path / "packages"
    for name, (version, module, text) in TINY.items():
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / module).write_text(text)
        write_metadata(folder, name, version)
    write_metadata(folder, "jaccl_kernel", jaccl_kernel.__version__)
    (folder / "sources.pth").write_text(str(Path(jaccl_kernel.__file__).parents[1]))
    return folder


def write_metadata(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def mac(root: Path, name: str, base: str = "") -> LocalNode:
    """A node with a home and one Python in its PATH: this one, before which `base` runs."""
    script(root / name / "bin" / f"python{OWN}", f'{base}\nexec {sys.executable} "$@"')
    return LocalNode(name, home=root / name, path=f"{root / name}/bin:/usr/bin:/bin")


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def cluster_of(*nodes: Node) -> Cluster:
    return Cluster(Hostfile(tuple(Host(ssh=node.name) for node in nodes)), nodes)


def recipe_of(packages: Path) -> environment.Recipe:
    return environment.Recipe(own_wheel.pack(packages.parent / "wheels"), (), borrow=str(packages))


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if "wheels" not in path.parts)


async def make(cluster: Cluster, recipe: environment.Recipe) -> environment.ApplyReport:
    return await environment.apply(await environment.plan(cluster, recipe=recipe), yes=True)


# ---- check ----------------------------------------------------------------------------------------------


async def test_a_rehearsal_runs_on_this_python_and_shows_its_version_skew() -> None:
    events: list[Event] = []
    cluster = Cluster.of(make_hostfile(2, ["version-skew:2"]))
    report = await environment.check(cluster, on_event=events.append)
    assert [node.proof for node in report.nodes] == ["ok", "ok"]
    assert drifts(report) == {"mlx": [False, True]}
    assert report.python == sys.executable
    assert report.rehearsal
    assert {event.rank for event in events if isinstance(event.body, Done)} == {0, 1}


async def test_a_node_out_of_reach_fails_alone(tmp_path: Path, packages: Path) -> None:
    good, gone = mac(tmp_path, "mac1"), LocalNode("gone", home=tmp_path / "nowhere")
    assert (await make(cluster_of(good), recipe_of(packages))).ok
    report = await environment.check(cluster_of(good, gone))
    assert [node.proof for node in report.nodes] == ["ok", "not tested"]
    assert codes(report) == ["not-tested"]
    assert drifts(report) == {}


@pytest.mark.parametrize(
    ("proof", "code", "said"),
    [
        ("echo 'ImportError: libmlx.dylib' >&2; exit 1", "imports", "failed: ImportError: libmlx.dylib"),
        ("echo half; exec sleep 600", "imports", "did not finish within 1 s"),
        ("kill -SEGV $$", "imports", "SIGSEGV"),
        ("echo nothing", "imports", "printed no result"),
    ],
)
async def test_imports_that_fail_or_hang_are_reported(
    tmp_path: Path, proof: str, code: str, said: str
) -> None:
    told = json.dumps(
        {"executable": str(tmp_path / "mac1/bin/python3"), "version": "3.12.1", "packages": VERSIONS}
    )
    home = LocalNode("mac1", home=tmp_path / "mac1", path=f"{tmp_path}/mac1/bin:/usr/bin:/bin")
    script(tmp_path / "mac1/bin/python3", f"case \"$2\" in *metadata*) echo '{told}'; exit;; esac\n{proof}")
    deadline = 1 if "sleep" in proof else 60
    report = await environment.check(cluster_of(home), python="~/bin/python3", deadline=deadline)
    assert codes(report) == [code]
    assert said in report.problems[0].message
    assert report.nodes[0].python
    assert report.nodes[0].python.mlx == "0.32.4"


VERSIONS = {"mlx": "0.32.4", "mlx-lm": "0.32.2", "transformers": "5.1.0", "jaccl-kernel": "0.1.0"}


async def test_a_missing_environment_is_reported_with_the_command_that_creates_it(tmp_path: Path) -> None:
    report = await environment.check(cluster_of(mac(tmp_path, "mac1")))
    assert codes(report) == ["no-python"]
    assert "~/jaccl-env/bin/python" in report.problems[0].message
    assert "--create" in report.problems[0].fix


# ---- plan -----------------------------------------------------------------------------------------------


def has(*versions: str, conda: str | None = None, **more: Any) -> Survey:
    return Survey("/env", pythons={one: f"/usr/bin/python{one}" for one in versions}, conda=conda, **more)


@pytest.mark.parametrize(
    ("surveys", "version"),
    [
        ([has("3.12", OWN), has(OWN)], OWN),
        ([has("3.12"), has("3.12", "3.13")], "3.12"),
        ([has("3.13"), has(conda="/opt/conda")], "3.13"),
        ([has(conda="/opt/conda")], OWN),
        ([has("3.9"), has()], None),
        ([has(error=JacclError("gone")), has("3.13")], "3.13"),
    ],
)
def test_one_version_of_python_is_chosen_for_all(surveys: list[Survey], version: str | None) -> None:
    assert choose_version(surveys) == version


@pytest.mark.parametrize(
    ("survey", "action", "said"),
    [
        (has("3.12"), "create", "-m venv /env"),
        (has(conda="/opt/conda"), "create", "/opt/conda create --yes --quiet --prefix /env python=3.12"),
        (has("3.12", state="unfinished"), "replace", "-m venv /env"),
        (has("3.12", state="ready", stamp="other"), "replace", "/env.before"),
        (has("3.12", state="foreign"), "skip", "was not created by"),
        (has("3.13"), "skip", "It has Python 3.13, but"),
        (has(), "skip", "neither Python 3.12 (with venv) nor conda"),
        (has(error=JacclError("asleep", fix="Wake it.")), "skip", "asleep"),
    ],
)
def test_each_node_gets_its_own_commands_or_a_reason(
    packages: Path, survey: Survey, action: str, said: str
) -> None:
    pins = replace(recipe_of(packages), borrow=None, requirements=("mlx==0.32.4",))
    todo = plan_node(SshNode("mac1.local"), survey, "3.12", pins)
    text = "\n".join([todo.why, *todo.commands]).replace('"$1.before"', "/env.before")
    assert todo.action == action
    assert said in text
    assert bool(todo.commands) == (action != "skip")
    assert bool(todo.fix) == (action == "skip")
    if todo.commands:
        assert all(
            command.startswith("ssh mac1.local '") for command in todo.commands if "rsync" not in command
        )
        assert re.search(
            r"/env/bin/python -m pip install .* mlx==0\.32\.4 /env\.part/jaccl_kernel-\S*whl", text
        )


async def test_the_existing_folder_is_detected(tmp_path: Path, packages: Path) -> None:
    cluster, recipe = cluster_of(mac(tmp_path, "mac1")), recipe_of(packages)
    assert [n.action for n in (await environment.plan(cluster, recipe=recipe)).nodes] == ["create"]
    (tmp_path / "mac1/jaccl-env").mkdir()
    plan = await environment.plan(cluster, recipe=recipe)
    assert (plan.nodes[0].action, plan.ok) == ("skip", False)
    (tmp_path / "mac1/jaccl-env.part").mkdir()
    assert (await environment.plan(cluster, recipe=recipe)).nodes[0].action == "replace"


def test_an_invalid_survey_is_an_error() -> None:
    assert str(parse_survey("", "sh: no\nsh: bad").error).endswith("sh: bad")
    assert parse_survey("path=/e\nstate=odd").error
    assert parse_survey("path=/a b\nstate=ready\nstamp=x=y\npython=3.12 /p q\npython=3.12 /z") == Survey(
        "/a b", "ready", "x=y", {"3.12": "/p q"}, None
    )


@pytest.mark.parametrize("path", ["~", "~/", "/", "/env", "", "env", "~/../x", "~/a//b", "~/a\nb", "~x/env"])
async def test_an_invalid_environment_path_is_rejected(path: str) -> None:
    with pytest.raises(InputError, match="invalid path"):
        await environment.plan(cluster_of(), path=path)


# ---- apply ----------------------------------------------------------------------------------------------


async def test_nothing_is_changed_without_confirmation(tmp_path: Path, packages: Path) -> None:
    cluster = cluster_of(mac(tmp_path, "mac1"))
    before = listing(tmp_path)
    plan = await environment.plan(cluster, recipe=recipe_of(packages))
    with pytest.raises(InputError, match="nothing was changed"):
        await environment.apply(plan)
    assert listing(tmp_path) == before


async def test_an_environment_is_created_tested_and_then_kept(tmp_path: Path, packages: Path) -> None:
    cluster = cluster_of(mac(tmp_path, "mac one"), mac(tmp_path, "mac2"))
    recipe = recipe_of(packages)
    events: list[Event] = []
    plan = await environment.plan(cluster, path=f"~/{tmp_path.name} é/env", recipe=recipe)
    done = await environment.apply(plan, yes=True, on_event=events.append)
    assert [one.outcome for one in done.nodes] == ["created", "created"]
    report = await environment.check(cluster, python=done.python)
    assert [one.proof for one in report.nodes] == ["ok", "ok"]
    assert codes(report) == ["paths-differ"]
    assert "import the ranks' packages" in {stage.name for stage in bodies(events, Stage, rank=1)}
    assert not [path for path in listing(tmp_path) if path.endswith((".part", ".before"))]
    again = await environment.plan(cluster, path=plan.path, recipe=recipe)
    assert [one.action for one in again.nodes] == ["keep", "keep"]
    assert [one.outcome for one in (await environment.apply(again, yes=True)).nodes] == [
        "unchanged",
        "unchanged",
    ]


async def test_a_node_that_fails_is_put_back_and_does_not_stop_the_others(
    tmp_path: Path, packages: Path
) -> None:
    broken = 'case "$*" in *"-m venv"*) mkdir -p "$4"; echo "No space left on device" >&2; exit 1;; esac'
    cluster = cluster_of(mac(tmp_path, "mac1", broken), mac(tmp_path, "mac2"))
    before = listing(tmp_path / "mac1")
    done = await make(cluster, recipe_of(packages))
    assert [one.outcome for one in done.nodes] == ["failed", "created"]
    assert not done.ok
    failed = done.nodes[0]
    assert failed.at.startswith("create it with")
    assert failed.last_lines == ("No space left on device",)
    assert failed.left == "restored"
    assert listing(tmp_path / "mac1") == before


async def test_a_failed_replacement_restores_the_old_environment(tmp_path: Path, packages: Path) -> None:
    cluster, recipe = cluster_of(mac(tmp_path, "mac1")), recipe_of(packages)
    assert (await make(cluster, recipe)).ok
    shutil.copytree(packages, tmp_path / "worse")
    (tmp_path / "worse/mlx_lm/__init__.py").write_text("raise ImportError('half of it is missing')")
    worse = replace(recipe, borrow=str(tmp_path / "worse"))
    plan = await environment.plan(cluster, recipe=worse)
    assert plan.nodes[0].action == "replace"
    done = await environment.apply(plan, yes=True)
    assert (done.nodes[0].at, done.nodes[0].left) == ("import the ranks' packages", "restored")
    assert "half of it is missing" in done.nodes[0].error
    assert (await environment.check(cluster)).ok
    assert (await environment.plan(cluster, recipe=recipe)).nodes[0].action == "keep"


async def test_a_cancel_puts_every_node_back(tmp_path: Path, packages: Path) -> None:
    hang = 'case "$*" in *"-m venv"*) mkdir -p "$4"; touch "$HOME/hangs"; exec sleep 600;; esac'
    cluster = cluster_of(*(mac(tmp_path, name, hang) for name in ("mac1", "mac2")))
    plan = await environment.plan(cluster, recipe=recipe_of(packages))
    before = listing(tmp_path)
    task = asyncio.create_task(environment.apply(plan, yes=True))
    hung = [tmp_path / name / "hangs" for name in ("mac1", "mac2")]
    await until(lambda: all(path.exists() for path in hung), "both to hang")
    unfinished = await environment.check(cluster)
    assert codes(unfinished) == ["unfinished", "unfinished"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path for path in listing(tmp_path) if not path.endswith("/hangs")] == before


async def test_an_environment_after_a_power_cut_is_unfinished_and_is_removed(
    tmp_path: Path, packages: Path
) -> None:
    cluster, recipe = cluster_of(mac(tmp_path, "mac1")), recipe_of(packages)
    assert (await make(cluster, recipe)).ok
    home = tmp_path / "mac1"
    (home / "jaccl-env.part").mkdir()
    (home / "jaccl-env").rename(home / "jaccl-env.before")
    (home / "jaccl-env").mkdir()
    assert codes(await environment.check(cluster)) == ["unfinished"]
    done = await make(cluster, recipe)
    assert done.nodes[0].outcome == "created"
    assert (await environment.check(cluster)).ok
    assert sorted(path.name for path in home.iterdir() if "jaccl-env" in path.name) == ["jaccl-env"]


async def test_no_environment_is_created_during_a_job(tmp_path: Path, packages: Path) -> None:
    cluster = cluster_of(mac(tmp_path, "mac1"))
    plan = await environment.plan(cluster, recipe=recipe_of(packages))
    with lock.hold(["mac1"], "a benchmark"), pytest.raises(Busy, match="a benchmark"):
        await environment.apply(plan, yes=True)


async def test_an_unsupported_node_is_reported_and_not_changed(tmp_path: Path, packages: Path) -> None:
    none = LocalNode("none", home=tmp_path, path="/nowhere:/usr/bin:/bin")
    plan = await environment.plan(cluster_of(none), recipe=recipe_of(packages))
    plan = replace(plan, nodes=(plan_node(none, has(), None, plan.recipe),))
    before = listing(tmp_path)
    [told] = (await environment.apply(plan, yes=True)).nodes
    assert told.outcome == "skipped"
    assert "brew install" in told.error
    assert listing(tmp_path) == before


# ---- the package itself ---------------------------------------------------------------------------------


def test_the_same_package_packs_alike(tmp_path: Path) -> None:
    one, other = own_wheel.pack(tmp_path / "a"), own_wheel.pack(tmp_path / "b")
    assert own_wheel.digest(one) == own_wheel.digest(other)
    with zipfile.ZipFile(one) as wheel:
        names = wheel.namelist()
    assert "jaccl_kernel/ranks/__main__.py" in names
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
    assert not [name for name in names if "__pycache__" in name or "direct_url" in name]


def test_a_package_that_is_not_installed_here_is_not_pinned() -> None:
    pins = dict(pin.split("==") for pin in environment.own_recipe().requirements)
    assert pins["mlx-lm"] == metadata.version("mlx-lm")
    assert environment.own_recipe(rehearsal=True).requirements == ()


# ---- the whole way, over real ssh, with real pip --------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder of wheels of the tiny packages, in place of a package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, (version, module, text) in TINY.items():
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(module, text)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.sshd
@pytest.mark.needs("rsync")
async def test_over_real_ssh_pip_makes_it_and_the_check_proves_it(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = own_wheel.pack(tmp_path / "wheels")
    pins = tuple(f"{name.replace('_', '-')}=={version}" for name, (version, _, _) in TINY.items())
    recipe = environment.Recipe(wheel, pins, ("--no-index", "--no-deps", "--find-links", str(index)))
    with start_macs(tmp_path / "macs") as macs:
        monkeypatch.setenv("PATH", macs.path)  # rsync's own ssh
        script(macs["mac1"].home / "bin" / f"python{OWN}", f'exec {sys.executable} "$@"')
        macs.stop("mac2")
        cluster = cluster_of(*(SshNode(name, options=macs.options) for name in ("mac1", "mac2")))
        path = f"{tmp_path}/Shared with us/jaccl-env"
        events: list[Event] = []
        plan = await environment.plan(cluster, path=path, recipe=recipe)
        done = await environment.apply(plan, yes=True, on_event=events.append)
        assert [one.outcome for one in done.nodes] == ["created", "skipped"], done
        assert "no ssh server listens" in done.nodes[1].error
        assert any("Successfully installed" in line.text for line in bodies(events, Line))
        report = await environment.check(cluster, python=done.python)
    assert codes(report) == ["not-tested"]
    made = report.nodes[0]
    assert made.proof == "ok", made
    assert made.python
    assert made.python.executable == f"{path}/bin/python"
    assert (made.python.mlx, made.python.jaccl_kernel) == ("0.32.4", jaccl_kernel.__version__)


# ---- from a terminal ------------------------------------------------------------------------------------


def run_cli(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_the_terminal_shows_drift_plan_and_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    make_hostfile(2, ["version-skew:2"]).write(path)
    assert run_cli("environment", path) == 1
    told = capsys.readouterr().out
    assert "0.31.0 *" in told
    assert "mac2: mlx 0.31.0 is not supported" in told
    make_hostfile(1, ["version-skew:1"]).write(path)
    assert run_cli("environment", path, "--create") == 0
    told = capsys.readouterr().out
    assert "-m venv" in told
    assert "Nothing was changed" in told
    assert run_cli("environment", path, "--create", "--yes", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["outcome"] for one in data["applied"]["nodes"]] == ["created"]
    assert data["check"]["ok"] is True
    assert data["check"]["python"] == sys.executable


@pytest.mark.parametrize(
    "arguments", [["--yes"], ["--path", "~/x"], ["--create", "--python", "p"], ["--create", "--path", "x"]]
)
def test_options_that_exclude_each_other_are_rejected(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "r.json"
    make_hostfile(1).write(path)
    assert run_cli("environment", path, *arguments) == 2
