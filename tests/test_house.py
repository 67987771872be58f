"""The house's own rules: which way imports run, who may touch mlx, notebooks without outputs."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaccl_kernel"
MAY_IMPORT_MLX = {"ranks", "inference", "api", "models/convert.py", "launch/launcher.py"}
MOST_LINES = 400  # of a module
MOST_MODULES = 17  # of a folder, with its __init__; the aim is 15

# from the top down: a room imports from rooms below it, and from itself
FLOORS = [
    {"cli", "__init__"},  # the terminal's door, and %load_ext's
    {"notebook"},
    {"steps"},
    {"launch", "rehearsal", "report"},
    {"topology", "models"},
    {"hostfile", "nodes"},
    {"core", ""},
]
RANK_SIDE = {"ranks": {"api", "inference", "models"}, "api": {"inference", "models"}, "inference": {"models"}}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(dotted: str) -> str:
    name = dotted.removeprefix("jaccl_kernel").lstrip(".").split(".")[0]
    return (
        name
        if name == "__version__" or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
        else ""
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path: Path) -> None:
    own = room(str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."))
    for name in imports(path):
        if not name.startswith("jaccl_kernel"):
            continue
        other = room(name)
        if own in RANK_SIDE:
            assert other in {own, *RANK_SIDE[own], *FLOORS[-1]}, f"{own} imports {name}"
            continue
        assert other not in RANK_SIDE, f"{own} is host side and imports {name}: ranks are another process"
        level = {floor_room: number for number, floor in enumerate(FLOORS) for floor_room in floor}
        assert other == own or level.get(other, 9) > level[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_host_side_imports_no_mlx(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    if {place.parts[0], str(place)} & MAY_IMPORT_MLX:
        return
    assert not [name for name in imports(path) if name.split(".")[0] in ("mlx", "mlx_lm")]


def test_no_module_and_no_folder_outgrows_its_bound() -> None:
    long = [path for path in modules() if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    folders = {path.parent for path in modules()}
    wide = [folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_MODULES]
    assert (long, wide) == ([], [])


# What a sentence that sends people to a notebook must be about.
ABOUT = {
    "01": r"RDMA",
    "02": r"environment",
    "03": r"hostfile|cable moves|network set-up",
    "04": r"model",
}


def test_every_fix_that_names_a_notebook_names_the_one_that_has_the_step() -> None:
    told = [
        node.value
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"notebook \d\d", node.value)
    ]
    assert told
    wrong = [
        text
        for text in told
        for number in re.findall(r"notebook (\d\d)", text)
        if not re.search(ABOUT.get(number, r"^$"), text)
    ]
    assert wrong == []


def test_every_package_and_module_has_a_docstring() -> None:
    silent = [
        path for path in modules() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_carry_no_outputs_and_short_cells(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert len("".join(cell["source"]).splitlines()) <= 10
