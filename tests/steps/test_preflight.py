"""The model's name for the ranks."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import ModelError, UnknownModel
from jaccl_kernel.core.events import Event
from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.models.demo import SMOLLM2
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.models.resolve import resolve
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.steps.bench import bench
from jaccl_kernel.steps.preflight import find_model
from jaccl_kernel.steps.sync.locate import on_nodes, resolve_target
from tests.models.material import tiny_llama

FAR = Hostfile((Host("127.0.0.1"), Host("mac2.local")), "jaccl")


def nothing_is_made(event: Event) -> None:
    raise AssertionError(f"something is made: {event}")


async def test_a_job_is_not_refused_for_a_split_that_is_not_tested(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = inspect(tiny_model)
    untested = replace(known, loaded=replace(known.loaded, unknown="mlx.core.new"))
    monkeypatch.setattr("jaccl_kernel.steps.preflight.inspect", lambda path: untested)
    name, facts = await find_model(homes.make_hostfile(2), str(tiny_model), "tensor", [2], nothing_is_made)
    assert (name, facts["digest"]) == (str(tiny_model), known.digest)


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
    assert told == resolve_target("demo").dest
    assert facts["digest"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's home, with a folder `models`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "models").mkdir(parents=True)
    return tmp_path / "home"


@pytest.mark.parametrize("word", ["~/models/my model", "{home}/models/my model", "my model"])
def test_an_expanded_home_folder_means_each_nodes_own(home: Path, word: str, tiny_model: Path) -> None:
    (home / "models" / "my model").symlink_to(tiny_model)
    told = on_nodes(word.format(home=home))
    assert told == "~/models/my model" == resolve_target(word.format(home=home)).dest


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("demo", f"~/models/{SMOLLM2.name}"),
        ("only-on-the-macs", "~/models/only-on-the-macs"),
        ("{home}/elsewhere/x", "~/elsewhere/x"),
        ("/Volumes/models/x", "/Volumes/models/x"),
        ("org/name", "org/name"),
    ],
)
def test_a_model_that_is_not_on_this_machine_keeps_its_place(home: Path, word: str, told: str) -> None:
    assert on_nodes(word.format(home=home)) == told


def test_a_folder_outside_the_home_folder_is_the_same_on_every_node(home: Path, tiny_model: Path) -> None:
    assert on_nodes(str(tiny_model)) == str(tiny_model)


def test_a_relative_folder_is_a_place_too(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "models" / "x").symlink_to(tiny_model)
    monkeypatch.chdir(home)
    assert on_nodes("models/x") == on_nodes("./models/x") == "~/models/x"


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("word", ["{home}/models/tiny", "tiny"])
async def test_each_rank_loads_the_model_of_its_own_home(home: Path, word: str, tiny_model: Path) -> None:
    """This user's own folder is damaged: ranks that read it would fail."""
    (home / "models" / "tiny").mkdir()
    (home / "models" / "tiny" / "config.json").write_text("{}")
    hostfile = homes.make_hostfile(2)
    for mac in homes.prepare(hostfile):
        homes.place_model(mac, tiny_model, "tiny")
    options = BenchOptions(model=word.format(home=home), max_tokens=2, repeats=1)
    report = await bench(hostfile, options, save=False)
    assert report.record["provenance"]["model"]["name"] == "~/models/tiny"
    assert report.record["provenance"]["model"]["digest"]
    assert report.record["points"][0]["ranks"] == 2


async def test_a_simulated_mac_without_the_model_is_named_with_the_command_that_copies_it(
    home: Path, tiny_model: Path
) -> None:
    hostfile = homes.make_hostfile(3)
    macs = homes.prepare(hostfile)
    homes.place_model(macs[0], tiny_model, "tiny")
    with pytest.raises(ModelError) as caught:
        await find_model(hostfile, str(home / "models" / "tiny"), "tensor", [1, 3], nothing_is_made)
    assert (caught.value.where, caught.value.what) == ("~/models/tiny", "not found on mac2, mac3")
    assert "jaccl sync FILE ~/models/tiny" in caught.value.fix
    assert not isinstance(caught.value, UnknownModel)
    told, _ = await find_model(hostfile, "tiny", "tensor", [1], nothing_is_made)
    assert told == "~/models/tiny"  # the hosts that take part have it


@pytest.mark.parametrize("word", ["nothing", "~/models/nothing", "/nowhere/x", "org/nothing"])
async def test_a_model_that_is_nowhere_is_unknown(home: Path, word: str) -> None:
    with pytest.raises(UnknownModel):
        await find_model(homes.make_hostfile(2), word, "tensor", [2], nothing_is_made)


async def test_a_model_that_mlx_lm_cannot_load_is_refused_on_one_rank_too(tmp_path: Path) -> None:
    model = tiny_llama()
    model.tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = ("F32", (1, 1))
    folder = model.save(tmp_path / "fp8")
    one = Hostfile((Host("127.0.0.1"),), "ring")
    with pytest.raises(ModelError, match="weight_scale_inv"):
        await find_model(one, str(folder), "tensor", [1], nothing_is_made)
