"""The files of a simulated Mac: its commands in `bin`, and its changes in `.rehearsal`.

The hostfile describes a Mac. Commands that the user runs on it to change it are stored here as command lines
and applied to that description until a restart.
"""

import contextlib
import fcntl
import hashlib
import json
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.rehearsal import changes
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.plan import RehearsalPlan
from jaccl_kernel.rehearsal.scripts import MARK, scripts


@dataclass(frozen=True)
class MacFolder:
    """The home folder of one simulated Mac."""

    home: Path

    @property
    def commands(self) -> Path:
        """The folder of its commands."""
        return self.home / "bin"

    @property
    def models(self) -> Path:
        """The folder of its models."""
        return self.home / "models"

    @property
    def state(self) -> Path:
        """The folder of the rehearsal's own state."""
        return self.home / ".rehearsal"

    def prepare(self, plan: RehearsalPlan, spec: ClusterSpec, node: int) -> None:
        """Write the Mac's commands if they are missing or belong to another description.

        Args:
            plan: the rehearsal, stored for later changes by commands.
            spec: the plan's cluster.
            node: the index of this Mac.

        Raises:
            OSError: the folder cannot be written.
        """
        self.models.mkdir(parents=True, exist_ok=True)
        self.commands.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        made = self._scripts(spec, node)
        description = {"plan": plan.to_json(), "node": node, "digest": _digest(made)}
        if self._stored() == description and made.keys() <= {path.name for path in self.commands.iterdir()}:
            return
        with self._locked():
            self._write_all(made, description)

    def change(self, line: Sequence[str]) -> None:
        """Apply a command line that changes this Mac; later scans show the result.

        Raises:
            InputError: the tool rejects the command line; `what` is its error message.
            JacclError: the folder is not the home of a simulated Mac.
        """
        with self._locked():
            stored = self._stored()
            if stored is None:
                raise JacclError("not the home of a simulated Mac", where=str(self.home))
            plan, node, done = stored["plan"], stored["node"], self.changes()
            spec = RehearsalPlan(tuple(plan["macs"]), tuple(plan["faults"])).spec()
            changes.change(changes.after(spec, node, done), node, line)
            text = "".join(f"{shlex.join(one)}\n" for one in (*done, line))
            _write(self.state / "changes", text)
            made = self._scripts(spec, node)
            self._write_all(made, {**stored, "digest": _digest(made)})

    def changes(self) -> list[list[str]]:
        """The command lines that changed this Mac since its last restart."""
        try:
            text = (self.state / "changes").read_text("utf-8")
        except FileNotFoundError:
            return []
        return [shlex.split(line) for line in text.splitlines()]

    def restart(self) -> None:
        """Discard the changes, as a reboot of macOS does; call `prepare` afterwards."""
        (self.state / "changes").unlink(missing_ok=True)

    def _scripts(self, spec: ClusterSpec, node: int) -> dict[str, str]:
        return scripts(changes.after(spec, node, self.changes()), node, self.home, sys.executable)

    def _stored(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads((self.state / "mac.json").read_text("utf-8"))
            return stored if isinstance(stored, dict) else None
        return None

    def _write_all(self, made: dict[str, str], description: dict[str, Any]) -> None:
        """Write the commands, remove those of an earlier description, then write the description."""
        for name, text in made.items():
            _write(self.commands / name, text, mode=0o755)
        for path in self.commands.iterdir():
            if path.name not in made and path.is_file() and path.read_bytes().startswith(MARK.encode()):
                path.unlink()
        _write(self.state / "mac.json", json.dumps(description))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.state / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _digest(made: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file atomically, since a command may run at the same time."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    scratch.write_text(text, "utf-8")
    scratch.chmod(mode)
    scratch.replace(path)
