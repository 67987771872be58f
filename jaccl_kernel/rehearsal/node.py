"""The node of a simulated Mac: local processes, or a simulated ssh error if the Mac is unreachable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.core.errors import NodeUnreachable
from jaccl_kernel.nodes import ssh
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Completed


class SimulatedNode(LocalNode):
    """A simulated Mac. Like an `SshNode`, it has a `host`, which is its name.

    Args:
        name: the name in reports and errors.
        home: its home folder.
        env: the environment variables of its commands, including PATH.
        ssh_error: ssh's error message if the Mac is unreachable, else None.
    """

    def __init__(self, name: str, home: Path, env: Mapping[str, str], ssh_error: str | None = None) -> None:
        super().__init__(name, home=home, path=env.get("PATH"), env=env)
        self.host = name
        self._ssh_error = ssh_error

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """As `Node.run`; copies use it too."""
        if self._ssh_error is None:
            return await super().run(argv, **options)
        diagnosis = ssh.explain(self._ssh_error, self.host)
        what, fix = (diagnosis.what, diagnosis.fix) if diagnosis else (self._ssh_error, "")
        raise NodeUnreachable(f"cannot run `{argv[0]}`: {what}", where=self.where, fix=fix)
