"""The model's name for the ranks. pytest tests/steps/test_preflight.py."""

from pathlib import Path

import pytest

from jaccl_kernel.cluster.hostfile import Host, Hostfile
from jaccl_kernel.errors import ModelError
from jaccl_kernel.models.demo import SMOLLM2
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.steps.locate import understand
from jaccl_kernel.steps.preflight import find_model
from jaccl_kernel.wire import Event

FAR = Hostfile((Host("127.0.0.1"), Host("mac2.local")), "jaccl")


def nothing_is_made(event: Event) -> None:
    raise AssertionError(f"something is made: {event}")


@pytest.mark.parametrize("name", [None, "demo"])
async def test_the_demo_model_is_on_other_macs_where_sync_puts_it(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's cache is no place for the ranks there, and the model need not be made here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    told, facts = await find_model(FAR, name, "tensor", [2], nothing_is_made)
    assert told == f"~/models/{SMOLLM2.name}"
    assert facts == {"digest": None}
    with pytest.raises(ModelError) as caught:  # as a rank does, on a Mac that has none
        resolve(told)
    assert "jaccl sync FILE demo" in caught.value.fix


async def test_the_place_is_sync_s_own(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    made = tmp_path / SMOLLM2.name
    made.symlink_to(tiny_model)
    monkeypatch.setattr("jaccl_kernel.models.demo.demo_ready", lambda: True)
    monkeypatch.setattr("jaccl_kernel.models.demo.demo_path", lambda: made)
    told, facts = await find_model(FAR, None, "tensor", [2], nothing_is_made)
    assert told == understand("demo").dest
    assert facts["digest"]
