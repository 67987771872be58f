"""Sync on this machine: simulated Macs with homes of their own."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import Busy, InputError, ModelError, NodeError
from jaccl_kernel.core.events import Event
from jaccl_kernel.core.options import SyncOptions
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch import lock
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync.events import CopyKept, CopyProgress, FitChecked, HashProgress, NodesFound
from jaccl_kernel.steps.sync.report import SyncReport
from jaccl_kernel.steps.sync.sync import sync
from jaccl_kernel.topology.facts import NodeFacts
from tests.events import B, bodies
from tests.models.material import tiny_llama
from tests.steps import copying
from tests.steps.shards import contents, make_shards

pytestmark = pytest.mark.usefixtures("nothing_left")

NAME = "Qwen 3 – größer"
FACTS = NodeFacts("", "", memory=64 << 30, wired_limit_mb=0)


class Macs:
    """Local nodes with homes of their own, and what a sync told of them.

    `copier` is what copies between them, for the scripts that wrap it.
    """

    def __init__(self, root: Path, count: int, way: str, path: str) -> None:
        self.way = way
        self.copier = copying.program(way)
        self.homes = [root / f"mac {number + 1}" for number in range(count)]
        for home in self.homes:
            (home / "bin").mkdir(parents=True)
        names = [f"mac{number + 1}" for number in range(count)]
        nodes = tuple(
            LocalNode(name, home, f"{home}/bin:{path}") for name, home in zip(names, self.homes, strict=True)
        )
        hosts = tuple(Host("127.0.0.1", extra={"name": name}) for name in names)
        self.cluster = Cluster(Hostfile(hosts, "ring"), nodes)
        self.facts = [replace(FACTS, name=name) for name in names]
        self.events: list[Event] = []

    def model(self, index: int, name: str = NAME) -> Path:
        return self.homes[index] / "models" / name

    def partial(self, index: int, name: str = NAME) -> Path:
        return self.homes[index] / "models" / f".{name}.partial"

    async def sync(
        self, model: object, on_event: Callable[[Event], None] | None = None, **options: Any
    ) -> SyncReport:
        def on(event: Event) -> None:
            self.events.append(event)
            if on_event:
                on_event(event)

        wanted = SyncOptions(model=str(model), **options)
        return await sync(self.cluster, wanted, facts=self.facts, on_event=on)

    def told(self, kind: type[B]) -> list[B]:
        return bodies(self.events, kind)

    def program(self, index: int, name: str, text: str) -> None:
        """A program of that Mac's own, first in its PATH."""
        path = self.homes[index] / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture(params=copying.WAYS)
def make_macs(request: pytest.FixtureRequest, path_without_rsync: str) -> Callable[[Path, int], Macs]:
    path = os.environ["PATH"] if request.param == "rsync" else path_without_rsync
    return lambda root, count: Macs(root, count, request.param, path)


@pytest.fixture
def macs(tmp_path: Path, make_macs: Callable[[Path, int], Macs]) -> Macs:
    return make_macs(tmp_path, 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "here" / NAME)


def flip_last_byte(path: Path) -> None:
    """Damage a file; its size and times stay, as `rsync -t` would leave them."""
    times = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def states(report: SyncReport) -> list[str]:
    return [node.state for node in report.nodes]


async def test_a_model_from_this_machine_is_complete_on_every_node(macs: Macs, model: Path) -> None:
    (model / "sub dir").mkdir()
    (model / "sub dir" / "[odd] *name?.txt").write_text("1")
    (model / ".cache").mkdir()
    (model / ".cache" / "junk").write_text("1")
    report = await macs.sync(model)
    assert report.ok
    assert states(report) == ["copied"] * 3
    wanted = {name: data for name, data in contents(model).items() if not name.startswith(".")}
    for index in range(3):
        assert contents(macs.model(index)) == wanted
        assert not macs.partial(index).exists()
    assert report.path
    assert json.loads(report.path.read_text()) == report.record
    assert report.record["bytes"] == sum(map(len, wanted.values()))
    without = macs.way == "no rsync"
    assert all(any("without rsync" in note for note in node.notes) == without for node in report.nodes)


async def test_progress_is_reported_for_each_node_up_to_the_end(macs: Macs, model: Path) -> None:
    report = await macs.sync(model)
    for name in macs.cluster.names:
        copied = [progress for progress in macs.told(CopyProgress) if progress.node == name]
        done = [progress.done_bytes for progress in copied]
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == copied[-1].total_bytes == report.record["bytes"]
    kinds = [type(event.body) for event in macs.events]
    assert max(kinds.index(NodesFound), kinds.index(FitChecked)) < kinds.index(CopyProgress), (
        "told before a byte moves"
    )


async def test_a_second_sync_copies_nothing(macs: Macs, model: Path) -> None:
    await macs.sync(model)
    before = macs.model(0).stat().st_ino
    macs.events.clear()
    report = await macs.sync(model)
    assert states(report) == ["identical"] * 3
    assert macs.model(0).stat().st_ino == before
    assert not macs.told(CopyProgress)
    assert not macs.told(HashProgress), "hashes of files that nothing touched are kept"
    assert (await macs.sync(model, rehash=True)).ok
    assert macs.told(HashProgress)


async def test_the_node_that_has_the_model_is_the_source_for_the_others(macs: Macs) -> None:
    make_shards(macs.model(1))
    report = await macs.sync(NAME)
    assert states(report) == ["copied", "identical", "copied"]
    assert {node.source for node in report.nodes if node.source} == {"mac2"}
    assert contents(macs.model(2)) == contents(macs.model(1))


async def test_a_check_changes_nothing(macs: Macs) -> None:
    make_shards(macs.model(0))
    make_shards(macs.model(1))
    lacking = sorted(macs.model(1).glob("*.safetensors"))[1]
    lacking.unlink()
    before = contents(macs.homes[1] / "models")
    report = await macs.sync(NAME, check=True)
    assert not report.ok
    assert states(report) == ["identical", "incomplete", "missing"]
    assert lacking.name in report.nodes[1].detail
    assert contents(macs.homes[1] / "models") == before
    assert not (macs.homes[2] / "models").exists()


async def test_a_shard_of_the_right_size_with_other_bytes_is_found_by_hash(macs: Macs) -> None:
    for index in range(3):
        make_shards(macs.model(index))
    await macs.sync(NAME)
    damaged = min(macs.model(2).glob("*.safetensors"))
    flip_last_byte(damaged)
    with pytest.raises(InputError, match=r"different models .* mac3 changed: model-00001") as caught:
        await macs.sync(NAME)
    assert "--from" in caught.value.fix
    report = await macs.sync(NAME, source="mac1")
    assert states(report) == ["identical", "identical", "copied"]
    assert contents(macs.model(2)) == contents(macs.model(0))


async def test_a_partial_model_is_completed_from_what_it_has(macs: Macs) -> None:
    make_shards(macs.model(0), total=2_000_000)
    make_shards(macs.model(1), total=2_000_000)
    first, second, third = sorted(macs.model(1).glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1000])
    report = await macs.sync(NAME)
    assert states(report) == ["identical", "copied", "copied"]
    assert contents(macs.model(1)) == contents(macs.model(0))
    assert report.nodes[1].before == "incomplete"
    assert third.stat().st_size > 0
    assert report.nodes[1].sent_bytes < report.nodes[2].sent_bytes


async def test_an_older_model_remains_until_the_new_one_is_complete(macs: Macs, model: Path) -> None:
    """Its own small files are set aside, its stale weights are not."""
    old = make_shards(macs.model(0), files=2, seed=2)
    (old / "notes.txt").write_text("mine")
    before = contents(old)
    seen: list[bool] = []

    def still_there(event: Event) -> None:
        if isinstance(event.body, CopyProgress) and event.body.node == "mac1":
            seen.append(contents(old) == before)

    report = await macs.sync(model, still_there)
    assert seen
    assert all(seen)
    assert contents(old) == contents(model)
    aside = macs.homes[0] / "models" / f".{NAME}.replaced"
    assert contents(aside) == {"notes.txt": b"mine"}
    assert any(str(aside) in note for note in report.nodes[0].notes)
    assert not (macs.homes[0] / "models" / f".{NAME}.old").exists()


async def test_a_stopped_copy_stays_hidden_and_is_resumed(macs: Macs, model: Path) -> None:
    for index in range(3):
        macs.program(index, "rsync", copying.stopping_half_way(macs.way))
    under_way = asyncio.Event()

    def on(event: Event) -> None:
        if isinstance(event.body, CopyProgress) and event.body.done_bytes > 0:
            under_way.set()

    task = asyncio.create_task(macs.sync(model, on))
    await asyncio.wait_for(under_way.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(macs.model(index).exists() for index in range(3))
    stopped = macs.told(CopyKept)
    assert stopped
    assert stopped[0].kept.bytes > 0
    assert Path(stopped[0].kept.folder).is_dir()
    for index in range(3):
        (macs.homes[index] / "bin" / "rsync").unlink()
    report = await macs.sync(model)
    assert report.ok
    resumed = [node for node in report.nodes if node.resumable_bytes]
    assert resumed
    assert all(node.sent_bytes < report.record["bytes"] for node in resumed)
    assert all(contents(macs.model(index)) == contents(model) for index in range(3))


async def test_a_staged_file_that_was_damaged_meanwhile_is_sent_again(macs: Macs, model: Path) -> None:
    """Of the right size and time, it counts as arrived until all hashes are compared."""
    staged = macs.partial(1)
    staged.mkdir(parents=True)
    for file in model.iterdir():
        shutil.copy2(file, staged)
    damaged = min(staged.glob("*.safetensors"))
    flip_last_byte(damaged)
    report = await macs.sync(model)
    assert report.ok
    assert any(f"arrived damaged over same machine: {damaged.name}" in n for n in report.nodes[1].notes)
    assert contents(macs.model(1)) == contents(model)


async def test_a_damaged_file_is_sent_once_more(macs: Macs, model: Path) -> None:
    damage = (
        f'{macs.copier} "$@" || exit; for dest; do :; done; [ -e "$HOME/done" ] && exit; : >"$HOME/done"\n'
        'printf x | dd of="$dest/model-00002-of-00003.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null'
    )
    macs.program(1, "rsync", damage)
    report = await macs.sync(model)
    assert report.ok
    assert any("arrived damaged" in note for note in report.nodes[1].notes)
    assert contents(macs.model(1)) == contents(model)


async def test_a_copy_that_always_arrives_damaged_stays_hidden(macs: Macs, model: Path) -> None:
    damage = f'{macs.copier} "$@" || exit; for dest; do :; done; echo >>"$dest/config.json"'
    macs.program(1, "rsync", damage)
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed", "copied"]
    assert "config.json arrived damaged 2 times" in report.nodes[1].error
    assert not macs.model(1).exists()


async def test_a_model_that_changes_while_it_is_copied_is_named(macs: Macs, model: Path) -> None:
    changed = model / "tokenizer.json"

    def change(event: Event) -> None:
        if isinstance(event.body, NodesFound):
            changed.write_text('{"a": 1}')

    report = await macs.sync(model, change)
    assert states(report) == ["failed"] * 3
    assert "the source changed during the copy (changed: tokenizer.json)" in report.nodes[0].error
    assert not macs.model(0).exists()


async def test_a_file_that_is_added_during_the_copy_is_not_copied(macs: Macs, model: Path) -> None:
    def add(event: Event) -> None:
        if isinstance(event.body, NodesFound):
            (model / "more.json").write_text("{}")

    report = await macs.sync(model, add)
    assert states(report) == ["failed"] * 3
    assert "the source changed during the copy (extra: more.json)" in report.nodes[0].error
    assert not macs.model(0).exists()


async def test_two_nodes_of_one_home_are_not_copied_to_at_once(macs: Macs, model: Path) -> None:
    twin = LocalNode("twin", macs.homes[1])
    macs.cluster = replace(macs.cluster, nodes=(*macs.cluster.nodes[:2], twin))
    with pytest.raises(InputError, match="mac2 and twin are the same Mac"):
        await macs.sync(model)
    assert not macs.partial(1).exists()
    assert (await macs.sync(model, check=True)).nodes[2].state == "missing"


async def test_a_full_disk_is_reported_before_the_copy_and_does_not_stop_the_others(
    macs: Macs, model: Path
) -> None:
    macs.program(1, "df", "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo x 99 90 9 91% /")
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed", "copied"]
    assert "not enough disk space" in report.nodes[1].error
    assert "9216" not in report.nodes[1].error
    assert report.nodes[1].free_bytes == 9 * 1024
    assert report.nodes[1].needed_bytes == report.record["bytes"]
    [finding] = [one for one in report.fit if one.node == "mac2"]
    assert finding.level == "problem"
    assert not macs.partial(1).exists()


async def test_a_disk_that_fills_up_meanwhile_is_named(macs: Macs, model: Path) -> None:
    full = 'rsync: [receiver] write failed on "model-00001": No space left on device (28)'
    macs.program(1, "rsync", f"echo '{full}' >&2; exit 11")
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed", "copied"]
    assert "the disk is full" in report.nodes[1].error
    assert "resumes from here" in report.nodes[1].fix


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_without_rsync_a_disk_that_is_really_full_is_named(
    tmp_path: Path, model: Path, path_without_rsync: str
) -> None:
    macs = Macs(tmp_path, 2, "no rsync", path_without_rsync)
    macs.partial(1).mkdir(parents=True)
    (macs.partial(1) / "model-00002-of-00003.safetensors").symlink_to("/dev/full")
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed"]
    assert "the disk is full" in report.nodes[1].error
    assert report.nodes[1].kept, "the first file arrived"
    assert not macs.model(1).exists()


async def test_rsync_is_used_only_with_options_of_openrsync(macs: Macs, model: Path) -> None:
    """A stand-in refuses what Apple's refuses, and tells progress in its words."""
    known = (
        "-rlt|--progress|-L|-I|--inplace|--timeout=*|--exclude=*|/*|./) ;;"
        '*) echo "rsync: unrecognized option $word" >&2; exit 1 ;;'
    )
    figures = r"s/^ *\([0-9,]*\)  *\([0-9]*%\).*(xfr#\([0-9]*\), to-chk=\(.*\))"
    words = rf"{figures}/   \1 \2    0.95kB\/s   00:00:00 (xfer#\3, to-check=\4)/"
    openrsync = f'for word; do case $word in {known} esac; done; {macs.copier} "$@" | tr -d , | sed "{words}"'
    for index in range(3):
        macs.program(index, "rsync", openrsync)
    report = await macs.sync(model)
    assert report.ok, report.nodes
    assert macs.told(CopyProgress)[-1].done_bytes == report.record["bytes"]


async def test_a_snapshot_of_links_arrives_as_files(macs: Macs, model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        (snapshot / file.name).symlink_to(file)
    report = await macs.sync(snapshot, dest="~/models/linked")
    assert report.ok
    assert not any(path.is_symlink() for path in macs.model(0, "linked").iterdir())
    assert contents(macs.model(0, "linked")) == contents(model)


async def test_a_link_to_the_models_folder_stays_a_link(macs: Macs, model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "big disk" / "other name"
    elsewhere.mkdir(parents=True)
    macs.model(0).parent.mkdir()
    macs.model(0).symlink_to(elsewhere)
    assert (await macs.sync(model)).ok
    assert macs.model(0).is_symlink()
    assert contents(elsewhere) == contents(model)


async def test_something_else_of_that_name_is_not_touched(macs: Macs, model: Path) -> None:
    macs.model(0).parent.mkdir()
    macs.model(0).write_text("mine")
    report = await macs.sync(model)
    assert states(report) == ["failed", "copied", "copied"]
    assert "is not a folder" in report.nodes[0].error
    assert macs.model(0).read_text() == "mine"


@pytest.mark.parametrize("age", [0, 100])
async def test_resuming_never_writes_into_the_old_folder(macs: Macs, model: Path, age: int) -> None:
    """An earlier run linked files of the old folder; then the source got others, or of the same time."""
    old = make_shards(macs.model(0), seed=2)
    for file in old.iterdir():
        of_source = (model / file.name).stat().st_mtime
        os.utime(file, (of_source - age, of_source - age))
    before = contents(old)
    macs.partial(0).mkdir()
    for file in old.glob("*.safetensors"):
        os.link(file, macs.partial(0) / file.name)
    macs.program(0, "rsync", f'echo "$@" >>"$HOME/asked"; {macs.copier} "$@"; exit 23')
    assert states(await macs.sync(model))[0] == "failed"
    assert contents(old) == before
    (macs.homes[0] / "bin" / "rsync").unlink()
    report = await macs.sync(model)
    assert report.ok, report.nodes
    assert contents(old) == contents(model)


async def test_a_model_that_does_not_fit_or_split_is_reported_before_the_copy(
    macs: Macs, make_macs: Callable[[Path, int], Macs], model: Path
) -> None:
    macs.facts[1] = replace(macs.facts[1], memory=100_000)
    macs.facts[0] = replace(macs.facts[0], memory=None)
    report = await macs.sync(model)
    told = {(one.level, one.node): one.what for one in macs.told(FitChecked)[0].findings}
    assert "4 query heads are not divisible by 3 ranks" in told["problem", ""]
    assert report.ok, "it is told, and the user's choice"
    two = make_macs(model.parent / "two", 2)
    two.facts[1] = replace(two.facts[1], memory=100_000)
    two.facts[0] = replace(two.facts[0], memory=None)
    await two.sync(model, check=True)
    told = {(one.level, one.node): one.what for one in two.told(FitChecked)[0].findings}
    assert "GB of memory" in told["problem", "mac2"]
    assert "not tested" in told["note", "mac1"]


async def test_a_model_that_mlx_lm_cannot_load_is_not_copied(macs: Macs, tmp_path: Path) -> None:
    fp8 = tiny_llama()
    fp8.tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = ("F32", (1, 1))
    with pytest.raises(ModelError, match="weight_scale_inv"):
        await macs.sync(fp8.save(tmp_path / "fp8"))
    assert not macs.model(0, "fp8").exists()


async def test_a_model_without_a_complete_copy_is_rejected_with_the_reason(macs: Macs, model: Path) -> None:
    with pytest.raises(ModelError, match=r"no node has a complete copy: .*mac1.* does not exist"):
        await macs.sync("nothing")
    make_shards(macs.model(1))
    (macs.model(1) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="1 of 3 weight files are missing: model-00002"):
        await macs.sync(NAME)
    weights = model / "model-00001-of-00003.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated") as caught:
        await macs.sync(model)
    assert "00001" in str(caught.value)
    with pytest.raises(ModelError):
        await macs.sync(model.parent / "gone")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": " "}, "the model name is empty"),
        ({"model": "x", "source": "mac9"}, "mac9 is not a node"),
        ({"model": "x", "source": "127.0.0.1"}, "matches more than one node"),
        ({"model": "x", "dest": "~"}, "invalid model folder"),
        ({"model": "x", "dest": "models"}, "invalid model folder"),
        ({"model": "a/b", "source": "mac1"}, "is not a folder on another node"),
        ({"model": "x", "source": "localhost"}, "not found on this machine"),
    ],
)
async def test_invalid_input_is_rejected(macs: Macs, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        await macs.sync(**options)


async def test_the_source_can_have_it_elsewhere(macs: Macs) -> None:
    kept = make_shards(macs.homes[1] / "downloads" / "big one")
    report = await macs.sync(kept, source="mac2", dest="~/models/x")
    assert states(report) == ["copied"] * 3
    assert contents(macs.model(1, "x")) == contents(kept)
    home_folder = await macs.sync(kept, source="mac2")
    assert states(home_folder) == ["copied", "identical", "copied"]
    assert (macs.homes[2] / "downloads" / "big one" / "config.json").exists()


async def test_two_syncs_to_one_node_at_once_are_rejected(macs: Macs, model: Path) -> None:
    with lock.hold(["sync-mac2"], "a sync of that"), pytest.raises(Busy, match="a sync of that"):
        await macs.sync(model)


async def test_a_node_whose_files_cannot_be_hashed_is_not_tested(macs: Macs, model: Path) -> None:
    for name in ("sha256sum", "shasum", "openssl"):
        macs.program(0, name, "exit 1")
    macs.model(0).mkdir(parents=True)
    (macs.model(0) / "config.json").write_text("{}")
    report = await macs.sync(model)
    assert states(report) == ["not tested", "copied", "copied"]
    assert "config.json is unreadable" in report.nodes[0].error
    assert not report.ok


async def test_when_no_node_answers_the_step_raises(macs: Macs, model: Path) -> None:
    gone = tuple(LocalNode(f"mac{n}", model.parent / "no such home") for n in range(2))
    with pytest.raises(NodeError):
        await sync(replace(macs.cluster, nodes=gone), SyncOptions(model=str(model)), facts=macs.facts[:2])
