"""The wheel: built, installed in environments of its own, and used in an empty folder far from the clone.

Nothing is downloaded: the environments borrow packages of this one, all of them or the base layer's.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pip
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaccl_kernel
from jaccl_kernel.launch import ports
from jaccl_kernel.steps.environment import wheel as own_wheel
from tests.lab import Lab, own_environment, wait_until_it_answers
from tests.report.test_page import point
from tests.test_package import ROOT, declared, modules, needs_workbench

pytestmark = pytest.mark.usefixtures("nothing_left")

VERSION = jaccl_kernel.__version__
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, by its own build backend; a local hostfile lies in the way."""
    folder = tmp_path_factory.mktemp("dist")
    local = ROOT / "hostfiles" / f"test-{os.getpid()}.local.json"
    local.write_text("{}")
    try:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    finally:
        local.unlink()
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def workbench(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and every package that this environment has."""
    return environment(tmp_path_factory.mktemp("workbench"), wheel, Path(sysconfig.get_path("purelib")))


@pytest.fixture(scope="module")
def base_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages that the base layer asks for, and no others."""
    folder = tmp_path_factory.mktemp("base layer")
    for name in closure([one for many in declared("base").values() for one in many]):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(found.locate_file(top)))
    return folder


@pytest.fixture(scope="module")
def node(wheel: Path, base_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and the base layer."""
    return environment(tmp_path_factory.mktemp("node"), wheel, base_layer)


def closure(todo: list[Requirement]) -> set[str]:
    """The installed distributions that these requirements ask for, and those that they ask for."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        one = todo.pop()
        found = (canonicalize_name(one.name), frozenset(one.extras))
        if found in seen or (one.marker and not one.marker.evaluate()):
            continue
        seen.add(found)
        for text in metadata.requires(one.name) or ():
            more = Requirement(text)
            if not more.marker or any(more.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                more.marker = None
                todo.append(more)
    return {name for name, _ in seen}


def environment(folder: Path, wheel: Path, packages: Path) -> Path:
    """Make a venv that borrows these packages, and install the wheel; its `bin`."""
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    pip = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, *pip, "--disable-pip-version-check", wheel)
    # behind the venv's own: not the checkout that is installed here, and not by its .pth files
    (Path(purelib) / "zz-borrowed.pth").write_text(f"{packages}\n")
    return python.parent


def run(
    *command: object, cwd: Path | None = None, status: int = 0, environ: dict[str, str] | None = None
) -> str:
    """Run a command to its end; its stdout, with stderr if it was to fail."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env={**os.environ, **(environ or {})}, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout if status == 0 else done.stdout + done.stderr


# ---- what is in it --------------------------------------------------------------------------------------


def test_the_wheel_has_the_package_its_notebooks_and_templates_and_no_one_s_own_hostfile(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"jaccl_kernel/{module}" for module in modules()} <= names
    assert {"jaccl_kernel/py.typed", "jaccl_kernel/notebook/static/log.js"} <= names
    assert {f"jaccl_kernel/_workbench/notebooks/{name}" for name in NOTEBOOKS} <= names
    templates = [path.name for path in (ROOT / "hostfiles").glob("*.template.json")]
    assert templates
    assert {f"jaccl_kernel/_workbench/hostfiles/{name}" for name in ["rehearsal.json", *templates]} <= names
    assert not [name for name in names if ".local.json" in name or name.startswith(("notebooks/", "tests/"))]


def test_the_wheels_metadata_names_both_layers_and_the_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        told = archive.read(f"jaccl_kernel-{VERSION}.dist-info/METADATA").decode()
    assert f"\nVersion: {VERSION}\n" in told
    assert "\nProvides-Extra: workbench\n" in told
    assert "Requires-Dist: jupyterlab>=4.4; extra == 'workbench'" in told
    assert "Classifier: Typing :: Typed" in told


# ---- on a node: the base layer alone --------------------------------------------------------------------


def test_every_module_that_a_node_needs_loads_with_the_base_layer_alone(node: Path, tmp_path: Path) -> None:
    names = [
        f"jaccl_kernel.{module.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")
        for module in modules()
        if not needs_workbench(module)
    ]
    code = (
        "import importlib, importlib.util, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "import jaccl_kernel\n"
        "print(json.dumps([jaccl_kernel.__file__, importlib.util.find_spec('jupyterlab') is None,"
        " importlib.util.find_spec('matplotlib') is None]))"
    )
    where, no_lab, no_figures = json.loads(run(node / "python", "-c", code, json.dumps(names), cwd=tmp_path))
    assert (Path(where).is_relative_to(node.parent), no_lab, no_figures) == (True, True, True)


def test_without_the_workbench_layer_the_lab_says_what_to_install_and_where(
    node: Path, tmp_path: Path
) -> None:
    told = run(node / "jaccl", "lab", "--no-browser", cwd=tmp_path, status=1)
    assert "`jaccl lab` needs the Python module jupyterlab, which is not installed" in told
    assert f"error: {node.parent}: " in told
    assert f"Fix: Install the workbench layer: {node}/python -m pip install " in told
    assert f"'jaccl-kernel[workbench]=={VERSION}'" in told
    assert list(tmp_path.iterdir()) == []


def test_other_commands_that_need_the_layer_say_so_and_tables_do_without(node: Path, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    model = {"name": "a model"}
    provenance = {
        "date": "2026-11-25",
        "workbench": "0",
        "rehearsal": True,
        "hosts": ["mac1"],
        "model": model,
    }
    record.write_text(
        json.dumps({"schema": 1, "kind": "sweep", "points": [point(2, 15.0)], "provenance": provenance})
    )
    told = run(node / "jaccl", "report", record, "--html", tmp_path / "x.html", cwd=tmp_path, status=1)
    assert "`jaccl report` needs the Python module matplotlib" in told
    assert "jaccl-kernel[workbench]" in told
    assert "15.0" in run(node / "jaccl", "report", record, cwd=tmp_path)
    told = run(node / "jaccl", "kernel", "--prefix", tmp_path, cwd=tmp_path, status=1)
    assert "The JACCL kernel needs the Python module jupyterlab" in told
    code = "import jaccl_kernel; jaccl_kernel.load_ipython_extension(None)"
    told = run(node / "python", "-c", code, cwd=tmp_path, status=1)
    assert "%load_ext jaccl_kernel needs the Python module jupyterlab" in told


def test_yes_installs_the_layer_for_the_copy_that_is_there_and_opens_the_lab(
    wheel: Path, base_layer: Path, tmp_path: Path
) -> None:
    """With a real pip, and an index of stand-ins: their JupyterLab prints how it was called."""
    env = environment(tmp_path, wheel, base_layer)
    site = run(env / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "pip").symlink_to(Path(pip.__file__).parent)
    index = tmp_path / "index"
    index.mkdir()
    installed = {canonicalize_name(found.name) for found in metadata.distributions(path=[str(base_layer)])}
    for name in set(declared("workbench")) - installed:
        stand_in(index, name)
    options = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    told = run(
        env / "jaccl", "lab", "--yes", "--folder", "mine", "--no-browser", cwd=tmp_path, environ=options
    )
    assert f"$ {env}/python -m pip install 'jaccl-kernel[workbench]=={VERSION}'" in told
    assert "Requirement already satisfied: jaccl-kernel" in told
    assert f"--ServerApp.root_dir={tmp_path}/mine --no-browser" in told
    assert sorted(path.name for path in (tmp_path / "mine/notebooks").iterdir()) == NOTEBOOKS


def stand_in(folder: Path, name: str) -> None:
    """A wheel of an empty package, newer than any lower bound."""
    stem = name.replace("-", "_")
    module, info = {"markdown_it_py": "markdown_it"}.get(stem, stem), f"{stem}-99.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-99-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}/__init__.py", "")
        archive.writestr(f"{module}/__main__.py", "import sys; print(*sys.argv)")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


# ---- the workbench, from the wheel, in an empty folder --------------------------------------------------


def test_the_commands_and_the_rehearsal_work_in_an_empty_folder(workbench: Path, tmp_path: Path) -> None:
    assert "Usage: jaccl" in run(workbench / "jaccl", "--help", cwd=tmp_path)
    assert run(workbench / "jaccl", "--version", cwd=tmp_path) == f"jaccl-kernel {VERSION}\n"
    assert "REHEARSAL" in run(workbench / "jaccl", "rehearse", "--macs", "2", cwd=tmp_path)
    path = tmp_path / "hostfiles" / "rehearsal.local.json"
    assert json.loads(run(workbench / "jaccl", "environment", path, "--json", cwd=tmp_path))["ok"] is True
    done = json.loads(
        run(workbench / "jaccl", "environment", path, "--create", "--yes", "--json", cwd=tmp_path)
    )
    assert [one["outcome"] for one in done["applied"]["nodes"]] == ["created", "created"]
    assert "Nothing was changed" not in run(workbench / "jaccl", "hostfile", "check", path, cwd=tmp_path)


def test_a_wheels_copy_packs_the_same_for_other_nodes_as_this_checkout(
    workbench: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from jaccl_kernel.steps.environment import wheel\n"
        "print(wheel.digest(wheel.pack(Path(sys.argv[1]))))"
    )
    there = run(workbench / "python", "-c", code, tmp_path / "theirs", cwd=tmp_path).strip()
    assert there == own_wheel.digest(own_wheel.pack(tmp_path / "ours"))
    with zipfile.ZipFile(next((tmp_path / "theirs").iterdir())) as archive:
        assert not [name for name in archive.namelist() if "_workbench" in name]


def test_the_lab_opens_on_the_notebooks_and_leaves_edited_ones_alone(workbench: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert lab(workbench, empty, tmp_path) == NOTEBOOKS
    assert [path.name for path in empty.iterdir()] == ["jaccl-workbench"]
    mine = empty / "jaccl-workbench" / "notebooks" / "05_bench.ipynb"
    edited = json.loads(mine.read_text())
    edited["cells"].insert(0, {"cell_type": "markdown", "id": "mine", "metadata": {}, "source": ["My notes"]})
    mine.write_text(json.dumps(edited))
    assert lab(workbench, empty, tmp_path) == NOTEBOOKS
    assert json.loads(mine.read_text()) == edited


def lab(workbench: Path, cwd: Path, folder: Path) -> list[str]:
    """Start `jaccl lab` there until JupyterLab answers, end it, and return the notebooks that it serves."""
    port, token, log = ports.choose(1), "a-token-of-the-test", folder / "lab.log"
    share = Path(sys.prefix) / "share" / "jupyter"  # the borrowed JupyterLab's own pages
    environ = own_environment(folder) | {
        "JUPYTER_TOKEN": token, "JUPYTERLAB_DIR": str(share / "lab"), "JUPYTER_PATH": str(share),
    }  # fmt: skip
    command = [str(workbench / "jaccl"), "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    more = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *more], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        wait_until_it_answers(Lab(f"http://127.0.0.1:{port}", token, cwd, process, log))
        address = f"http://127.0.0.1:{port}/api/contents/notebooks?token={token}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            served = json.load(answer)["content"]
        page = f"http://127.0.0.1:{port}/lab/tree/notebooks/00_start.ipynb?token={token}"
        with urllib.request.urlopen(page, timeout=60) as answer:
            assert b"jupyter-config-data" in answer.read()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "/lab/tree/notebooks/00_start.ipynb" in log.read_text(errors="replace")
    return sorted(one["name"] for one in served)
