"""Sync on this machine: simulated Macs with homes of their own. pytest tests/steps/test_sync.py."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.hostfile import Host, Hostfile
from jaccl_kernel.cluster.shell import LocalNode
from jaccl_kernel.errors import Busy, InputError, ModelError, NodeError
from jaccl_kernel.jobs import lock
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.sync import SyncOptions, sync
from jaccl_kernel.steps.sync_report import SyncReport
from jaccl_kernel.wire import Event
from tests.steps.shards import contents, make_shards

pytestmark = pytest.mark.usefixtures("nothing_left")

NAME = "Qwen 3 – größer"
FACTS = NodeFacts("", "", memory=64 << 30, wired_limit_mb=0)


class Macs:
    """Local nodes with homes of their own, and what a sync told of them."""

    def __init__(self, root: Path, count: int) -> None:
        self.homes = [root / f"mac {number + 1}" for number in range(count)]
        for home in self.homes:
            (home / "bin").mkdir(parents=True)
        names = [f"mac{number + 1}" for number in range(count)]
        nodes = tuple(
            LocalNode(name, home, f"{home}/bin:{os.environ['PATH']}")
            for name, home in zip(names, self.homes, strict=True)
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

        wanted = SyncOptions(str(model), **options)
        return await sync(self.cluster, wanted, facts=self.facts, on_event=on)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]

    def program(self, index: int, name: str, text: str) -> None:
        """A program of that Mac's own, first in its PATH."""
        path = self.homes[index] / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def macs(tmp_path: Path) -> Macs:
    return Macs(tmp_path, 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "here" / NAME)


def states(report: SyncReport) -> list[str]:
    return [node.state for node in report.nodes]


async def test_a_model_from_this_machine_arrives_whole_on_every_node(macs: Macs, model: Path) -> None:
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


async def test_progress_is_told_for_each_node_up_to_the_end(macs: Macs, model: Path) -> None:
    report = await macs.sync(model)
    for name in macs.cluster.names:
        copied = [data for data in macs.told("copy") if data["node"] == name]
        done = [data["done_bytes"] for data in copied]
        assert done == sorted(done)
        assert done[0] == 0
        assert done[-1] == copied[-1]["total_bytes"] == report.record["bytes"]
    kinds = [event.kind for event in macs.events]
    assert max(kinds.index("found"), kinds.index("fit")) < kinds.index("copy"), "told before a byte moves"


async def test_a_second_sync_moves_nothing(macs: Macs, model: Path) -> None:
    await macs.sync(model)
    before = macs.model(0).stat().st_ino
    macs.events.clear()
    report = await macs.sync(model)
    assert states(report) == ["identical"] * 3
    assert macs.model(0).stat().st_ino == before
    assert not macs.told("copy")
    assert not macs.told("hash"), "hashes of files that nothing touched are kept"
    assert (await macs.sync(model, rehash=True)).ok
    assert macs.told("hash")


async def test_the_node_that_has_it_gives_it_to_the_others(macs: Macs) -> None:
    make_shards(macs.model(1))
    report = await macs.sync(NAME)
    assert states(report) == ["copied", "identical", "copied"]
    assert {node.source for node in report.nodes if node.source} == {"mac2"}
    assert contents(macs.model(2)) == contents(macs.model(1))


async def test_a_check_looks_and_changes_nothing(macs: Macs) -> None:
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
    times = damaged.stat()
    with damaged.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync -t would leave it
    with pytest.raises(InputError, match=r"different models .* mac3 has another model-00001") as caught:
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


async def test_an_older_model_stays_until_the_new_one_is_whole(macs: Macs, model: Path) -> None:
    """Its own small files are set aside, its stale weights are not."""
    old = make_shards(macs.model(0), files=2, seed=2)
    (old / "notes.txt").write_text("mine")
    before = contents(old)
    seen: list[bool] = []

    def still_there(event: Event) -> None:
        if event.kind == "copy" and event.data["node"] == "mac1":
            seen.append(contents(old) == before)

    report = await macs.sync(model, still_there)
    assert seen
    assert all(seen)
    assert contents(old) == contents(model)
    aside = macs.homes[0] / "models" / f".{NAME}.replaced"
    assert contents(aside) == {"notes.txt": b"mine"}
    assert any(str(aside) in note for note in report.nodes[0].notes)
    assert not (macs.homes[0] / "models" / f".{NAME}.old").exists()


async def test_a_copy_that_was_stopped_shows_nothing_and_is_gone_on_with(macs: Macs, model: Path) -> None:
    slow = 'exec /usr/bin/rsync --bwlimit=300 "$@"'
    for index in range(3):
        macs.program(index, "rsync", slow)
    under_way = asyncio.Event()

    def on(event: Event) -> None:
        if event.kind == "copy" and event.data["done_bytes"] > 0:
            under_way.set()

    task = asyncio.create_task(macs.sync(model, on))
    await asyncio.wait_for(under_way.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(macs.model(index).exists() for index in range(3))
    kept = macs.told("kept")
    assert kept
    assert kept[0]["bytes"] > 0
    assert Path(kept[0]["folder"]).is_dir()
    for index in range(3):
        (macs.homes[index] / "bin" / "rsync").unlink()
    report = await macs.sync(model)
    assert report.ok
    assert any(node.resumable_bytes for node in report.nodes)
    assert contents(macs.model(0)) == contents(model)


async def test_what_arrives_damaged_is_sent_once_more(macs: Macs, model: Path) -> None:
    damage = (
        '/usr/bin/rsync "$@" || exit; for dest; do :; done; [ -e "$HOME/done" ] && exit; : >"$HOME/done"\n'
        'printf x | dd of="$dest/model-00002-of-00003.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null'
    )
    macs.program(1, "rsync", damage)
    report = await macs.sync(model)
    assert report.ok
    assert any("arrived damaged" in note for note in report.nodes[1].notes)
    assert contents(macs.model(1)) == contents(model)


async def test_what_always_arrives_damaged_is_not_shown(macs: Macs, model: Path) -> None:
    damage = '/usr/bin/rsync "$@" || exit; for dest; do :; done; echo >>"$dest/config.json"'
    macs.program(1, "rsync", damage)
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed", "copied"]
    assert "config.json arrived damaged 2 times" in report.nodes[1].error
    assert not macs.model(1).exists()


async def test_a_model_that_changes_while_it_is_copied_is_named(macs: Macs, model: Path) -> None:
    changed = model / "tokenizer.json"

    def change(event: Event) -> None:
        if event.kind == "found":
            changed.write_text('{"a": 1}')

    report = await macs.sync(model, change)
    assert states(report) == ["failed"] * 3
    assert (
        "the model changed while it was copied: the source now has another tokenizer.json"
        in report.nodes[0].error
    )
    assert not macs.model(0).exists()


async def test_a_file_that_is_added_while_it_is_copied_is_not_taken_along(macs: Macs, model: Path) -> None:
    def add(event: Event) -> None:
        if event.kind == "found":
            (model / "more.json").write_text("{}")

    report = await macs.sync(model, add)
    assert states(report) == ["failed"] * 3
    assert "the source now has besides more.json" in report.nodes[0].error
    assert not macs.model(0).exists()


async def test_two_nodes_of_one_home_are_not_copied_to_at_once(macs: Macs, model: Path) -> None:
    twin = LocalNode("twin", macs.homes[1])
    macs.cluster = replace(macs.cluster, nodes=(*macs.cluster.nodes[:2], twin))
    with pytest.raises(InputError, match="mac2 and twin are one folder"):
        await macs.sync(model)
    assert not macs.partial(1).exists()
    assert (await macs.sync(model, check=True)).nodes[2].state == "missing"


async def test_a_disk_that_is_too_small_is_told_before_and_stops_no_other(macs: Macs, model: Path) -> None:
    macs.program(1, "df", "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo x 99 90 9 91% /")
    report = await macs.sync(model)
    assert states(report) == ["copied", "failed", "copied"]
    assert "the disk is too full" in report.nodes[1].error
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
    assert "the disk ran full" in report.nodes[1].error
    assert "goes on from here" in report.nodes[1].fix


async def test_rsync_is_asked_only_what_openrsync_knows(macs: Macs, model: Path) -> None:
    """A stand-in refuses what Apple's refuses, and tells progress in its words."""
    known = (
        "-rlt|--progress|-L|-I|--inplace|--timeout=*|--exclude=*|/*|./) ;;"
        '*) echo "rsync: unrecognized option $word" >&2; exit 1 ;;'
    )
    figures = r"s/^ *\([0-9,]*\)  *\([0-9]*%\).*(xfr#\([0-9]*\), to-chk=\(.*\))"
    words = rf"{figures}/   \1 \2    0.95kB\/s   00:00:00 (xfer#\3, to-check=\4)/"
    openrsync = (
        f'for word; do case $word in {known} esac; done; /usr/bin/rsync "$@" | tr -d , | sed "{words}"'
    )
    for index in range(3):
        macs.program(index, "rsync", openrsync)
    report = await macs.sync(model)
    assert report.ok, report.nodes
    assert macs.told("copy")[-1]["done_bytes"] == report.record["bytes"]


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
    assert "is no folder" in report.nodes[0].error
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
    macs.program(0, "rsync", 'echo "$@" >>"$HOME/asked"; /usr/bin/rsync "$@"; exit 23')
    assert states(await macs.sync(model))[0] == "failed"
    assert contents(old) == before
    (macs.homes[0] / "bin" / "rsync").unlink()
    report = await macs.sync(model)
    assert report.ok, report.nodes
    assert contents(old) == contents(model)


async def test_what_does_not_fit_or_split_is_told_before_anything_moves(macs: Macs, model: Path) -> None:
    macs.facts[1] = replace(macs.facts[1], memory=100_000)
    macs.facts[0] = replace(macs.facts[0], memory=None)
    report = await macs.sync(model)
    told = {(one["level"], one["node"]): one["what"] for one in macs.told("fit")[0]["findings"]}
    assert "4 query heads do not divide by 3 ranks" in told["problem", ""]
    assert report.ok, "it is told, and the user's choice"
    two = Macs(model.parent / "two", 2)
    two.facts[1] = replace(two.facts[1], memory=100_000)
    two.facts[0] = replace(two.facts[0], memory=None)
    await two.sync(model, check=True)
    told = {(one["level"], one["node"]): one["what"] for one in two.told("fit")[0]["findings"]}
    assert "GB of memory" in told["problem", "mac2"]
    assert "not tested" in told["note", "mac1"]


async def test_a_model_that_nobody_has_whole_is_refused_with_the_reason(macs: Macs, model: Path) -> None:
    with pytest.raises(ModelError, match=r"nobody has it whole: .*mac1.* is not there"):
        await macs.sync("nothing")
    make_shards(macs.model(1))
    (macs.model(1) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of its 3 weight files: model-00002"):
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
        ({"model": " "}, "no model was named"),
        ({"model": "x", "source": "mac9"}, "mac9 is no node"),
        ({"model": "x", "source": "127.0.0.1"}, "means more than one node"),
        ({"model": "x", "dest": "~"}, "cannot be a model's folder"),
        ({"model": "x", "dest": "models"}, "cannot be a model's folder"),
        ({"model": "a/b", "source": "mac1"}, "does not tell a folder of another node"),
        ({"model": "x", "source": "localhost"}, "is no model on this machine"),
    ],
)
async def test_what_makes_no_sense_is_refused(macs: Macs, options: dict[str, Any], told: str) -> None:
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


async def test_two_syncs_to_one_node_at_once_are_refused(macs: Macs, model: Path) -> None:
    with lock.hold(["sync-mac2"], "a sync of that"), pytest.raises(Busy, match="a sync of that"):
        await macs.sync(model)


async def test_a_node_whose_files_cannot_be_hashed_is_not_tested(macs: Macs, model: Path) -> None:
    for name in ("sha256sum", "shasum", "openssl"):
        macs.program(0, name, "exit 1")
    macs.model(0).mkdir(parents=True)
    (macs.model(0) / "config.json").write_text("{}")
    report = await macs.sync(model)
    assert states(report) == ["untested", "copied", "copied"]
    assert "config.json cannot be read" in report.nodes[0].error
    assert not report.ok


async def test_when_no_node_answers_the_step_raises(macs: Macs, model: Path) -> None:
    gone = tuple(LocalNode(f"mac{n}", model.parent / "no such home") for n in range(2))
    with pytest.raises(NodeError):
        await sync(replace(macs.cluster, nodes=gone), SyncOptions(str(model)), facts=macs.facts[:2])
