"""`jaccl rehearse` as a person types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.rehearsal.faults import FAULTS
from jaccl_kernel.rehearsal.plan import RehearsalPlan

pytestmark = pytest.mark.usefixtures("nothing_left")
JACCL = str(Path(sys.executable).with_name("jaccl"))


def rehearse(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [JACCL, "rehearse", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def test_faults_are_set_listed_and_fixed(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = rehearse("--macs", 3, "--fault", "rdma-off:2", "--fault", "missing-cable:1-3", "-o", path)
    assert done.returncode == 0, done.stderr
    assert homes.NOTE in done.stdout
    assert "rdma-off:2: RDMA is off" in done.stdout
    assert RehearsalPlan.of(Hostfile.read(path)).faults == ("rdma-off:2", "missing-cable:1-3")
    done = rehearse("--fix", "rdma-off:2", "--fault", "asleep:3", "-o", path)
    assert done.returncode == 0, done.stderr
    plan = RehearsalPlan.of(Hostfile.read(path))
    assert (plan.faults, len(plan.macs)) == (("missing-cable:1-3", "asleep:3"), 3)


def test_an_unknown_fault_lists_the_valid_ones_and_writes_nothing(tmp_path: Path) -> None:
    done = rehearse("--fault", "nonsense", "-o", tmp_path / "r.json")
    assert done.returncode == 2
    assert all(fault.usage in done.stderr for fault in FAULTS)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_faults_can_be_listed() -> None:
    done = rehearse("--faults")
    assert done.returncode == 0
    assert all(fault.usage in done.stdout and fault.meaning in done.stdout for fault in FAULTS)


def test_a_fault_can_come_later_without_touching_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rehearse("--macs", 2, "-o", path)
    data = json.loads(path.read_text())
    data["hosts"][0]["rdma"], data["hosts"][1]["rdma"] = [None, "rdma_en3"], ["rdma_en3", None]
    data["rehearsal"]["backend"] = "jaccl"
    path.write_text(json.dumps(data))
    assert rehearse("--keep", "--fault", "no-ipv4:2", "-o", path).returncode == 0
    changed = Hostfile.read(path)
    assert RehearsalPlan.of(changed) == RehearsalPlan(("mac1", "mac2"), ("no-ipv4:2",), "jaccl")
    assert changed.rdma == ((None, "rdma_en3"), ("rdma_en3", None))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--fix", "dock:1"), "does not have this fault"),
        (("--keep", "--macs", 3), "--macs creates new Macs"),
        (("--macs", 0), "a rehearsal needs 1 to 8 Macs (got 0)"),
        (("--fault", "rdma-off:9"), "Mac 9 does not exist"),
    ],
)
def test_invalid_options_are_reported_and_change_nothing(
    tmp_path: Path, arguments: tuple[object, ...], told: str
) -> None:
    path = tmp_path / "r.json"
    rehearse("-o", path)
    before = path.read_text()
    done = rehearse(*arguments, "-o", path)
    assert done.returncode == 2
    assert told in done.stderr
    assert path.read_text() == before


def test_nothing_can_be_fixed_in_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = rehearse("--fix", "dock:1", "-o", tmp_path / "none.json")
    assert done.returncode == 2
    assert "none.json" in done.stderr


def test_new_macs_know_nothing_of_what_was_typed_before(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rehearse("--macs", 2, "-o", path)
    mac = homes.macs(Hostfile.read(path))[0]
    mac.change(["ifconfig", "en3", "down"])
    assert mac.changes() == [["ifconfig", "en3", "down"]]
    rehearse("--keep", "-o", path)
    assert mac.changes() == [["ifconfig", "en3", "down"]]
    rehearse("--macs", 2, "-o", path)
    assert mac.changes() == []
