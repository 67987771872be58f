"""The verdict on every architecture of the installed mlx-lm, against mlx-lm itself."""

import re
from typing import Any

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.architecture import architecture
from jaccl_kernel.models.sources import mlx_lm
from tests.models import every
from tests.models.asking import Real, ask_mlx_lm

PACKED = {"group_size": 32, "bits": 4}
RANKS = (2, 3, 4, 5, 6, 7, 8)
# Their models cannot be made of a config alone: a pack of Hadamard matrices, a package that is not ours.
NOT_MADE = {"prism_hadamard_qwen35", "olmo"}


FILES = tuple((mlx_lm() / "models").glob("*.py"))
MODEL = re.compile(r"^class Model\b|^from \S+ import .*\bModel\b", re.MULTILINE)


def is_architecture(name: str) -> bool:
    try:
        return architecture(name) == name
    except ModelError:
        return False


# a search, since parsing all files would slow the collection of every run
NAMES = sorted({file.stem for file in FILES if MODEL.search(file.read_text(encoding="utf-8"))} - NOT_MADE)
NOT_PACKED = {"afm7"}  # its layers cannot be quantized by this mlx
# Tried in every run, with each eighth of the others; `make test-slow` tries all.
COMMON = {
    "llama",
    "qwen3",
    "qwen3_moe",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "mixtral",
    "minimax",
    "gemma3_text",
}
SAMPLE = COMMON | set(NAMES[::8])
MODELS = [
    *(f"{name}, plain" for name in NAMES),
    *(f"{name}, 4 bit" for name in NAMES if name not in NOT_PACKED),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Real:
    models: dict[str, Any] = {}
    # Others may be named as these: a session has the items of all modules.
    mine = [item for item in request.session.items if item.path == request.path]
    selected = {item.callspec.params["name"] for item in mine if hasattr(item, "callspec")}
    for each in filter(selected.__contains__, MODELS):
        name, _, kind = each.partition(", ")
        config = every.config(name)
        models[each] = (config, RANKS) if kind == "plain" else ({**config, "quantization": PACKED}, (2, 4, 8))
    return ask_mlx_lm(tmp_path_factory.mktemp("every"), models)


@pytest.mark.processes
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=() if each.partition(",")[0] in SAMPLE else pytest.mark.slow)
        for each in MODELS
    ],
)
def test_the_verdict_on_every_architecture_is_what_mlx_lm_does(real: Real, name: str) -> None:
    facts, answers = real[name]
    assert (facts.problem, facts.loaded.unknown) == ("", "")
    assert facts.tensor_parallel(1).bytes_per_rank == (answers["loaded"],)
    assert facts.parameters == answers["values"]
    for ranks, sizes in answers["tensor"].items():
        split = facts.tensor_parallel(int(ranks))
        if split.ok:
            assert sizes == [split.bytes_per_rank[0], split.bytes_per_rank[-1]], ranks
        else:
            said_to_run = any("wrong text without an error" in reason for reason in split.reasons)
            assert said_to_run == (sizes is not None), (ranks, split.reasons)
    for ranks, sizes in answers["pipeline"].items():
        assert (list(facts.pipeline(int(ranks)).bytes_per_rank) or None) == sizes


def test_most_of_the_installed_mlx_lm_is_tried() -> None:
    assert len(NAMES) > 100
    assert {file.stem for file in FILES if is_architecture(file.stem)} - NOT_MADE == set(NAMES)
    assert set(NAMES) >= COMMON
