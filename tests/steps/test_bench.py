"""Bench: one model over several numbers of ranks, held against one."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.core.errors import Busy, HostfileError, InputError, ModelError, RankDied
from jaccl_kernel.core.events import BenchResult, Event, Hello, JobStarted, Line, PointMeasured
from jaccl_kernel.core.messages import Payload
from jaccl_kernel.core.options import BenchOptions
from jaccl_kernel.core.results import Reference
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.launch import lock
from jaccl_kernel.launch.run import OnEvent
from jaccl_kernel.rehearsal.homes import make_hostfile
from jaccl_kernel.steps.bench import bench
from tests.events import bodies, is_stage
from tests.tiny import make_tiny_model

# `hostfile check` finds no error in them, and mlx.launch itself would refuse them
ONE_HOST_FILES = (
    '[{"ssh": "127.0.0.1"}]',
    '{"backend": "jaccl", "hosts": [{"ssh": "127.0.0.1", "ips": ["192.168.1.5"], "rdma": []}]}',
)

# what programs that read `jaccl bench --json` rely on
POINT_KEYS = {
    *("ranks", "prompt_tokens", "generated_tokens", "load_s", "prompt_tps", "generation_tps", "ttft_s"),
    *("itl_s", "peak_memory_bytes", "energy", "speedup", "efficiency", "tokens", "text"),
}
PARITY_KEYS = {"verdict", "first_difference", "max_logprob_diff", "tolerance", "reference_ranks"}

pytestmark = pytest.mark.usefixtures("nothing_left")


def options(model: Path, **more: Any) -> BenchOptions:
    settings: dict[str, Any] = {"model": str(model), "max_tokens": 12, "repeats": 2, "prompt": "Hi"}
    return BenchOptions(**settings | more)


async def test_one_against_two_ranks_is_measured_compared_and_recorded(tiny_model: Path) -> None:
    events: list[Event] = []
    hostfile = replace(make_hostfile(4), envs=("TRANSFORMERS_OFFLINE=0",))
    report = await bench(hostfile, options(tiny_model, ranks=[2, 1]), on_event=events.append)
    assert report.path
    assert json.loads(report.path.read_text()) == report.record
    one, two = report.points
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert len(one["tokens"]) == len(two["tokens"]) == one["generated_tokens"] == 12
    assert one["speedup"] == 1.0
    assert two["efficiency"] == pytest.approx(two["speedup"] / 2)
    for point in (one, two):
        assert len(point["peak_memory_bytes"]) == point["ranks"]
        assert all(size > 0 for size in point["peak_memory_bytes"])
        for rate in ("prompt_tps", "generation_tps", "ttft_s"):
            assert 0 < point[rate]["min"] <= point[rate]["median"] <= point[rate]["max"]
    parity = report.record["parity"]
    assert parity["verdict"] in ("equal", "near-tie")
    assert parity["max_logprob_diff"] < parity["tolerance"]
    assert report.ok
    said = report.record["provenance"]
    assert said["hosts"] == ["mac1", "mac2"]
    assert said["rehearsal"] is True
    assert said["environment"] == {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "0",
        "MLX_METAL_FAST_SYNCH": "0",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
    }
    assert said["model"]["digest"]
    assert said["ranks"][0]["packages"]["mlx-lm"]
    assert [measured.point["ranks"] for measured in bodies(events, PointMeasured)] == [1, 2]


@pytest.mark.parametrize("text", ONE_HOST_FILES, ids=["bare", "jaccl"])
async def test_a_single_host_tests_no_parity_and_needs_no_address(
    tiny_model: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where its record cannot be saved, it is told, and what was measured is not lost."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JACCL_RESULTS", str(tmp_path / "file" / "results"))
    events: list[Event] = []
    report = await bench(
        Hostfile.loads(text), options(tiny_model, max_tokens=1, repeats=1), on_event=events.append
    )
    assert [line for line in bodies(events, Line) if line.text.startswith("the record was not saved")]
    assert report.ok
    assert report.record.keys() == {"schema", "points", "failed", "parity", "provenance"}
    assert report.points[0].keys() == POINT_KEYS
    assert report.record["parity"].keys() == PARITY_KEYS
    assert report.record["parity"]["verdict"] == "not-tested"
    assert report.path is None
    assert report.points[0]["generation_tps"]["median"] is None


async def test_a_model_that_answers_otherwise_on_two_ranks_is_caught(
    tmp_path: Path, tiny_model: Path
) -> None:
    """The second rank holds other weights: its part of every sum is wrong."""
    other = make_tiny_model(tmp_path / "mac2" / "model", hidden_act="silu", rope_theta=77.0)
    root = tmp_path / "mac1"
    root.mkdir()
    (root / "model").symlink_to(tiny_model)
    (tmp_path / "run").mkdir()
    # one name on every node, as on real Macs; each rank's home has its own file behind it
    homes = [{"HOME": str(root)}, {"HOME": str(other.parent)}]

    from jaccl_kernel.launch.run import run
    from jaccl_kernel.launch.spec import JobSpec
    from jaccl_kernel.report import parity

    wanted = options(tiny_model, repeats=1)
    hosts = make_hostfile(2)
    one = await run(JobSpec(hosts.subset([0]), wanted.program(str(tiny_model)), "ring"))
    [first] = one.results_of(BenchResult)
    assert first.score
    tokens = first.runs[0].tokens
    two = await run(
        JobSpec(hosts, wanted.program("~/model"), "ring", rank_env=tuple(homes)),
        payload=Payload(Reference(tokens, first.score.top)),
    )
    second = two.results_of(BenchResult)[0]
    assert second.score
    gate = parity.compare(tokens, second.runs[0].tokens, first.score, second.score)
    assert gate.max_logprob_diff is not None
    assert gate.tolerance is not None
    assert gate.max_logprob_diff > gate.tolerance


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_tokens": 0}, "--max-tokens must be at least 1"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"prompt": "  "}, "--prompt must not be empty"),
        ({"prompt": None, "prompt_tokens": 0}, "--prompt-tokens must be at least 1"),
        ({"prompt_tokens": 5}, "--prompt and --prompt-tokens exclude"),
        ({"ranks": [3]}, "the hostfile has 2 hosts"),
        ({"ranks": [0]}, "--ranks must be at least 1"),
        ({"ranks": []}, "cannot run on no ranks"),
    ],
)
async def test_invalid_input_is_rejected_before_anything_starts(
    tiny_model: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        await bench(make_hostfile(2), options(tiny_model, **changes), on_event=_no_job)


async def test_a_hostfile_that_prevents_the_job_is_rejected(tiny_model: Path) -> None:
    hosts = (Host("a"), Host("b"))
    with pytest.raises(HostfileError):
        await bench(Hostfile(hosts, "jaccl"), options(tiny_model), on_event=_no_job)


async def test_a_model_that_does_not_split_is_rejected_before_anything_starts(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "m", num_attention_heads=3, num_key_value_heads=3, hidden_size=48)
    with pytest.raises(ModelError, match=r"over 2 ranks.*heads"):
        await bench(make_hostfile(2), options(model, ranks=[1, 2]), on_event=_no_job)


async def test_damaged_models_are_rejected_before_anything_starts(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "m")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        await bench(make_hostfile(2), options(model), on_event=_no_job)
    weights.unlink()
    with pytest.raises(ModelError, match="weights"):
        await bench(make_hostfile(2), options(model), on_event=_no_job)
    with pytest.raises(ModelError):
        await bench(make_hostfile(2), options(tmp_path / "nowhere"), on_event=_no_job)


async def test_a_rank_that_fails_at_load_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """The model is whole on this machine, but the tokenizer cannot be read by the ranks."""
    model = make_tiny_model(tmp_path / "m")
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(RankDied, match="at stage 'load'") as caught:
        await bench(make_hostfile(2), options(model, ranks=[2]))
    assert caught.value.where in ("mac1", "mac2")


def kill_rank_1() -> OnEvent:
    """A listener that kills rank 1 when rank 0 begins to measure."""
    pids: dict[int, int] = {}

    def kill(event: Event) -> None:
        if isinstance(event.body, Hello):
            pids[event.rank] = event.body.pid
        if is_stage(event, "measure") and 1 in pids:
            os.kill(pids.pop(1), signal.SIGKILL)

    return kill


async def test_a_rank_killed_in_the_middle_of_generation_is_named(tiny_model: Path) -> None:
    with pytest.raises(RankDied, match="SIGKILL") as caught:
        await bench(make_hostfile(2), options(tiny_model, max_tokens=2000, ranks=[2]), on_event=kill_rank_1())
    assert (caught.value.rank, caught.value.where) == (1, "mac2")


async def test_earlier_points_are_kept_if_a_later_one_fails(tiny_model: Path) -> None:
    report = await bench(
        make_hostfile(2), options(tiny_model, max_tokens=150, ranks=[1, 2]), on_event=kill_rank_1()
    )
    assert not report.ok
    assert report.path
    assert json.loads(report.path.read_text()) == report.record
    assert [point["ranks"] for point in report.points] == [1]
    [failed] = report.failed
    assert (failed["ranks"], failed["error"]["type"], failed["error"]["where"]) == (2, "RankDied", "mac2")
    assert "SIGKILL" in failed["error"]["what"]
    assert report.record["provenance"]["hosts"] == ["mac1"]


async def test_stopping_in_the_middle_leaves_nothing(tiny_model: Path) -> None:
    measuring = asyncio.Event()
    task = asyncio.create_task(
        bench(
            make_hostfile(2),
            options(tiny_model, max_tokens=3000, ranks=[2]),
            on_event=lambda event: measuring.set() if is_stage(event, "measure") else None,
        )
    )
    await asyncio.wait_for(measuring.wait(), 120)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_two_at_once_on_one_machine_are_rejected(tiny_model: Path) -> None:
    with lock.hold(["127.0.0.1"], "a benchmark"), pytest.raises(Busy, match="a benchmark"):
        await bench(make_hostfile(2), options(tiny_model))


def _no_job(event: Event) -> None:
    assert not isinstance(event.body, JobStarted), "a job was started"
