"""The work of inspecting a model does not grow beyond one look at each file, whatever the number of ranks."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.models import weights
from jaccl_kernel.models.describe import describe
from jaccl_kernel.models.inspect import inspect
from tests.models.material import tiny_llama

_opened: Counter[str] | None = None


def _audit(event: str, details: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(details[0], str | Path):
        _opened[Path(details[0]).name] += 1


sys.addaudithook(_audit)


def test_each_weight_file_is_opened_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global _opened
    folder = tiny_llama(layers=16).save(tmp_path / "m", files=100)
    parsed = 0
    parse = weights._parse

    def counted(text: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(text)

    monkeypatch.setattr(weights, "_parse", counted)
    inspect(tiny_llama().save(tmp_path / "first"))  # reads mlx-lm's sources, once per process
    parsed, _opened = 0, Counter()
    try:
        facts = inspect(folder)
        assert "tensor parallel" in describe(facts)
    finally:
        seen, _opened = _opened, None
    shards = {name: times for name, times in seen.items() if name.endswith(".safetensors")}
    assert shards == dict.fromkeys((file.name for file in folder.glob("*.safetensors")), 1)
    assert len(shards) == 100
    assert parsed == 100 + 2, "the headers, the index and config.json"
