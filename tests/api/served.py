"""A real server of two ranks, as `jaccl serve` starts it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from jaccl_kernel.launch import ports
from jaccl_kernel.rehearsal.homes import make_hostfile
from tests.conftest import GONE_DEADLINE_S


class Server:
    """The URL of a running server, and what its ranks say."""

    def __init__(self, url: str, process: "subprocess.Popen[str]") -> None:
        self.url = url
        self.process = process
        self.client = httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=100))

    def post(self, body: Any, path: str = "/v1/completions") -> httpx.Response:
        return self.client.post(path, json=body)

    def text(self, **body: Any) -> str:
        answer = self.post({"prompt": "Hello"} | body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/status").json())

    def settled(self) -> dict[str, Any]:
        """The status once nothing runs and every rank has reported the same last step."""
        end = time.monotonic() + 120
        while True:
            status = self.status()
            marks = [rank["mark"] for rank in status["ranks"]]
            if not status["running"] and not status["queued"] and marks[0] == marks[1]:
                return status
            assert time.monotonic() < end, status
            time.sleep(0.1)

    def ranks(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in children if one.cmdline()[1:3] == ["-m", "jaccl_kernel.ranks"]]


@contextlib.contextmanager
def serve(model: Path, folder: Path, *options: str) -> Iterator[Server]:
    """`jaccl serve` on two ranks; nothing of it is left afterwards."""
    make_hostfile(2).write(folder / "hostfile.json")
    port = ports.choose(2)
    command = [sys.executable, "-m", "jaccl_kernel.cli", "serve", str(folder / "hostfile.json"), *options]
    command += ["--model", str(model), f"--port={port}", f"--ctrl-port={port + 1}", "--prefill-step=64"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert any(f":{port}/v1" in line for line in process.stderr)
    one = Server(f"http://127.0.0.1:{port}", process)
    ranks = one.ranks()
    try:
        yield one
    finally:
        one.client.close()
        process.terminate()
        process.communicate(timeout=60)
        gone, left = psutil.wait_procs(ranks, timeout=GONE_DEADLINE_S)
        for rank in left:
            rank.kill()
        assert len(gone) == 2
