"""What a serving rank decides by itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from jaccl_kernel.core.errors import JobError
from jaccl_kernel.core.messages import Payload
from jaccl_kernel.core.options import ServeProgram
from jaccl_kernel.ranks.group import World
from jaccl_kernel.ranks.serve import Service, fitting


def test_a_memory_that_holds_no_conversation_is_refused_in_words() -> None:
    with pytest.raises(JobError, match="memory holds only 2 tokens besides the model") as caught:
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
    payload = Payload(api_key=sent)
    options = ServeProgram(model="m")
    one = Service(options, World(0, 1, "none"), None, link, payload)
    assert one.config.api_key == key
