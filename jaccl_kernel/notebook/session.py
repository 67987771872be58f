"""The choices that all notebooks share across kernels: hostfile, model, interpreter. One JSON file.

It is in the cache folder. Without a choice, the notebooks use the rehearsal.
"""

import json
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from jaccl_kernel.core.files import write_text
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import homes

REHEARSAL_MACS = 4
FOLLOW_S = 0.5  # between two looks at the files

_log = logging.getLogger(__name__)
_followers: list["weakref.WeakMethod[Callable[[], object]]"] = []
_followers_lock = threading.Lock()


@dataclass(frozen=True)
class Session:
    """The choices.

    Attributes:
        hostfile: an absolute path, or None for the rehearsal.
        model: a folder or a hub id, or None for the demo model.
        python: the interpreter on every Mac (the environment that notebook 02 proved last); None for this
            one.
    """

    hostfile: str | None = None
    model: str | None = None
    python: str | None = None


def session_file() -> Path:
    """The file of the choices."""
    return cache_dir() / "session.json"


def read() -> Session:
    """The present choices; an unreadable file counts as no choice."""
    try:
        stored = json.loads(session_file().read_text(encoding="utf-8"))
        names = (field.name for field in fields(Session))
        return Session(**{name: stored[name] for name in names if isinstance(stored.get(name), str)})
    except (OSError, ValueError, AttributeError):
        return Session()


def choose_hostfile(path: str | os.PathLike[str] | None) -> Hostfile:
    """Choose the hostfile of all notebooks (None: the rehearsal), and return it.

    Raises:
        HostfileError: it cannot be read or is invalid; the old choice remains.
        JacclError: the choice cannot be saved.
    """
    if path is None:
        _write(replace(read(), hostfile=None))
        return rehearsal()
    absolute = Path(path).expanduser().resolve()
    found = Hostfile.read(absolute)
    _write(replace(read(), hostfile=str(absolute)))
    return found


def choose_model(model: str | None) -> None:
    """Choose the model of all notebooks (a folder or a hub id; None: the demo model).

    Raises:
        JacclError: the choice cannot be saved.
    """
    _write(replace(read(), model=model))


def choose_python(python: str | None) -> None:
    """Choose the interpreter on the Macs for all notebooks.

    Raises:
        JacclError: the choice cannot be saved.
    """
    _write(replace(read(), python=python))


def python_for(hostfile: Hostfile) -> str | None:
    """The chosen interpreter; None (this one) for simulated Macs, which have no other."""
    return None if homes.is_rehearsal(hostfile) else read().python


def current() -> Hostfile:
    """The chosen hostfile, read from its file, or the rehearsal's.

    Raises:
        HostfileError: the chosen file is missing or invalid.
    """
    chosen = read().hostfile
    return Hostfile.read(chosen) if chosen else rehearsal()


def follow(changed: Callable[[], object]) -> None:
    """Call a method after every change of the choices or of the chosen hostfile, by any process.

    It is called on a thread of its own, at most `FOLLOW_S` after the change, for as long as its object lives.
    """
    with _followers_lock:
        _followers.append(weakref.WeakMethod(changed))
        if len(_followers) == 1:
            threading.Thread(target=_follow, args=(_stamp(),), name="jaccl session", daemon=True).start()


def _follow(seen: tuple[object, ...]) -> None:
    pause = threading.Event()
    while True:
        pause.wait(FOLLOW_S)
        with _followers_lock:
            _followers[:] = [one for one in _followers if one() is not None]
            if not _followers:
                return  # the next follower starts a new thread
            calls = [one() for one in _followers]
        if (now := _stamp()) == seen:
            continue
        seen = now
        for call in calls:
            try:
                if call is not None:
                    call()
            except Exception:
                _log.exception("a panel cannot follow the choices")


def _stamp() -> tuple[object, ...]:
    """What changes with the choices or the chosen hostfile."""
    files = [session_file()]
    if chosen := read().hostfile:
        files.append(Path(chosen))
    elif folder := hostfiles_folder():
        files.append(folder / "rehearsal.json")
    return tuple((str(path), *_state(path)) for path in files)


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def rehearsal() -> Hostfile:
    """The rehearsal's hostfile: `hostfiles/rehearsal.json` if it exists, else four simulated Macs."""
    folder = hostfiles_folder()
    if folder and (path := folder / "rehearsal.json").exists():
        return Hostfile.read(path)
    return homes.make_hostfile(REHEARSAL_MACS)


def hostfiles_folder() -> Path | None:
    """The `hostfiles` folder beside the notebooks: in the working directory or above it, else the clone's."""
    here = Path.cwd()
    clone = Path(__file__).resolve().parents[2]
    return next(
        (found for base in (here, *here.parents, clone) if (found := base / "hostfiles").is_dir()), None
    )


def hostfiles() -> list[Path]:
    """The user's hostfiles in that folder, without the templates and the rehearsal's."""
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
