"""Whether a model fits a cluster and splits over it."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaccl_kernel.models.facts import ModelFacts
from jaccl_kernel.models.inspect import inspect
from jaccl_kernel.steps.fit import fit, wired_limit
from jaccl_kernel.topology.facts import NodeFacts
from tests.models.material import tiny_llama
from tests.steps.shards import make_shards

GIB = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "m", total=3_000_000)


@pytest.fixture
def model(folder: Path) -> ModelFacts:
    return inspect(folder)


def macs(count: int, memory: int | None = 64 * GIB, limit_mb: int | None = 0) -> list[NodeFacts]:
    return [
        NodeFacts(f"mac{n + 1}", f"mac{n + 1}", memory=memory, wired_limit_mb=limit_mb) for n in range(count)
    ]


def test_a_split_that_the_check_cannot_follow_is_a_note(model: ModelFacts) -> None:
    untested = replace(model, loaded=replace(model.loaded, unknown="mlx.core.new"))
    [note] = fit(untested, macs(2))
    assert note.level == "note"
    assert "not tested" in note.what
    assert "mlx.core.new" in note.what


def test_a_model_that_fits_and_splits_has_no_finding(model: ModelFacts) -> None:
    assert fit(model, macs(2)) == ()


def test_without_a_limit_of_its_own_macos_leaves_the_gpu_a_part() -> None:
    assert wired_limit(36 * GIB, 0) == 24 * GIB
    assert wired_limit(512 * GIB, None) == 384 * GIB
    assert wired_limit(512 * GIB, 1024) == GIB


def test_a_rank_over_the_wired_limit_gets_the_command_that_raises_it(model: ModelFacts) -> None:
    held = model.tensor_parallel(2).bytes_per_rank[0]
    nodes = macs(2, memory=held * 5 // 4)
    finding, other = fit(model, nodes)
    assert (finding.level, finding.node, other.node) == ("problem", "mac1", "mac2")
    assert "its GPU may use" in finding.what
    assert "iogpu.wired_limit_mb" in finding.fix


def test_a_rank_over_the_memory_needs_more_macs(model: ModelFacts) -> None:
    nodes = [macs(1)[0], replace(macs(2)[1], memory=1000)]
    [finding] = fit(model, nodes)
    assert finding.node == "mac2"
    assert "of memory" in finding.what
    assert "more Macs" in finding.fix


def test_unknown_memory_is_not_tested(model: ModelFacts) -> None:
    assert {(one.level, one.node) for one in fit(model, macs(2, None))} == {
        ("note", "mac1"),
        ("note", "mac2"),
    }


def test_a_model_that_splits_only_as_a_pipeline_is_a_note(model: ModelFacts, tmp_path: Path) -> None:
    three = fit(model, macs(3))
    assert [one.level for one in three] == ["problem"]
    assert "4 query heads are not divisible by 3 ranks" in three[0].what
    folder = tiny_llama(model_type="qwen2", layers=3).save(tmp_path / "qwen")
    [finding] = fit(inspect(folder), macs(3))
    assert finding.level == "note"
    assert "--sharding pipeline" in finding.fix


def test_a_model_that_mlx_lm_cannot_load_is_a_problem_on_any_number_of_macs(tmp_path: Path) -> None:
    model = tiny_llama()
    model.tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = ("F32", (1, 1))
    [finding] = fit(inspect(model.save(tmp_path / "m")), macs(1))
    assert finding.level == "problem"
    assert "weight_scale_inv" in finding.what
