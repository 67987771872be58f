"""One Python module as a child process that neither hangs nor outlives us.

Both ends stand here. The parent starts `python -m jaccl_kernel.models.child MODULE …` in a process group of
its own, with a deadline, and kills the group when it is cancelled. The child holds a pipe from the parent:
when that ends, because the parent was killed, it kills its own group. Knows nothing of what the module
does.
"""

import asyncio
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

POLL = 0.05  # seconds between two looks whether it has ended
OUTPUT_LIMIT = 64 * 1024  # bytes of output that are kept: its end, where the reason of a failure stands


@dataclass(frozen=True)
class Finished:
    """How a child ended: its exit status (negative: the signal), and the end of stdout and stderr, mixed."""

    returncode: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line that is not empty, "" if it printed none."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


async def run_module(
    module: str, *arguments: str, folder: Path, deadline: float, env: Mapping[str, str] | None = None
) -> Finished:
    """Run `python -m module arguments…` to its end; what it leaves running ends with it.

    Args:
        module: as after `python -m`.
        arguments: its command line.
        folder: its working folder.
        deadline: seconds after which it is killed.
        env: variables to set besides our own.

    Raises:
        TimeoutError: the deadline passed; the child is dead.
        asyncio.CancelledError: as usual; the child is dead.
    """
    command = [sys.executable, "-m", "jaccl_kernel.models.child", module, *arguments]
    # A file, not a pipe: a pipe would stay open, and we would read on, while any grandchild lives.
    with tempfile.TemporaryFile() as output:
        process = _start(command, folder, {**os.environ, **(env or {})}, output)
        try:
            async with asyncio.timeout(deadline):
                while process.poll() is None:  # noqa: ASYNC110 - asyncio's own wait() also waits for pipes
                    await asyncio.sleep(POLL)
        finally:
            _end(process)
        return Finished(process.returncode, _tail(output))


def _start(
    command: Sequence[str], folder: Path, env: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # kept open and silent: its end tells the child that we are gone
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=env,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group; PermissionError is macOS's word for a group of zombies."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - OUTPUT_LIMIT, 0))
    return output.read().decode("utf-8", errors="replace")


def _die_with_parent() -> None:
    """End this process group when stdin ends. Nobody ever writes to it."""
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """The child's end: take the lifeline, then become the module that the command line names."""
    if os.getpgrp() != os.getpid():
        sys.exit("jaccl_kernel.models.child: started without a process group of its own")
    threading.Thread(target=_die_with_parent, name="lifeline", daemon=True).start()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
