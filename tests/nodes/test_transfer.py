"""A folder through this machine: whose disk ran full. For the routes see steps/sync/test_sync_ssh.py."""

import os
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import CommandFailed, NodeError
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.transfer import Route, push
from jaccl_kernel.nodes.tree import FileEntry, Tree
from tests.steps import copying

FULL = 'echo "rsync: write failed: No space left on device (28)" >&2; exit 11'


def mac(folder: Path, name: str, rsync: str) -> LocalNode:
    """A node whose rsync does this."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "m").mkdir()
    (folder / name / "bin" / "rsync").write_text(f"#!/bin/sh\n{rsync}\n")
    (folder / name / "bin" / "rsync").chmod(0o755)
    return LocalNode(name, folder / name, f"{folder / name / 'bin'}:{os.environ['PATH']}")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("way", copying.WAYS)
@pytest.mark.parametrize(("full", "error"), [("source", NodeError), ("target", CommandFailed)])
async def test_a_relay_names_the_full_disk(
    tmp_path: Path, full: str, error: type[NodeError], way: str
) -> None:
    real = f'exec {copying.program(way)} "$@"'
    source, target = (mac(tmp_path, one, FULL if one == full else real) for one in ("source", "target"))
    (tmp_path / "source" / "m" / "x").write_text("1")
    files = Tree({"x": FileEntry(1, 0)})
    folder, dest = str(tmp_path / "source" / "m"), str(tmp_path / "target" / "m")
    with pytest.raises(NodeError) as caught:
        await push(source, folder, target, dest, Route("relay"), files=files, deadline=60)
    assert type(caught.value) is error
    assert ("the disk of this machine is full" in caught.value.what) == (full == "source")
