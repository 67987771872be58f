"""Simulated Macs on disk: commands, and what is typed on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.events import SmokeResult
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.run import run
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.nodes.node import Completed
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.rehearsal.plan import make_hostfile, runnable, with_changes
from jaccl_kernel.steps.cluster import Cluster

pytestmark = pytest.mark.usefixtures("nothing_left")


async def typed(cluster: Cluster, line: str, node: int = 0) -> Completed:
    """A line that a person types on a simulated Mac."""
    return await cluster.nodes[node].script(line, deadline=60, check=False)


async def said(cluster: Cluster, line: str, node: int = 0) -> str:
    return (await typed(cluster, line, node)).stdout


async def test_a_mac_answers_in_its_own_name() -> None:
    cluster = Cluster.of(make_hostfile(3))
    for node in range(3):
        assert await said(cluster, "hostname", node) == f"mac{node + 1}.local\n"
        assert (
            await said(cluster, 'echo "$HOME"; uname', node)
            == f"{homes.macs(cluster.hostfile)[node].home}\nDarwin\n"
        )


async def test_an_unsupported_command_line_is_reported() -> None:
    done = await typed(Cluster.of(make_hostfile(1)), "sw_vers --nonsense")
    assert done.returncode == 64
    assert "not supported in a rehearsal: sw_vers --nonsense" in done.stderr


async def test_a_failing_command_speaks_on_stderr() -> None:
    done = await typed(Cluster.of(make_hostfile(2)), "ifconfig bridge0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ifconfig: interface bridge0 does not exist\n"


async def test_python_reports_the_described_versions_and_runs_our_interpreter() -> None:
    cluster = Cluster.of(make_hostfile(2, ["version-skew:2"]))
    for name in ("python3", "python"):
        line = f"{name} -c 'import sys; print(sys.prefix, sys.argv[1:])' 'a b' \"it's\""
        assert await said(cluster, line) == f"{sys.prefix} ['a b', \"it's\"]\n"
    assert homes.macs(cluster.hostfile)[1].python.exists()


async def test_changing_the_network_needs_root() -> None:
    cluster = Cluster.of(make_hostfile(2))
    before = await said(cluster, "ifconfig en3")
    for line in ("ifconfig en3 inet 10.9.9.9", "route add 10.9.9.8 -interface en3", "sysctl -w x=1"):
        done = await typed(cluster, line)
        assert done.returncode == 1
        assert done.stderr
    assert await said(cluster, "ifconfig en3") == before


async def test_what_sudo_changes_shows_and_its_undo_takes_it_back() -> None:
    cluster = Cluster.of(make_hostfile(2, ["bridged-port:1"]))
    before = await said(cluster, "ifconfig -a; ibv_devinfo -v")
    assert "::ffff:" not in before
    apply = (
        "sudo -n ifconfig bridge0 deletem en3 && "
        "sudo -n /sbin/ifconfig en3 inet 192.168.9.1 netmask 255.255.255.252"
    )
    assert (await typed(cluster, apply)).returncode == 0
    assert "::ffff:192.168.9.1" in await said(cluster, "ibv_devinfo -v")
    again = Cluster.of(cluster.hostfile)  # as the next step makes it
    assert "::ffff:192.168.9.1" in await said(again, "ibv_devinfo -v")
    assert "::ffff:192.168.9.1" not in await said(again, "ibv_devinfo -v", node=1)
    undo = "ifconfig en3 inet 192.168.9.1 -alias; ifconfig bridge0 addm en3"
    assert (await typed(again, f"echo '{undo}' >undo.sh; sudo sh undo.sh")).returncode == 0
    assert await said(again, "ifconfig -a; ibv_devinfo -v") == before


async def test_a_refused_change_leaves_everything() -> None:
    cluster = Cluster.of(make_hostfile(2))
    done = await typed(cluster, "sudo ifconfig en9 inet 10.9.9.9")
    assert (done.returncode, done.stderr) == (1, "ifconfig: interface en9 does not exist\n")
    assert homes.macs(cluster.hostfile)[0].changes() == []


async def test_sudo_runs_nothing_of_this_machine() -> None:
    cluster = Cluster.of(make_hostfile(1))
    done = await typed(cluster, "touch kept; sudo -n rm kept; sudo -v && sudo -u root true && ls kept")
    assert "not supported in a rehearsal: rm kept" in done.stderr
    assert done.stdout == "kept\n"


async def test_rdma_cannot_be_enabled_from_a_running_mac() -> None:
    cluster = Cluster.of(make_hostfile(2, ["rdma-off:1"]))
    for line in ("rdma_ctl enable", "sudo rdma_ctl enable"):
        done = await typed(cluster, line)
        assert done.returncode == 1
        assert "Recovery" in done.stderr
    mended = Cluster.of(with_changes(cluster.hostfile, fix=["rdma-off:1"]))
    assert await said(mended, "rdma_ctl status") == "enabled\n"


async def test_another_description_replaces_the_commands_and_keeps_the_rest() -> None:
    healthy = make_hostfile(2)
    cluster = Cluster.of(healthy)
    await typed(cluster, "sudo ifconfig en3 inet 10.9.9.9; echo mine >bin/mine; echo mine >notes")
    slow = Cluster.of(with_changes(healthy, add=["hang:1:df"]))
    assert "10.9.9.9" in await said(slow, "ifconfig en3")
    mac = homes.macs(healthy)[0]
    assert (mac.commands / "df").exists()
    Cluster.of(healthy)
    assert not (mac.commands / "df").exists()
    assert (mac.commands / "mine").exists()
    assert (mac.home / "notes").exists()


async def test_a_restart_forgets_what_was_typed() -> None:
    cluster = Cluster.of(make_hostfile(2))
    before = await said(cluster, "ifconfig -a")
    await typed(cluster, "sudo ifconfig en3 inet 10.9.9.9")
    homes.prepare(cluster.hostfile, restart=True)
    assert await said(cluster, "ifconfig -a") == before


def test_macs_that_stand_are_not_written_again() -> None:
    hostfile = make_hostfile(4)
    commands = [mac.commands / "ifconfig" for mac in homes.prepare(hostfile)]
    stamps = [command.stat().st_ino for command in commands]
    homes.prepare(hostfile)
    assert [command.stat().st_ino for command in commands] == stamps
    commands[0].unlink()
    homes.prepare(hostfile)
    assert commands[0].exists()


def test_a_damaged_note_of_our_own_is_written_anew() -> None:
    mac = homes.prepare(make_hostfile(1))[0]
    (mac.state / "mac.json").write_text("{")
    homes.prepare(make_hostfile(1))
    assert json.loads((mac.state / "mac.json").read_text())["node"] == 0


def test_unwritable_homes_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JACCL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(JacclError, match="cannot create the homes") as caught:
        homes.prepare(make_hostfile(1))
    assert "JACCL_CACHE" in caught.value.fix


def test_every_command_is_a_script_that_sh_takes() -> None:
    for mac in homes.prepare(make_hostfile(4, ["asleep:2", "hang:3:df", "bridged-port:1"])):
        for command in mac.commands.iterdir():
            assert os.access(command, os.X_OK)
            assert "REHEARSAL" in command.read_text()
            subprocess.run(["/bin/sh", "-n", command], check=True, timeout=60)


async def test_jobs_run_on_a_hostfile_that_was_set_up_from_a_rehearsal() -> None:
    rows = ((None, "rdma_en3"), ("rdma_en3", None))
    hosts = (Host("mac1", ("10.0.0.11",), rows[0]), Host("mac2", (), rows[1]))
    cluster = Cluster.of(runnable(Hostfile(hosts, backend="jaccl"), make_hostfile(2)))
    spec = JobSpec(
        cluster.hostfile,
        ("smoke",),
        cluster.hostfile.backend,
        python=str(homes.macs(cluster.hostfile)[0].python),
        rank_env=cluster.rank_env,
        starting_port=ports.choose(2),
    )
    outcome = await run(spec)
    assert [result.size for result in outcome.results_of(SmokeResult)] == [2, 2]
