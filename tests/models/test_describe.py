"""Facts as text and as JSON."""

import json
from dataclasses import replace
from pathlib import Path

from jaccl_kernel.models.describe import describe, to_json
from jaccl_kernel.models.inspect import inspect
from tests.models.material import tiny_llama


def test_the_text_lists_the_supported_splits(tmp_path: Path) -> None:
    facts = inspect(tiny_llama(group=32, layers=8).save(tmp_path / "My model"))
    page = describe(facts)
    assert page.startswith(f"My model: llama, {facts.parameters} parameters, 4-bit in groups of 32 (affine)")
    lines = [line.strip() for line in page.splitlines()]
    each = facts.tensor_parallel(2).bytes_per_rank[0]
    assert f"2    yes, {each} bytes each" in lines
    assert "4    no: the model has 2 key-value heads, fewer than 4 ranks" in lines
    assert "2-8  no: mlx-lm's llama has no pipeline()" in lines
    assert facts.digest in page


def test_large_numbers_are_rounded_with_their_unit(tmp_path: Path) -> None:
    facts = inspect(tiny_llama().save(tmp_path / "m"))
    page = describe(replace(facts, parameters=235_093_634_560, bytes=132_241_000_000))
    assert "235.1 B parameters, bfloat16" in page
    assert "132.2 GB in 1 file(s)" in page


def test_every_reason_stands_on_the_page(tmp_path: Path) -> None:
    facts = inspect(tiny_llama(model_type="qwen3_moe").save(tmp_path / "m", index=False))
    page = describe(facts)
    for ranks in range(2, 9):
        for reason in (*facts.tensor_parallel(ranks).reasons, *facts.pipeline(ranks).reasons):
            assert reason in page


def test_json_holds_the_facts_and_eight_splits_of_each_kind(tmp_path: Path) -> None:
    facts = inspect(tiny_llama(group=32).save(tmp_path / "m"))
    told = json.loads(json.dumps(to_json(facts)))
    assert told["path"] == str(tmp_path / "m")
    assert told["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert told["shards"] == ["model.safetensors"]
    assert [split["ranks"] for split in told["tensor_parallel"]] == list(range(1, 9))
    assert [split["ok"] for split in told["tensor_parallel"]] == [True, True, *[False] * 6]
    assert told["tensor_parallel"][1]["bytes_per_rank"] == list(facts.tensor_parallel(2).bytes_per_rank)
    assert told["pipeline"][1]["reasons"] == ["mlx-lm's llama has no pipeline()"]
    assert not {"tensors", "config", "support"} & set(told)
