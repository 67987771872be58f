"""The launcher as its starter sees it: a child that speaks JSON lines. For tests of the launcher alone."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Self

from jaccl_kernel.jobs.ports import choose


class Launcher:
    """A launcher with `ranks` local ranks that run a Python script given as text."""

    def __init__(self, folder: Path, script: str, ranks: int = 2, **popen: Any) -> None:
        (folder / "rank.py").write_text(textwrap.dedent(script), encoding="utf-8")
        host = {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}
        (folder / "hosts.json").write_text(json.dumps([host] * ranks))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jaccl_kernel.jobs.launcher", "--backend", "ring"),
                *("--hostfile", str(folder / "hosts.json"), "--python", sys.executable),
                *("--starting-port", str(choose(ranks)), "--", str(folder / "rank.py")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # closes its pipes
            self.process.kill()

    def order(self, **order: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def until_text(self, text: str, count: int = 1) -> None:
        """Read records until `count` ranks have written this line."""
        assert self.process.stdout
        while sum(record.get("text") == text for record in self.records) < count:
            line = self.process.stdout.readline()
            assert line, f"ended before {text!r}: {self.records}"
            self.records.append(json.loads(line))

    def finish(self) -> int:
        """Take the rest of its output and wait for its end; the exit status."""
        assert self.process.stdout
        self.records += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(timeout=20)

    def texts(self, rank: int, stream: str) -> list[str]:
        return [r["text"] for r in self.records if r.get("rank") == rank and r.get("stream") == stream]

    def exits(self) -> dict[int, int]:
        return {r["rank"]: r["exit"] for r in self.records if "exit" in r}


def send_signal(launcher: Launcher, name: str) -> None:
    launcher.process.send_signal(getattr(signal, name))
