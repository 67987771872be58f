"""The workbench folder: notebooks and hostfile templates, in a clone of the project or copied from a wheel.

A wheel carries the files inside the package. `place` copies them into a folder of the user's choice and
records a digest of each. A later version replaces a copy that still has that digest; an edited copy keeps its
name, and the new file is placed beside it. Outputs are not edits: a notebook with outputs is kept beside its
replacement.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jaccl_kernel
from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.files import save_text, write_text

START = "notebooks/00_start.ipynb"
DEFAULT_FOLDER = Path("jaccl-workbench")
RECORD = ".jaccl-workbench.json"
_PACKAGE = Path(jaccl_kernel.__file__).resolve().parent
_SHIPPED = _PACKAGE / "_workbench"
_PARTS = ("notebooks/*.ipynb", "hostfiles/*.json")


@dataclass(frozen=True)
class Placed:
    """What `place` did: names below the folder, in order.

    Attributes:
        folder: the workbench folder, absolute.
        new: files that were not there.
        updated: copies of an earlier version, replaced.
        kept: edited files that differ from this version, and where this version's file is now.
        outputs: notebooks with outputs, under their new names beside their replacements.
    """

    folder: Path
    new: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The result as lines of text."""
        lines = [f"Workbench folder: {self.folder}"]
        if self.new:
            lines.append(f"  copied {len(self.new)} files of version {jaccl_kernel.__version__}")
        if self.updated:
            lines.append(f"  updated to {jaccl_kernel.__version__}: {', '.join(self.updated)}")
        lines += [f"  kept with its outputs: {name}" for name in self.outputs]
        lines += [f"  kept your edited {name}; the new version is {beside}" for name, beside in self.kept]
        return lines


def clone() -> Path | None:
    """The clone of the project that this package runs from, or None."""
    root = _PACKAGE.parent
    return root if (root / START).exists() else None


def default_folder() -> Path:
    """The working folder if it is a workbench folder, else `jaccl-workbench` in it."""
    here = Path.cwd()
    return here if (here / RECORD).exists() else here / DEFAULT_FOLDER


def place(folder: Path, source: Path | None = None) -> Placed:
    """Copy the notebooks and hostfile templates into `folder`; edited files there stay as they are.

    Args:
        folder: the target folder; created if missing.
        source: the source folder; None for the files of this package.

    Raises:
        JacclError: the package has no notebooks, or the folder cannot be written.
    """
    folder = folder.expanduser().resolve()
    source = source or clone() or _SHIPPED
    shipped = _files(source)
    if START not in shipped:
        raise JacclError(
            "the notebooks are missing from the installed package",
            where=str(source),
            fix="Install the package again, from a complete wheel or clone.",
        )
    record = _read_record(folder)
    placing = _Placing(folder, record)
    try:
        for name, text in shipped.items():
            placing.take(name, text)
        # last: an interrupted start then copies the rest
        write_text(folder / RECORD, json.dumps({"files": record}, indent=1))
    except JacclError as error:
        fix = "Choose a folder that you can write to: jaccl lab --folder DIR."
        raise JacclError(error.what, where=error.where, fix=fix) from error
    return placing.result()


def digest(name: str, text: str) -> str:
    """A digest that detects edits: of the cells' sources of a notebook, else of the whole text."""
    content = _sources(text) if name.endswith(".ipynb") else text
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Placing:
    """One call of `place`: copies each file, and collects the result."""

    def __init__(self, folder: Path, record: dict[str, str]) -> None:
        self._folder = folder
        self._record = record
        self._new: list[str] = []
        self._updated: list[str] = []
        self._kept: list[tuple[str, str]] = []
        self._outputs: list[str] = []

    def take(self, name: str, text: str) -> None:
        """Place one file, and record it."""
        path, wanted = self._folder / name, digest(name, text)
        before = self._record.get(name)
        self._record[name] = wanted
        there = _read(path)
        if there is None:
            write_text(path, text)
            self._new.append(name)
        elif digest(name, there) == wanted:
            return
        elif digest(name, there) == before:
            if _has_outputs(name, there):
                self._outputs.append(self._beside(name, "outputs", there))
            write_text(path, text)
            self._updated.append(name)
        elif before != wanted:  # edited, and this version's file is not beside it yet
            self._kept.append((name, self._beside(name, jaccl_kernel.__version__, text)))

    def result(self) -> Placed:
        """The result."""
        done = (tuple(self._new), tuple(self._updated), tuple(self._kept), tuple(self._outputs))
        return Placed(self._folder, *done)

    def _beside(self, name: str, mark: str, text: str) -> str:
        """Save a text beside the file of this name, under a new name; returns that name, below the folder."""
        path = self._folder / name
        stem, _, suffix = path.name.partition(".")
        saved = save_text(f"{stem}.{mark}", f".{suffix}", text, folder=path.parent)
        return saved.relative_to(self._folder).as_posix()


def _files(root: Path) -> dict[str, str]:
    """The files to copy: their names below `root`, and texts."""
    found = sorted(path for part in _PARTS for path in root.glob(part))
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in found
        if not path.name.endswith(".local.json")  # the user's own hostfiles, in a clone
    }


def _read_record(folder: Path) -> dict[str, str]:
    """The digests of the files placed last; empty without a readable record."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return {str(name): str(value) for name, value in dict(found).items()}
    return {}


def _read(path: Path) -> str | None:
    """A file's text, with replacement characters; None if there is no file."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JacclError(f"cannot read the file: {error.strerror}", where=str(path)) from error


def _sources(text: str) -> object:
    """The sources of a notebook's non-empty cells, or the text itself if it is not a notebook."""
    try:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    except (ValueError, LookupError, TypeError):
        return text
    return [(kind, source) for kind, source in cells if source.strip()]


def _has_outputs(name: str, text: str) -> bool:
    """Whether it is a notebook with outputs."""
    return name.endswith(".ipynb") and any(cell.get("outputs") for cell in json.loads(text)["cells"])
