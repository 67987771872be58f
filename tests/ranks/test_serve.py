"""What a serving rank decides by itself."""

from pathlib import Path
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


def test_an_address_beyond_loopback_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JACCL_API_KEY", raising=False)
    link: Any = SimpleNamespace(wired=False, next_message=None)

    def key(host: str) -> str | None:
        options = ServeProgram(model="m", host=host)
        return Service(options, World(0, 1, "none"), None, link, Payload()).config.api_key

    assert key("127.0.0.1") is None
    for host in ("0.0.0.0", "::", "192.168.1.2", "mac1.local"):
        with pytest.raises(JobError, match="needs an API key") as caught:
            key(host)
        assert "JACCL_API_KEY_FILE" in caught.value.fix
    file = tmp_path / "key"
    monkeypatch.setenv("JACCL_API_KEY_FILE", str(file))
    with pytest.raises(JobError, match="cannot read the API key"):
        key("0.0.0.0")
    file.write_text("\n")
    with pytest.raises(JobError, match="empty"):
        key("0.0.0.0")
    file.write_text("secret\n")
    assert key("0.0.0.0") == "secret"
