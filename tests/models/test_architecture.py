"""How a model type is mapped to an architecture of the installed mlx-lm."""

import subprocess
import sys

import pytest

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.architecture import architecture


def test_a_model_type_is_mapped_as_mlx_lm_maps_it() -> None:
    assert architecture("mistral") == "llama"
    assert architecture("kimi_k2") == "deepseek_v3"
    assert architecture("bailing_hybrid", ("BailingMoeV3ForCausalLM",)) == "bailing_moe_v3"
    assert architecture("bailing_hybrid", ("Other",)) == "bailing_hybrid"
    assert architecture("solar_open") == "solar_open"  # its class is imported from glm4_moe


@pytest.mark.parametrize("name", ["llamma", "../llama", "", "base", "cache"])
def test_an_unknown_architecture_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="does not support the architecture") as caught:
        architecture(name)
    assert "pip install -U mlx-lm, on every node" in caught.value.fix


def test_near_names_are_offered() -> None:
    with pytest.raises(ModelError, match="qwen3_moe"):
        architecture("qwen3moe")


@pytest.mark.usefixtures("nothing_left")
def test_neither_mlx_nor_mlx_lm_is_imported() -> None:
    code = (
        "import sys; from jaccl_kernel.models.architecture import architecture; architecture('llama');"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers', 'numpy')])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.strip() == "[]"
