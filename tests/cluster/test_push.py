"""A folder through this machine: whose disk ran full. The ways themselves: tests/steps/test_sync_ssh.py.

Run: pytest tests/cluster/test_push.py
"""

import os
from pathlib import Path

import pytest

from jaccl_kernel.cluster.push import push
from jaccl_kernel.cluster.routes import Route
from jaccl_kernel.cluster.shell import LocalNode
from jaccl_kernel.cluster.tree import FileEntry, Tree
from jaccl_kernel.errors import CommandFailed, NodeError

FULL = 'echo "rsync: write failed: No space left on device (28)" >&2; exit 11'


def mac(folder: Path, name: str, rsync: str) -> LocalNode:
    """A node whose rsync does this."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "m").mkdir()
    (folder / name / "bin" / "rsync").write_text(f"#!/bin/sh\n{rsync}\n")
    (folder / name / "bin" / "rsync").chmod(0o755)
    return LocalNode(name, folder / name, f"{folder / name / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(("full", "error"), [("source", NodeError), ("target", CommandFailed)])
async def test_a_relay_tells_whose_disk_ran_full(tmp_path: Path, full: str, error: type[NodeError]) -> None:
    real = 'exec /usr/bin/rsync "$@"'
    source, target = (mac(tmp_path, one, FULL if one == full else real) for one in ("source", "target"))
    (tmp_path / "source" / "m" / "x").write_text("1")
    files = Tree({"x": FileEntry(1, 0)})
    folder, dest = str(tmp_path / "source" / "m"), str(tmp_path / "target" / "m")
    with pytest.raises(NodeError) as caught:
        await push(source, folder, target, dest, Route("relay"), files=files, deadline=30)
    assert type(caught.value) is error
    assert ("the disk of this machine ran full" in caught.value.what) == (full == "source")
