"""What a serving rank decides by itself. pytest tests/ranks/test_serve.py"""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from jaccl_kernel.errors import JobError
from jaccl_kernel.ranks.serve import Service, fitting
from jaccl_kernel.ranks.world import World


def test_a_memory_that_holds_no_conversation_is_refused_in_words() -> None:
    with pytest.raises(JobError, match="memory holds 2 tokens beside the model") as caught:
        fitting(4096, 2)
    assert "--memory-gb" in caught.value.fix
    assert fitting(4096, 1000) == 1000
    assert fitting(4096, 1 << 20) == 4096
    assert fitting(100, 150) == 100  # so few were asked for


@pytest.mark.parametrize(
    ("wired", "sent", "key"), [(True, None, None), (True, "k", "k"), (False, None, "env")]
)
def test_the_environments_key_is_for_ranks_without_a_supervisor(
    monkeypatch: pytest.MonkeyPatch, wired: bool, sent: str | None, key: str | None
) -> None:
    monkeypatch.setenv("JACCL_API_KEY", "env")
    link: Any = SimpleNamespace(wired=wired, next_message=None)
    payload = {"api_key": sent} if wired else {}
    one = Service(argparse.Namespace(), World(0, 1, "none"), None, link, payload)
    assert one.api_key == key
