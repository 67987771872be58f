"""`jaccl lab`, really started."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.launch import ports
from tests.lab import Lab, own_environment, wait_until_it_answers

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_sigterm_ends_jupyterlab_itself_and_nothing_is_left(tmp_path: Path) -> None:
    """`jaccl lab` becomes JupyterLab: there is no process between the two that could be ended alone."""
    port, token, log = ports.choose(1), "a-token-of-the-test", tmp_path / "lab.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("jaccl")), "lab", "--no-browser"),
                *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
            ],
            env=own_environment(tmp_path) | {"JUPYTER_TOKEN": token},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        wait_until_it_answers(Lab(f"http://127.0.0.1:{port}", token, tmp_path, process, log))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert b"received signal 15, stopping" in log.read_bytes()
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free again
