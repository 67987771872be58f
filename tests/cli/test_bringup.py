"""`jaccl probe`, `verify`, `network` and `hostfile write`."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cli.main import run
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import plan
from tests.steps.bringup import configured

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jaccl(*arguments: object) -> int:
    """Run one of these commands in this process."""
    return run([str(argument) for argument in arguments])


def rehearsal(hostfile: Hostfile) -> Path:
    path = Path("r.json")
    hostfile.write(path)
    return path


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def test_probe_tells_every_mac_and_the_cabling(capsys: Any) -> None:
    path = rehearsal(plan.make_hostfile(2, ["rdma-off:2"]))
    assert jaccl("probe", path) == 0
    out, err = capsys.readouterr()
    assert "REHEARSAL" in err
    assert "Apple M3 Ultra" in out
    assert "mac2 lists no RDMA device" in out
    assert jaccl("probe", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [node["rdma"] for node in told["nodes"]] == ["enabled", "disabled"]
    assert told["wiring"]["topology"] == "mesh"
    assert jaccl("probe", path, "--dot") == 0
    assert "graph" in capsys.readouterr().out


def test_probe_exits_1_when_a_mac_is_silent_and_says_why(capsys: Any) -> None:
    assert jaccl("probe", rehearsal(plan.make_hostfile(2, ["ssh-fails:2"]))) == 1
    assert "mac2: cannot run `/bin/sh`: authentication failed" in capsys.readouterr().out


def test_verify_exits_0_only_if_all_passed(capsys: Any) -> None:
    path = rehearsal(configured(2))
    assert jaccl("verify", path, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert record["rehearsal"] is True
    configured(2, "no-ipv4:2").write(path)
    assert jaccl("verify", path) == 1
    out = capsys.readouterr().out
    assert out.startswith("ok  ")
    assert "\nfailed  " in out
    assert "Fix: Give the port an IPv4 address" in out
    assert "not tested" in out
    assert "REHEARSAL, proves nothing about RDMA: failed at" in out
    plan.make_hostfile(2).write(path)
    assert jaccl("verify", path, "--json") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_new_hostfile_is_written_at_once_and_shown(capsys: Any) -> None:
    path = rehearsal(plan.make_hostfile(2))
    assert jaccl("hostfile", "write", path, "-o", "new.json") == 0
    out = capsys.readouterr().out
    assert "Backend: set to jaccl" in out
    assert "jaccl verify new.json" in out
    assert any(Hostfile.read("new.json").rdma)
    assert not any(Hostfile.read(path).rdma)


def test_a_hostfile_is_replaced_only_after_a_yes(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rehearsal(configured(2, "stale-coordinator"))
    before = path.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert jaccl("hostfile", "write", path) == 1
    out, err = capsys.readouterr()
    assert "Coordinator address: set to 10.0.0.11 (was 10.0.0.99)" in out
    assert "pass --yes" in err
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert jaccl("hostfile", "write", path) == 1
    assert path.read_bytes() == before
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert jaccl("hostfile", "write", path) == 0
    assert plan.as_if_real(Hostfile.read(path)).coordinator == "10.0.0.11"
    assert [kept.read_bytes() for kept in Path().glob("r.before-*.local.json")] == [before]
    assert "kept as r.before-" in capsys.readouterr().out
    assert jaccl("hostfile", "write", path) == 0
    assert "nothing to write" in capsys.readouterr().out


def test_json_replaces_nothing_without_yes(capsys: Any) -> None:
    path = rehearsal(configured(2, "stale-coordinator"))
    assert jaccl("hostfile", "write", path, "--json") == 1
    assert json.loads(capsys.readouterr().out)["written"] is None
    assert jaccl("hostfile", "write", path, "--json", "--yes") == 0
    assert json.loads(capsys.readouterr().out)["written"] == "r.json"


def test_a_cluster_without_a_hostfile_to_make_exits_1_with_the_moves(capsys: Any) -> None:
    path = rehearsal(plan.make_hostfile(2, ["missing-cable:1-2"]))
    assert jaccl("hostfile", "write", path, "--yes") == 1
    out = capsys.readouterr().out
    assert "To do: Plug a Thunderbolt 5 cable" in out
    assert "no proven cable joins mac1 and mac2" in out
    assert not any(Hostfile.read(path).rdma)


def test_the_network_set_up_is_shown_applied_and_taken_back(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rehearsal(configured(2, "bridged-port:2"))
    assert jaccl("network", path) == 0
    assert "sudo ifconfig bridge0 deletem en3" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert jaccl("network", path, "--apply") == 1
    assert "pass --yes" in capsys.readouterr().err
    assert jaccl("network", path, "--apply", "--yes") == 0
    assert "Done: 2 of 2 steps." in capsys.readouterr().out
    assert jaccl("network", path) == 0
    assert "nothing to set up" in capsys.readouterr().out
    assert jaccl("network", path, "--undo", "--yes") == 0
    assert "mac2: undone" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["r.json", "--hosts", "a,b"]])
def test_exactly_one_of_hostfile_and_hosts_is_required(arguments: list[str], capsys: Any) -> None:
    assert jaccl("probe", *arguments) == 2
    assert "exactly one of HOSTFILE and --hosts is required" in capsys.readouterr().err


def test_invalid_host_names_are_refused(capsys: Any) -> None:
    for names in ("a,b,a", "a,,b"):
        assert jaccl("hostfile", "write", "--hosts", names) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_the_network_of_macs_that_were_not_reached_is_not_called_fine(capsys: Any) -> None:
    assert jaccl("network", "--hosts", "a.invalid,b.invalid") == 1
    shown = capsys.readouterr().out
    assert "nothing to set up" not in shown
    assert "a.invalid: nothing is planned, because its ports are unknown (not reached: " in shown
    assert "b.invalid: " in shown
