"""A simulated Mac on disk: its commands in `bin`, and below `.rehearsal` what was changed on it, and how.

A Mac is described by its hostfile; what people then did to it with its own commands is kept here as command
lines, and put on top of that description until it is restarted.
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

from jaccl_kernel.errors import JacclError
from jaccl_kernel.rehearsal import changes
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.plan import Plan
from jaccl_kernel.rehearsal.scripts import MARK, scripts


@dataclass(frozen=True)
class MacFolder:
    """The home of one simulated Mac."""

    home: Path

    @property
    def commands(self) -> Path:
        """Its commands."""
        return self.home / "bin"

    @property
    def models(self) -> Path:
        """Its models."""
        return self.home / "models"

    @property
    def state(self) -> Path:
        """What the rehearsal itself keeps here."""
        return self.home / ".rehearsal"

    def prepare(self, plan: Plan, spec: ClusterSpec, node: int) -> None:
        """Write the Mac's commands if they are not there, or answer for another description.

        Args:
            plan: the rehearsal, kept here for what is typed on the Mac.
            spec: the plan's cluster.
            node: which of its Macs this is.

        Raises:
            OSError: the folder cannot be written.
        """
        self.models.mkdir(parents=True, exist_ok=True)
        self.commands.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        made = self._scripts(spec, node)
        told = {"plan": plan.to_json(), "node": node, "digest": _digest(made)}
        if self._kept() == told and made.keys() <= {path.name for path in self.commands.iterdir()}:
            return
        with self._locked():
            self._write_all(made, told)

    def change(self, line: Sequence[str]) -> None:
        """Do to this Mac what a command line that is typed there does; later scans show it.

        Raises:
            InputError: the tool refuses; `what` is what it says.
            JacclError: this is not the home of a simulated Mac.
        """
        with self._locked():
            kept = self._kept()
            if kept is None:
                raise JacclError("is not the home of a simulated Mac", where=str(self.home))
            plan, node, done = kept["plan"], kept["node"], self.changes()
            spec = Plan(tuple(plan["macs"]), tuple(plan["faults"])).spec()
            changes.change(changes.after(spec, node, done), node, line)
            text = "".join(f"{shlex.join(one)}\n" for one in (*done, line))
            _write(self.state / "changes", text)
            made = self._scripts(spec, node)
            self._write_all(made, {**kept, "digest": _digest(made)})

    def changes(self) -> list[list[str]]:
        """The command lines that changed this Mac since it was last restarted."""
        try:
            text = (self.state / "changes").read_text("utf-8")
        except FileNotFoundError:
            return []
        return [shlex.split(line) for line in text.splitlines()]

    def restart(self) -> None:
        """Forget the changes, as macOS forgets them at a reboot; `prepare` must follow."""
        (self.state / "changes").unlink(missing_ok=True)

    def _scripts(self, spec: ClusterSpec, node: int) -> dict[str, str]:
        return scripts(changes.after(spec, node, self.changes()), node, self.home, sys.executable)

    def _kept(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads((self.state / "mac.json").read_text("utf-8"))
            return kept if isinstance(kept, dict) else None
        return None

    def _write_all(self, made: dict[str, str], description: dict[str, Any]) -> None:
        """Write the commands, take away those of an earlier description, and say what they are, last."""
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
    """Replace the file: a command that runs meanwhile is the old one or the new one, whole."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    scratch.write_text(text, "utf-8")
    scratch.chmod(mode)
    scratch.replace(path)
