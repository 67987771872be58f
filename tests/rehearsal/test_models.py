"""Models on simulated Macs, and partial ones."""

import shutil
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.rehearsal.homes import SimulatedMac, place_model
from jaccl_kernel.rehearsal.plan import make_hostfile, with_changes

PARTIAL = make_hostfile(2, ["partial-model:2"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def second() -> SimulatedMac:
    return homes.prepare(make_hostfile(2))[1]


def test_a_placed_model_is_a_copy_of_its_own(second: SimulatedMac, tiny_model: Path) -> None:
    placed = place_model(second, tiny_model, "org/tiny")
    assert placed == second.models / "org" / "tiny"
    assert inspect(placed).bytes == inspect(tiny_model).bytes
    for path in placed.iterdir():
        assert path.stat().st_nlink == 1
    assert names(second.models) == {"org"}


def test_a_model_is_placed_in_place_of_an_older_one_and_without_files(
    second: SimulatedMac, tiny_model: Path
) -> None:
    place_model(second, tiny_model, "tiny")
    placed = place_model(second, tiny_model, "tiny", without=["*.safetensors"])
    assert names(placed) == {name for name in names(tiny_model) if not name.endswith(".safetensors")}


def test_a_copy_that_fails_leaves_nothing(second: SimulatedMac, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        place_model(second, tmp_path / "none")
    assert names(second.models) == set()


def test_a_partial_model_lacks_its_weights_until_it_is_fixed(second: SimulatedMac, tiny_model: Path) -> None:
    placed = place_model(second, tiny_model, "tiny")
    homes.prepare(PARTIAL)
    with pytest.raises(ModelError):
        inspect(placed)
    homes.prepare(with_changes(PARTIAL, fix=["partial-model:2"]))
    assert inspect(placed).bytes == inspect(tiny_model).bytes


def test_a_model_that_a_sync_completed_stays_complete(second: SimulatedMac, tiny_model: Path) -> None:
    placed = place_model(second, tiny_model, "tiny")
    homes.prepare(PARTIAL)
    shutil.copytree(tiny_model, placed, dirs_exist_ok=True)
    homes.prepare(PARTIAL)
    assert names(placed) == names(tiny_model)


def test_the_fault_waits_for_a_model(second: SimulatedMac, tiny_model: Path) -> None:
    homes.prepare(PARTIAL)
    assert names(second.models) == set()
    placed = place_model(second, tiny_model, "tiny")
    homes.prepare(PARTIAL)
    assert names(placed) != names(tiny_model)


def test_the_demo_model_stands_in_when_it_is_in_the_cache(
    second: SimulatedMac, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaccl_kernel.rehearsal.models.demo_ready", lambda: True)
    monkeypatch.setattr("jaccl_kernel.rehearsal.models.demo_path", lambda: tiny_model)
    homes.prepare(PARTIAL)
    placed = second.models / tiny_model.name
    assert names(tiny_model) - names(placed) == {"model.safetensors"}
    assert names(homes.macs(PARTIAL)[0].models) == set()
