"""The launcher as its parent process sees it: a child that exchanges JSON lines, for tests without `Job`."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Self

from jaccl_kernel.launch.ports import choose
from jaccl_kernel.launch.records import RECORDS, Ended, Output, Record


class Launcher:
    """A launcher with `ranks` local ranks that run a Python script given as text."""

    def __init__(self, folder: Path, script: str, ranks: int = 2, **popen: Any) -> None:
        (folder / "rank.py").write_text(textwrap.dedent(script), encoding="utf-8")
        host = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}
        (folder / "hosts.json").write_text(json.dumps([host] * ranks))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jaccl_kernel.launch.launcher", "--backend", "ring"),
                *("--hostfile", str(folder / "hosts.json"), "--python", sys.executable),
                *("--starting-port", str(choose(ranks)), "--", str(folder / "rank.py")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.records: list[Record | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # closes its pipes
            self.process.kill()

    def order(self, order: Record) -> None:
        assert self.process.stdin
        self.process.stdin.write(RECORDS.dumps(order) + "\n")
        self.process.stdin.flush()

    def until_text(self, text: str, count: int = 1) -> None:
        """Read records until `count` ranks have written this line."""
        assert self.process.stdout
        while sum(isinstance(one, Output) and one.text == text for one in self.records) < count:
            line = self.process.stdout.readline()
            assert line, f"ended before {text!r}: {self.records}"
            self.records.append(RECORDS.loads(line))

    def finish(self) -> int:
        """Read the remaining output, wait for the launcher to exit and return its status."""
        assert self.process.stdout
        self.records += [RECORDS.loads(line) for line in self.process.stdout]
        return self.process.wait(timeout=60)

    def texts(self, rank: int, stream: str) -> list[str]:
        written = [one for one in self.records if isinstance(one, Output)]
        return [one.text for one in written if (one.rank, one.stream) == (rank, stream)]

    def exits(self) -> dict[int, int]:
        return {one.rank: one.returncode for one in self.records if isinstance(one, Ended)}


def send_signal(launcher: Launcher, name: str) -> None:
    launcher.process.send_signal(getattr(signal, name))
