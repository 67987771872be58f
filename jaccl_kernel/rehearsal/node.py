"""The way to a simulated Mac: a process on this machine, or ssh's own refusal if its description says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaccl_kernel.cluster import ssh
from jaccl_kernel.cluster.shell import Completed, LocalNode
from jaccl_kernel.errors import NodeUnreachable


class SimulatedNode(LocalNode):
    """A simulated Mac. Like a real one behind ssh it has a `host`: its name.

    Args:
        name: what reports and errors call it.
        home: its home.
        env: what its commands find in their environment, PATH among it.
        refusal: what ssh says when it cannot reach it; None if it can.
    """

    def __init__(self, name: str, home: Path, env: Mapping[str, str], refusal: str | None = None) -> None:
        super().__init__(name, home=home, path=env.get("PATH"), env=env)
        self.host = name
        self._refusal = refusal

    async def run(self, argv: Sequence[str], **options: Any) -> Completed:
        """As any node's `run`; copies come this way too."""
        if self._refusal is None:
            return await super().run(argv, **options)
        trouble = ssh.explain(self._refusal, self.host)
        what, fix = (trouble.what, trouble.fix) if trouble else (self._refusal, "")
        raise NodeUnreachable(f"`{argv[0]}` was not run: {what}", where=self.where, fix=fix)
