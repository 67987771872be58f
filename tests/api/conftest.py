"""A scripted engine behind a server, with a tokenizer that has markers for reasoning and tool calls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaccl_kernel.api.config import ServedModel
from tests.api.agents import make_tokenizer
from tests.api.scripted import Engine, serving


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def agent_tokenizer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tiny_model, tmp_path_factory.mktemp("agent"))


@pytest.fixture
def agent(engine: Engine, agent_tokenizer: Any) -> Iterator[str]:
    with serving(engine, ServedModel("tiny", agent_tokenizer, context=4000, vocabulary=263)) as address:
        yield address
