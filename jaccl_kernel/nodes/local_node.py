"""This machine as a node, or a simulated Mac on it with its own home folder and PATH."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaccl_kernel.core import process
from jaccl_kernel.core.errors import NodeError
from jaccl_kernel.nodes import rsync
from jaccl_kernel.nodes.node import Launch, Node, create_folder


class LocalNode(Node):
    """This machine, or a simulated Mac on it with its own home folder and PATH.

    Args:
        name: the name in reports and errors.
        home: its HOME, in which commands start; ours if None.
        path: its PATH; ours if None.
        env: additional environment variables.
    """

    def __init__(
        self,
        name: str,
        home: Path | None = None,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name)
        self.home = (home or Path.home()).absolute()
        own_path = {} if path is None else {"PATH": path}
        self._env = {"HOME": str(self.home), **own_path, **(env or {})}

    def has(self, program: str) -> bool:
        """Whether the program is in PATH."""
        return shutil.which(program, path=self._env.get("PATH")) is not None

    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> Launch:
        return Launch(process.guarded(argv, input_size), {**os.environ, **self._env, **env}, self.home)

    def _not_started(self, error: OSError, shown: str) -> NodeError:
        return NodeError(f"cannot start `{shown}` in {self.home}: {error}", where=self.where)

    def _rsync_path(self, folder: str, *, create: bool) -> tuple[list[str], str]:
        path = self.home / rsync.relative_to_home(folder)
        return [], f"{create_folder(path, self.where) if create else path}/"

    def _copier(self) -> "LocalNode":
        return self
