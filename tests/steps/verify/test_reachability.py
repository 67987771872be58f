"""A listener at rank 0's address, and calls to it."""

import asyncio
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from jaccl_kernel.launch.ports import FIRST, LAST
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.rehearsal import plan
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.verify import live_checks
from jaccl_kernel.steps.verify.reachability import Endpoint, check_endpoint
from jaccl_kernel.topology.wiring import build_wiring
from tests.sshd import start_macs, wait_for
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


def node_with_python(home: Path, script: str) -> LocalNode:
    """A node whose python3 is this script."""
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return LocalNode(home.name, home=home, path=f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")


async def test_a_caller_that_gets_no_answer_is_named(tmp_path: Path) -> None:
    """Rank 0 says that it listens, and does not: as behind a firewall, the others do not get through."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: every call is refused
        deaf = f"echo listening {closed.getsockname()[1]}; exec sleep 600"
        nodes = [node_with_python(tmp_path / "mac1", deaf)]
        nodes.append(node_with_python(tmp_path / "mac2", f'exec {sys.executable} "$@"'))
        problems = await check_endpoint(Endpoint(0, "127.0.0.1", (1,)), nodes, ["mac1", "mac2"], "python3")
    assert [problem.where for problem in problems] == ["mac2"]
    assert "Cannot reach mac1 at 127.0.0.1: Connection refused" in problems[0].message


async def test_another_server_is_not_accepted_as_rank_0(tmp_path: Path) -> None:
    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        nodes = [node_with_python(tmp_path / "mac1", f"echo listening {port}; exec sleep 600")]
        nodes.append(node_with_python(tmp_path / "mac2", f'exec {sys.executable} "$@"'))
        problems = await check_endpoint(Endpoint(0, "127.0.0.1", (1,)), nodes, ["mac1", "mac2"], "python3")
    assert "another program answered" in problems[0].message


async def test_the_ports_that_jobs_start_from_are_never_touched() -> None:
    """A stray connection to JACCL's port ends rank 0: servers at the first of them see none."""
    with ExitStack() as stack:
        servers = []
        for port in range(FIRST, FIRST + 8):
            server = stack.enter_context(socket.socket())
            try:
                server.bind(("127.0.0.1", port))
            except OSError:  # a job of another test has it
                continue
            server.listen()
            server.setblocking(False)
            servers.append(server)
        hostfile = configured(3)
        cluster, nodes = Cluster.of(hostfile), build_wiring(seen(hostfile))
        judged = plan.as_if_real(hostfile)
        found = await live_checks.coordinator(cluster, judged, nodes, backend="jaccl", python="python3")
        assert found.verdict == "ok", found.cause
        assert servers
        for server in servers:
            with pytest.raises(BlockingIOError):
                server.accept()


async def test_the_listener_takes_no_port_that_jobs_start_from(tmp_path: Path) -> None:
    """Linux hands out ports of that range too: the listener goes on until it has another."""
    said = tmp_path / "said"
    script = f'{sys.executable} "$@" | tee -a {said}'
    nodes = [node_with_python(tmp_path / "mac1", script)]
    nodes.append(node_with_python(tmp_path / "mac2", f'exec {sys.executable} "$@"'))
    for _ in range(5):
        assert await check_endpoint(Endpoint(0, "127.0.0.1", (1,)), nodes, ["mac1", "mac2"], "python3") == []
    ports = [int(line.split()[1]) for line in said.read_text().splitlines()]
    assert len(ports) == 5
    assert not [port for port in ports if FIRST <= port <= LAST]


@pytest.mark.sshd
async def test_over_real_ssh_the_macs_connect_and_no_process_remains(tmp_path: Path) -> None:
    with start_macs(tmp_path / "macs", ("mac1", "mac2", "mac3")) as macs:
        names = list(macs.by_name)
        nodes = [SshNode(name, options=macs.options) for name in names]
        assert await check_endpoint(Endpoint(0, "127.0.0.1", (1, 2)), nodes, names, sys.executable) == []
        (problem,) = await check_endpoint(Endpoint(0, "192.0.2.7", (1, 2)), nodes, names, sys.executable)
        assert problem.code == "coordinator-not-own"
        macs.stop("mac3")
        problems = await check_endpoint(Endpoint(0, "127.0.0.1", (1, 2)), nodes, names, sys.executable)
        assert [(one.where, one.code) for one in problems] == [("mac3", "untested")]
        wait_for(lambda: not macs.running(), "the listeners to end")
