"""A rehearsal's hostfile, and what real Macs would have there."""

from pathlib import Path

import pytest

from jaccl_kernel.core.errors import HostfileError, InputError
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.rehearsal import tools
from jaccl_kernel.rehearsal.faults import STALE_COORDINATOR
from jaccl_kernel.rehearsal.plan import (
    KEY,
    NOTE,
    RehearsalPlan,
    as_if_real,
    is_rehearsal,
    local_versions,
    make_hostfile,
    runnable,
    with_changes,
)
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.wiring import build_wiring

CHECKED_IN = Path(__file__).parents[2] / "hostfiles" / "rehearsal.json"


def real(macs: list[NodeFacts]) -> Hostfile:
    """What a set-up of real Macs with these facts would write."""
    matrix = build_wiring(macs).rdma_matrix()
    hosts = [
        Host(mac.name, ((mac.lan or ())[0].ip,), tuple(row)) for mac, row in zip(macs, matrix, strict=True)
    ]
    return Hostfile(tuple(hosts), backend="jaccl")


def test_the_hostfile_that_comes_along_is_a_healthy_rehearsal_of_four() -> None:
    hostfile = Hostfile.read(CHECKED_IN)
    assert hostfile == make_hostfile(4)
    assert RehearsalPlan.of(hostfile) == RehearsalPlan(("mac1", "mac2", "mac3", "mac4"))
    assert NOTE in CHECKED_IN.read_text()
    assert check(hostfile) == []


def test_faults_survive_the_file(tmp_path: Path) -> None:
    make_hostfile(3, ["rdma-off:2", "missing-cable:1-3"]).write(tmp_path / "r.json")
    assert RehearsalPlan.of(Hostfile.read(tmp_path / "r.json")).faults == ("rdma-off:2", "missing-cable:1-3")


def test_a_subset_keeps_its_macs_and_their_cables() -> None:
    hostfile = make_hostfile(4, ["rdma-off:3"]).subset([2, 0])
    assert [host.name for host in hostfile.hosts] == ["mac3", "mac1"]
    assert len(RehearsalPlan.of(hostfile).macs) == 4
    assert RehearsalPlan.of(hostfile).spec().macs[2].rdma is False


def test_a_bare_note_describes_the_hosts_that_are_there() -> None:
    hosts = tuple(Host("127.0.0.1", ("127.0.0.1",), extra={"name": name}) for name in ("anna", "berta"))
    assert RehearsalPlan.of(Hostfile(hosts, extra={KEY: NOTE})) == RehearsalPlan(("anna", "berta"))


def test_simulated_macs_have_the_versions_that_jobs_really_run_with() -> None:
    macs = RehearsalPlan.of(make_hostfile(2)).spec().macs
    assert {mac.mlx for mac in macs} == {local_versions()["mlx"]}
    assert {mac.python for mac in macs} == {local_versions()["python"]}


@pytest.mark.parametrize("names", [("mac1", "../mac2"), ("mac1", "mac1"), ("", "b"), (".hidden", "b")])
def test_names_that_cannot_be_folders_of_their_own_are_refused(names: tuple[str, str]) -> None:
    hosts = tuple(Host("127.0.0.1", extra={"name": name}) for name in names)
    with pytest.raises(HostfileError, match="simulated Mac"):
        RehearsalPlan.of(Hostfile(hosts, extra={KEY: {"macs": list(names)}}))


def test_an_unknown_host_is_refused() -> None:
    hosts = (Host("127.0.0.1", extra={"name": "stranger"}),)
    with pytest.raises(HostfileError, match="stranger"):
        RehearsalPlan.of(Hostfile(hosts, extra={KEY: {"macs": ["mac1"]}}))


@pytest.mark.parametrize("told", [{"macs": "mac1"}, {"faults": [1]}, {"faults": {}}])
def test_an_invalid_description_is_refused(told: dict[str, object]) -> None:
    hostfile = make_hostfile(1)
    with pytest.raises(HostfileError, match="must be a list of strings"):
        RehearsalPlan.of(Hostfile(hostfile.hosts, extra={KEY: told}))


def test_a_hostfile_of_real_macs_is_not_a_rehearsal() -> None:
    hostfile = Hostfile((Host("studio.local"),))
    assert not is_rehearsal(hostfile)
    with pytest.raises(HostfileError, match="not the hostfile of a rehearsal"):
        RehearsalPlan.of(hostfile)


def test_an_unknown_fault_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match="unknown fault 'gremlins'") as caught:
        make_hostfile(2, ["gremlins:1"])
    assert "rdma-off:N" in caught.value.fix


def test_faults_are_fixed_and_added() -> None:
    hostfile = make_hostfile(4, ["rdma-off:2", "dock:1"])
    changed = with_changes(hostfile, fix=["rdma-off:2"], add=["asleep:3", " dock:1 "])
    assert RehearsalPlan.of(changed).faults == ("dock:1", "asleep:3")
    with pytest.raises(InputError, match="does not have this fault") as caught:
        with_changes(changed, fix=["rdma-off:2"])
    assert "dock:1, asleep:3" in caught.value.fix


def test_a_stale_coordinator_stands_in_the_hostfile_until_it_is_fixed() -> None:
    stale = make_hostfile(3, ["stale-coordinator"])
    assert as_if_real(stale).coordinator == STALE_COORDINATOR
    assert as_if_real(with_changes(stale, fix=["stale-coordinator"])).coordinator == "10.0.0.11"
    assert as_if_real(make_hostfile(3)).coordinator is None


def test_what_is_set_up_can_be_run_here_and_read_as_real() -> None:
    rehearsal = make_hostfile(4, ["stale-coordinator", "dock:2"])
    found = real(tools.facts(RehearsalPlan.of(rehearsal).spec()))
    made = runnable(found, rehearsal)
    assert {(host.ssh, host.ips) for host in made.hosts} == {("127.0.0.1", ("127.0.0.1",))}
    assert made.backend == "ring"
    assert check(made) == []
    assert as_if_real(made) == found
    assert as_if_real(Hostfile.loads(made.dumps())) == found
    assert check(as_if_real(made)) == []
    assert RehearsalPlan.of(made).faults == ("dock:2",)  # a new hostfile cures a stale one


def test_the_matrix_stays_when_a_fault_comes_later() -> None:
    rehearsal = make_hostfile(3)
    made = runnable(real(tools.facts(RehearsalPlan.of(rehearsal).spec())), rehearsal)
    loose = with_changes(made, add=["missing-cable:1-3"])
    assert loose.rdma == made.rdma
    assert as_if_real(loose).coordinator == "10.0.0.11"
    assert build_wiring(tools.facts(RehearsalPlan.of(loose).spec())).state((0, 2)) == "missing"


def test_strangers_do_not_become_simulated_macs() -> None:
    with pytest.raises(HostfileError, match="studio"):
        runnable(Hostfile((Host("studio", ("10.0.0.1",)),)), make_hostfile(2))
