"""Configure: from the Macs as they are to a hostfile."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import HostfileError, InputError, JacclError, NodeError
from jaccl_kernel.core.events import Event, Stage
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check, has_errors
from jaccl_kernel.hostfile.template import template
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Completed
from jaccl_kernel.rehearsal import plan
from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.hostfile.configure import (
    ConfigureReport,
    configure,
    explain,
    hostfile_path,
    write,
)
from jaccl_kernel.steps.hostfile.propose import propose
from jaccl_kernel.topology.facts import LanAddress, NodeFacts
from tests.events import bodies
from tests.steps.bringup import configured, seen

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def macs(*faults: str, n: int = 4) -> list[NodeFacts]:
    return facts(with_faults(ClusterSpec.healthy(n), faults))


def real(n: int = 4) -> Cluster:
    """A cluster of real names; nothing is asked of it, since the facts are given."""
    return Cluster.named([f"studio{number}.local" for number in range(1, n + 1)])


async def made(*faults: str, n: int = 4, **more: Any) -> ConfigureReport:
    return await configure(real(n), facts=macs(*faults, n=n), **more)


async def test_four_macs_make_a_mesh_that_check_finds_nothing_wrong_with() -> None:
    report = await made()
    assert report.ok
    assert report.ready
    hostfile = report.hostfile
    assert hostfile is not None
    assert (report.proposal.topology, hostfile.backend) == ("mesh", "jaccl")
    assert hostfile.coordinator == "10.0.0.11"
    assert hostfile.rdma == tuple(tuple(row) for row in report.wiring.rdma_matrix())
    assert check(hostfile, environ={}) == []
    assert report.difference.sentences[0].startswith("New hostfile with 4 hosts: studio1.local")
    assert report.written is None
    assert not report.path.exists()


@pytest.mark.parametrize("n", range(2, 8))
async def test_every_mesh_that_macs_have_ports_for_is_sound(n: int) -> None:
    report = await made(n=n)
    assert report.hostfile is not None
    assert report.ready
    assert not has_errors(check(report.hostfile, environ={}))


async def test_a_missing_cable_gives_a_ring_with_a_note_and_the_moves_to_a_mesh() -> None:
    report = await made("missing-cable:1-2")
    assert report.hostfile is not None
    assert (report.proposal.topology, report.hostfile.backend) == ("ring", "jaccl-ring")
    assert (
        "This is a RING, not a mesh: no proven cable joins macstudio1 and macstudio2"
        in report.proposal.notes[0]
    )
    assert len(report.proposal.moves) == 1
    assert not has_errors(check(report.hostfile, environ={}))
    # 1 and 2 are no neighbours any more, so the hosts stand in the ring's order
    assert [host.ssh for host in report.hostfile.hosts] == [
        f"studio{node + 1}.local" for node in report.proposal.order
    ]
    assert abs(report.proposal.order.index(0) - report.proposal.order.index(1)) == 2
    assert report.ready


async def test_eight_macs_are_a_ring_for_lack_of_ports() -> None:
    report = await made(n=8)
    assert report.hostfile is not None
    assert report.hostfile.backend == "jaccl-ring"
    assert any("5 Thunderbolt 5 ports for RDMA" in note for note in report.proposal.notes)
    assert not has_errors(check(report.hostfile, environ={}))


async def test_nine_unknown_macs_get_no_hostfile() -> None:
    nine = [replace(macs(n=2)[0], name=f"m{i}", ports=None) for i in range(9)]
    report = await configure(real(9), facts=nine)
    assert not report.ok
    assert any("A mesh supports at most 8 Macs (got 9)" in note for note in report.proposal.notes)


async def test_one_mac_needs_no_matrix() -> None:
    report = await made(n=1)
    assert report.hostfile is not None
    assert report.proposal.topology == "single"
    assert report.hostfile.rdma == ((),)


@pytest.mark.parametrize(
    ("faults", "backend", "code", "words"),
    [
        (["missing-cable:1-2"], "jaccl", "no-topology", "--backend jaccl-ring"),
        (["missing-cable:1-2", "missing-cable:1-3", "missing-cable:1-4"], None, "no-topology", "cable moves"),
        (["thunderbolt4:3"], None, "no-topology", "Remove the Macs that lack Thunderbolt 5"),
        (["asleep:3"], None, "unreachable", "Fix ssh to it"),
        (["hang:2:system_profiler"], None, "wiring-untested", "Scan again"),
        (["hang:2:networksetup"], None, "no-interface", "networksetup must answer"),
        (["hang:1:ifconfig", "hang:1:ipconfig"], None, "no-coordinator", "Connect it to the other Macs"),
    ],
)
async def test_a_problem_that_prevents_a_hostfile_is_named(
    faults: list[str], backend: str | None, code: str, words: str
) -> None:
    report = await made(*faults, backend=backend)
    assert report.hostfile is None
    problem = report.proposal.problems[0]
    assert problem.code == code
    assert words in problem.fix
    with pytest.raises(JacclError, match="no hostfile to write"):
        write(report)


async def test_a_requested_ring_is_built_from_a_mesh_too() -> None:
    report = await made(backend="jaccl-ring")
    assert report.hostfile is not None
    assert report.hostfile.backend == "jaccl-ring"
    assert not has_errors(check(report.hostfile, environ={}))


async def test_the_versions_that_count_are_those_of_the_environment_for_jobs() -> None:
    cluster = real(1)
    asked: list[str] = []

    class Recorded(LocalNode):
        async def script(self, text: str, *args: str, **more: Any) -> Completed:
            asked.append(text)
            raise NodeError("is a stand-in", where=self.where)

    await configure(replace(cluster, nodes=(Recorded("studio1"),)))
    assert "jaccl-env/bin/python" in asked[0]
    assert " python3 -c" not in asked[0]


async def test_the_ring_of_a_broken_mlx_is_rejected() -> None:
    nodes = [
        replace(node, python=replace(node.python, mlx="0.32.2")) if node.python else node for node in macs()
    ]
    ring = propose(real().hostfile, nodes, backend="jaccl-ring")
    assert [problem.code for problem in ring.problems] == ["mlx-ring"]
    assert propose(real().hostfile, nodes).hostfile is not None


async def test_the_tcp_ring_takes_every_macs_own_address() -> None:
    report = await made("rdma-off:2", backend="ring")
    assert report.hostfile is not None
    assert [host.ips for host in report.hostfile.hosts] == [(f"10.0.0.{11 + i}",) for i in range(4)]
    assert not has_errors(check(report.hostfile, environ={}))
    unknown = macs()
    unknown[2] = replace(unknown[2], lan=())
    lost = await configure(real(), facts=unknown, backend="ring")
    assert lost.proposal.problems[0].code == "no-coordinator"
    assert lost.proposal.problems[0].where == "macstudio3"


async def test_a_port_that_is_down_is_reported_though_the_hostfile_is_right() -> None:
    report = await made("rdma-off:2")
    assert report.ok
    assert not report.ready
    assert {problem.code for problem in report.proposal.findings} >= {"port-down"}


async def test_the_network_set_up_comes_with_it() -> None:
    report = await made("bridged-port:2")
    assert report.network.steps[0].line == "sudo ifconfig bridge0 deletem en3"
    assert report.to_json()["network"][0]["undo"] == "sudo ifconfig bridge0 addm en3"


async def test_wifi_serves_where_there_is_no_ethernet_and_the_note_reports_it() -> None:
    nodes = [
        replace(n, lan=(LanAddress("en1", f"10.0.1.{i}", "wifi", 24),)) for i, n in enumerate(macs(), 11)
    ]
    report = await configure(real(), facts=nodes)
    assert report.hostfile is not None
    assert report.hostfile.coordinator == "10.0.1.11"
    assert any("Wi-Fi is less reliable" in note for note in report.proposal.notes)


# -- writing


async def test_the_file_is_written_when_asked_and_read_back() -> None:
    report = write(await made(name="four"))
    assert report.written is not None
    assert report.path == Path("hostfiles/four.local.json")
    assert Hostfile.read(report.path) == report.hostfile
    assert report.written.kept is None


async def test_a_file_that_fits_is_left_alone() -> None:
    first = write(await made())
    before = first.path.stat().st_mtime_ns
    again = write(await made())
    assert again.written is not None
    assert not again.written.changed
    assert not again.difference
    assert first.path.stat().st_mtime_ns == before


async def test_a_replaced_hostfile_is_backed_up_and_reported() -> None:
    first = write(await made())
    old = first.path.read_bytes()
    report = await made("swapped-cable:2")
    assert any("studio2.local → studio1.local: set to" in text for text in report.difference.sentences)
    assert report.old == first.hostfile
    kept = []
    for turn in (report, await made("swapped-cable:3")):
        written = write(turn).written
        assert written is not None
        assert written.kept is not None
        kept.append(written.kept)
    assert kept[0].read_bytes() == old
    assert kept[0] != kept[1]
    assert all(path.name.endswith(".local.json") for path in kept)  # ignored by git, as the file itself


async def test_an_unreadable_hostfile_is_backed_up_too() -> None:
    path = Path("broken.json")
    path.write_text('{"hosts": [')
    report = await made(path=path)
    assert "invalid JSON" in report.old_error
    assert "invalid JSON" in report.to_json()["old_error"]
    assert "Cannot read the current hostfile; a copy is kept" in report.unreadable
    written = write(report).written
    assert written is not None
    assert written.kept is not None
    assert written.kept.read_text() == '{"hosts": ['


async def test_other_contents_of_the_old_file_are_preserved() -> None:
    path = Path("mine.json")
    old = template(["studio1.local", "studio2.local"])
    old = replace(old, envs=("HF_HOME=/models",), extra={"rack": "B"})
    hosts = (replace(old.hosts[0], extra={"name": "left"}), old.hosts[1])
    replace(old, hosts=hosts).write(path)
    for cluster in (Cluster.read(path), real(2)):
        report = await configure(cluster, path=path, facts=macs(n=2))
        assert report.hostfile is not None
        assert report.hostfile.envs == ("HF_HOME=/models",)
        assert report.hostfile.extra == {"rack": "B"}
        assert report.hostfile.hosts[0].name == "left"


async def test_a_bare_list_becomes_a_file_that_names_its_backend() -> None:
    path = Path("bare.json")
    path.write_text(json.dumps([{"ssh": f"studio{n}.local", "ips": []} for n in (1, 2)]))
    report = write(await configure(Cluster.read(path), facts=macs(n=2)))
    assert json.loads(path.read_text())["backend"] == "jaccl"
    assert report.difference.sentences[0] == "Backend: set to jaccl (was none)."


async def test_an_unwritable_folder_is_reported() -> None:
    Path("hostfiles").write_text("in the way")
    with pytest.raises(HostfileError, match="cannot write"):
        write(await made())


@pytest.mark.parametrize("name", ["", "a/b", "../up", "two words", "-x"])
def test_an_invalid_hostfile_name_is_rejected(name: str) -> None:
    with pytest.raises(InputError, match="invalid hostfile name"):
        hostfile_path(name)


# -- an existing hostfile, held against the Macs


async def test_a_hand_written_matrix_is_explained_cell_by_cell() -> None:
    sound = (await made()).hostfile
    assert sound is not None
    row = list(sound.hosts[2].rdma)
    row[0], row[3] = row[3], row[0]
    hosts = (*sound.hosts[:2], replace(sound.hosts[2], rdma=tuple(row)), sound.hosts[3])
    found = explain(replace(sound, hosts=hosts), macs())
    assert [problem.where for problem in found] == [
        "host 2 (studio3.local), rdma[0]", "host 2 (studio3.local), rdma[3]"
    ]  # fmt: skip
    assert (
        "but the cable in that port connects to macstudio4; the cable to macstudio1 is on rdma_en3"
        in found[0].message
    )
    assert explain(sound, macs()) == []


async def test_a_stale_coordinator_is_detected_and_put_right() -> None:
    path = Path("old.json")
    sound = (await made()).hostfile
    assert sound is not None
    stale = (replace(sound.hosts[0], ips=("10.0.0.99",)), *sound.hosts[1:])
    replace(sound, hosts=stale).write(path)
    report = await configure(Cluster.read(path), facts=macs())
    assert [problem.code for problem in report.explained] == ["coordinator-stale"]
    assert report.difference.sentences == ("Coordinator address: set to 10.0.0.11 (was 10.0.0.99).",)


async def test_problems_of_the_file_itself_are_explained_too() -> None:
    codes = {problem.code for problem in explain(template(["a", "b", "c", "d"]), macs())}
    assert "coordinator-address" in codes  # the template's placeholder
    assert "cell-wrong" in codes


async def test_a_device_that_has_ended_is_reported_once() -> None:
    sound = (await made()).hostfile
    assert sound is not None
    first = replace(sound.hosts[0], rdma=(None, "rdma_en12", *sound.hosts[0].rdma[2:]))
    found = explain(replace(sound, hosts=(first, *sound.hosts[1:])), macs())
    assert [problem.code for problem in found] == ["cell-no-device"]


# -- a rehearsal


async def test_a_rehearsals_hostfile_runs_here_and_holds_the_simulated_matrix() -> None:
    events: list[Event] = []
    report = await configure(Cluster.of(plan.make_hostfile(3)), name="r", on_event=events.append)
    hostfile = report.hostfile
    assert hostfile is not None
    assert report.rehearsal
    assert plan.is_rehearsal(hostfile)
    assert hostfile.backend == "ring"
    assert [(host.ssh, host.ips, host.name) for host in hostfile.hosts] == [
        ("127.0.0.1", ("127.0.0.1",), name) for name in ("mac1", "mac2", "mac3")
    ]
    assert hostfile.rdma == tuple(tuple(row) for row in report.wiring.rdma_matrix())
    meant = plan.as_if_real(hostfile)
    assert (meant.backend, meant.coordinator) == ("jaccl", "10.0.0.11")
    assert not has_errors(check(hostfile, environ={}))
    assert any("3 of 3" in stage.text for stage in bodies(events, Stage))


async def test_a_rehearsals_stale_coordinator_is_reported_as_on_real_macs() -> None:
    path = Path("r.json")
    configured(2, "stale-coordinator").write(path)
    cluster = Cluster.read(path)
    report = write(await configure(cluster, facts=seen(cluster.hostfile)))
    assert [problem.code for problem in report.explained] == ["coordinator-stale"]
    assert report.difference.sentences == ("Coordinator address: set to 10.0.0.11 (was 10.0.0.99).",)
    again = Cluster.read(path)
    assert (await configure(again, facts=seen(again.hostfile))).explained == ()


async def test_real_macs_that_replace_a_rehearsal_are_not_a_rehearsal() -> None:
    path = Path("r.json")
    configured(2).write(path)
    report = await configure(real(2), path=path, facts=macs(n=2))
    assert report.hostfile is not None
    assert not plan.is_rehearsal(report.hostfile)


# -- bad input


async def test_facts_of_other_macs_and_an_unknown_backend_are_rejected() -> None:
    with pytest.raises(InputError, match="got facts of 3 Macs, but the cluster has 2"):
        await configure(real(2), facts=macs(n=3))
    with pytest.raises(InputError, match="unknown backend 'nccl'"):
        await made(backend="nccl")
    with pytest.raises(InputError, match="duplicate host"):
        Cluster.named(["a", "b", "a"])


async def test_one_mac_under_two_names_is_seen_by_its_ports() -> None:
    one = macs(n=2)
    report = await configure(real(2), facts=[one[0], replace(one[0], name="again")])
    assert not report.ok
    assert any("Check whether a Mac is in the list twice." in note for note in report.proposal.notes)


async def test_an_interrupted_scan_leaves_nothing() -> None:
    started = asyncio.Event()
    cluster = Cluster.of(plan.make_hostfile(2, ["hang:2:ibv_devinfo"]))

    def on_event(event: Event) -> None:
        if isinstance(event.body, Stage) and "mac1 answered" in event.body.text:
            started.set()

    task = asyncio.create_task(configure(cluster, on_event=on_event, write_it=True))
    await asyncio.wait_for(started.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path("hostfiles").exists()


def test_the_json_report_is_complete() -> None:
    report = asyncio.run(made("missing-cable:1-2"))
    told = json.loads(json.dumps(report.to_json()))
    assert told["ok"] is True
    assert told["topology"] == "ring"
    assert told["hostfile"]["backend"] == "jaccl-ring"
    assert told["moves"]
    assert told["hostfile"]["hosts"][0]["ssh"] == "studio1.local"


async def test_every_host_gets_its_address_so_that_the_tcp_ring_runs_from_the_same_file() -> None:
    hostfile = (await made(n=3)).hostfile
    assert hostfile is not None
    assert [host.ips for host in hostfile.hosts] == [("10.0.0.11",), ("10.0.0.12",), ("10.0.0.13",)]
    assert check(hostfile, backend="ring", environ={}) == []


def test_two_cables_between_two_macs_are_both_written() -> None:
    found = propose(real(2).hostfile, facts(ClusterSpec.healthy(2).with_cable(0, 1)))
    assert found.hostfile is not None
    assert found.hostfile.rdma == (
        (None, ("rdma_en3", "rdma_en4")), (("rdma_en3", "rdma_en6"), None)
    )  # fmt: skip
    assert found.findings == ()
    assert check(found.hostfile, environ={}) == []


def test_a_hostfile_for_a_port_beside_ethernet_or_a_hub_has_a_warning() -> None:
    for fault, code in (("beside-ethernet:2", "cell-beside-ethernet"), ("hub:1-2", "cell-hub")):
        found = propose(real(2).hostfile, macs(fault, n=2))
        assert found.hostfile is not None
        assert [(problem.code, problem.severity) for problem in found.findings] == [(code, "warning")]
