"""What we take from ipyparallel beyond its documented API: fails when a new version changes it."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import ipyparallel
import pytest
from ipyparallel.controller.app import IPController
from ipyparallel.controller.heartmonitor import HeartMonitor
from ipyparallel.engine.app import IPEngine

PACKAGE = Path(__file__).parents[2] / "jaccl_kernel"
CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (IPController, HeartMonitor, IPEngine)}


def source(name: str) -> str:
    return (PACKAGE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["launch/controller.py", "ranks/resident.py"])
def test_every_option_that_we_set_is_a_configurable_trait(name: str) -> None:
    options = re.findall(r'"--([A-Z]\w+)\.(\w+)=', source(name))
    assert options
    known = {name: cls.class_traits(config=True) for name, cls in CLASSES.items()}
    assert [f"{cls}.{trait}" for cls, trait in options if trait not in known[cls]] == []


@pytest.mark.parametrize(
    ("application", "name"), [(IPController, "launch/controller.py"), (IPEngine, "ranks/resident.py")]
)
def test_every_short_option_that_we_set_is_an_alias(application: Any, name: str) -> None:
    options = set(re.findall(r'"--([a-z][a-z-]+)=', source(name)))
    assert options
    assert options <= set(application().aliases)


def test_an_engine_takes_its_connection_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPP_CONNECTION_INFO", json.dumps({"location": "127.0.0.1"}))
    assert json.loads(IPEngine().connection_info_env) == {"location": "127.0.0.1"}


def test_an_engine_takes_a_namespace_and_starts_without_a_nanny() -> None:
    engine = IPEngine()
    engine.user_ns = {"rank": 3}
    assert "user_ns=self.user_ns" in inspect.getsource(IPEngine)
    assert "if self.enable_nanny:" in inspect.getsource(IPEngine)


def test_a_client_has_what_a_failed_engine_is_reported_through() -> None:
    """notebook/engines.py hands pending results their error as a reply from the engine."""
    traits = ipyparallel.Client.class_traits()
    assert {"_io_loop", "_outstanding_dict", "_engines", "results"} <= set(traits)
    assert ipyparallel.Client._closed is False
    handled = inspect.getsource(ipyparallel.Client._handle_apply_reply)
    for piece in ("msg['parent_header']", "parent['msg_id']", "msg['content']", "unwrap_exception(content)"):
        assert piece in handled, piece
    assert "self.session = Session(" in inspect.getsource(ipyparallel.Client.__init__)
    assert "self._outstanding_dict[ident_str].add(msg_id)" in inspect.getsource(ipyparallel.Client)
    assert "connection_info" in inspect.signature(ipyparallel.Client.__init__).parameters


def test_an_error_is_wrapped_as_a_reply_has_it() -> None:
    try:
        int("rank 1 ended")
    except ValueError:
        content = ipyparallel.error.wrap_exception()
    again = ipyparallel.error.unwrap_exception(content)
    assert (content["status"], again.ename) == ("error", "ValueError")
    assert "rank 1 ended" in again.evalue
