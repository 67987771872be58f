"""A server's address is one that resolves here: an alias of the ssh config is not."""

import os
import shutil
from pathlib import Path

import pytest

from jaccl_kernel.hostfile.hostfile import Host
from jaccl_kernel.steps.serve.address import address_of

pytestmark = [pytest.mark.needs("ssh"), pytest.mark.usefixtures("nothing_left")]


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh config with aliases, in place of the user's."""
    ssh = shutil.which("ssh")
    config = tmp_path / "ssh_config"
    config.write_text("Host studio\n  HostName 127.0.0.2\n  User me\nHost far\n  HostName far.invalid\n")
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {config} "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


async def test_an_alias_becomes_what_ssh_connects_to() -> None:
    assert await address_of(Host("studio", ("10.0.0.9",))) == "127.0.0.2"
    assert await address_of(Host("me@studio")) == "127.0.0.2"


async def test_a_name_that_does_not_resolve_becomes_the_first_ip() -> None:
    assert await address_of(Host("far", ("10.0.0.9", "10.0.1.9"))) == "10.0.0.9"
    assert await address_of(Host("far")) == "far"


async def test_this_machine_is_itself() -> None:
    assert await address_of(Host("127.0.0.1")) == "127.0.0.1"
    assert await address_of(Host("localhost")) == "127.0.0.1"
