"""What the notebooks agree on and keep across kernels: hostfile, model, interpreter. One small JSON file.

It lies in the cache folder: a choice can be made again. With nothing chosen, it is the rehearsal.
"""

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.saved import write_text

REHEARSAL_MACS = 4


@dataclass(frozen=True)
class Session:
    """The choices.

    Attributes:
        hostfile: an absolute path, or None for the rehearsal.
        model: a folder or a hub id, or None for the demo model.
        python: every Mac's interpreter, of the environment that notebook 02 proved last; None for this one.
    """

    hostfile: str | None = None
    model: str | None = None
    python: str | None = None


def session_file() -> Path:
    """Where the choices are kept."""
    return cache_dir() / "session.json"


def read() -> Session:
    """The choices as they were made last; those of a file that cannot be read count as not made."""
    try:
        told = json.loads(session_file().read_text(encoding="utf-8"))
        names = (field.name for field in fields(Session))
        return Session(**{name: told[name] for name in names if isinstance(told.get(name), str)})
    except (OSError, ValueError, AttributeError):
        return Session()


def choose_hostfile(path: str | os.PathLike[str] | None) -> Hostfile:
    """Take this hostfile (None: the rehearsal) in all notebooks from now on, and return it.

    Raises:
        HostfileError: it cannot be read, or is not one; the old choice stays.
        JacclError: the choice cannot be kept.
    """
    if path is None:
        _write(replace(read(), hostfile=None))
        return rehearsal()
    absolute = Path(path).expanduser().resolve()
    found = Hostfile.read(absolute)
    _write(replace(read(), hostfile=str(absolute)))
    return found


def choose_model(model: str | None) -> None:
    """Take this model (a folder or a hub id; None: the demo model) in all notebooks from now on.

    Raises:
        JacclError: the choice cannot be kept.
    """
    _write(replace(read(), model=model))


def choose_python(python: str | None) -> None:
    """Take this interpreter on the Macs in all notebooks from now on.

    Raises:
        JacclError: the choice cannot be kept.
    """
    _write(replace(read(), python=python))


def python_for(hostfile: Hostfile) -> str | None:
    """The interpreter that was chosen; None, which is this one, for simulated Macs: they have no other."""
    return None if homes.is_rehearsal(hostfile) else read().python


def current() -> Hostfile:
    """The hostfile that was chosen, read afresh; the rehearsal's when none was.

    Raises:
        HostfileError: the chosen file is gone, or is no hostfile any more.
    """
    chosen = read().hostfile
    return Hostfile.read(chosen) if chosen else rehearsal()


def rehearsal() -> Hostfile:
    """The rehearsal's hostfile: `hostfiles/rehearsal.json` where there is one, else four made-up Macs."""
    folder = hostfiles_folder()
    if folder and (path := folder / "rehearsal.json").exists():
        return Hostfile.read(path)
    return homes.make_hostfile(REHEARSAL_MACS)


def hostfiles_folder() -> Path | None:
    """The `hostfiles` folder beside the notebooks: in the working folder or above it, else the clone's."""
    here = Path.cwd()
    clone = Path(__file__).resolve().parents[2]
    return next(
        (found for base in (here, *here.parents, clone) if (found := base / "hostfiles").is_dir()), None
    )


def hostfiles() -> list[Path]:
    """The user's hostfiles there, without the templates and the rehearsal's."""
    folder = hostfiles_folder()
    if folder is None:
        return []
    return sorted(
        path.resolve()
        for path in folder.glob("*.json")
        if path.name != "rehearsal.json" and not path.name.endswith(".template.json")
    )


def _write(session: Session) -> None:
    write_text(session_file(), json.dumps(asdict(session), indent=1))
