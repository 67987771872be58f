"""What ssh is asked, and what its words mean: real refusals of a real ssh, and the words of other systems."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaccl_kernel.core.errors import InputError, NodeUnreachable
from jaccl_kernel.nodes import ssh
from jaccl_kernel.nodes.ssh_node import SshNode
from tests.sshd import Macs, silent_server, start_macs, wait_for


@pytest.fixture(scope="module")
def macs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Macs]:
    with start_macs(tmp_path_factory.mktemp("macs")) as running:
        yield running


async def refusal(node: SshNode, deadline: float = 60) -> NodeUnreachable:
    with pytest.raises(NodeUnreachable) as caught:
        await node.run(["sw_vers", "-productVersion"], deadline=deadline)
    assert caught.value.where == node.where
    assert "cannot run `sw_vers -productVersion`" in caught.value.what
    return caught.value


def node(macs: Macs, *options: str) -> SshNode:
    return SshNode("mac1", options=(*macs.options, *options))


# --- refusals by a real ssh


@pytest.mark.sshd
async def test_an_unknown_name_is_named(macs: Macs) -> None:
    error = await refusal(SshNode("no-such-mac.invalid", options=macs.options))
    assert "cannot resolve the host name no-such-mac.invalid" in error.what
    assert "~/.ssh/config" in error.fix


@pytest.mark.sshd
async def test_a_port_where_nothing_listens_is_named(tmp_path: Path) -> None:
    with start_macs(tmp_path, ["mac1"]) as one:
        one.stop("mac1")
        error = await refusal(node(one))
    assert f"no ssh server listens on port {one['mac1'].port}" in error.what
    assert "Remote Login" in error.fix


@pytest.mark.sshd
async def test_a_rejected_key_is_reported_with_the_fix(macs: Macs, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    config = tmp_path / "config"
    config.write_text(macs.config.read_text().replace("client_key", "no_key"))
    error = await refusal(SshNode("mac1", options=("-F", str(config), "-i", str(tmp_path / "other"))))
    assert "accepts none of the keys" in error.what
    assert "password prompts are disabled (publickey)" in error.what
    assert "ssh-copy-id mac1" in error.fix


@pytest.mark.sshd
async def test_a_private_key_that_others_can_read_is_named(macs: Macs, tmp_path: Path) -> None:
    key = tmp_path / "open_key"
    shutil.copy(macs.config.with_name("client_key"), key)
    key.chmod(0o644)
    config = tmp_path / "config"
    config.write_text(macs.config.read_text().replace(str(macs.config.with_name("client_key")), str(key)))
    error = await refusal(SshNode("mac1", options=("-F", str(config))))
    assert f"does not use the key {key}" in error.what
    assert error.fix == f"Run: chmod 600 {key}"


@pytest.mark.sshd
async def test_an_unknown_host_key_is_distinguished_from_a_changed_one(macs: Macs, tmp_path: Path) -> None:
    known = tmp_path / "known hosts"
    config = tmp_path / "config"
    config.write_text(macs.config.read_text().replace(str(macs.known_hosts), f'"{known}"'))
    stranger = SshNode("mac1", options=("-F", str(config)))

    known.write_text("")
    error = await refusal(stranger)
    assert "has never connected to it" in error.what
    assert "Run `ssh mac1` once" in error.fix

    known.write_text(f"# a comment\nmac1 {macs['mac2'].host_key}\n")
    error = await refusal(stranger)
    assert "the host key differs from the known one" in error.what
    assert f"({known} line 2)" in error.what
    assert "another machine may impersonate it" in error.fix

    # and the fix that it gives is the right one
    command = error.fix.split("`")[1]
    assert command.startswith("ssh-keygen -R mac1 -f ")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert "has never connected to it" in (await refusal(stranger)).what


@pytest.mark.sshd
async def test_a_silent_server_is_reported_at_the_deadline(macs: Macs) -> None:
    with silent_server() as server:
        port = server.getsockname()[1]
        error = await refusal(node(macs, "-p", str(port)), deadline=0.5)
    assert "ssh did not connect within 0.5 s; output: none" in error.what
    assert "ssh -v mac1 true" in error.fix


@pytest.mark.sshd
async def test_a_closed_connection_is_reported(macs: Macs) -> None:
    with silent_server() as server:
        hang_up = threading.Thread(target=lambda: server.accept()[0].close())
        hang_up.start()
        error = await refusal(node(macs, "-p", str(server.getsockname()[1])))
        hang_up.join(60)
    assert "the server closed the connection: " in error.what


@pytest.mark.sshd
async def test_an_account_without_a_shell_is_reported_with_its_message(macs: Macs) -> None:
    start_file = macs["mac1"].home / ".shellrc"
    start_file.write_text("echo This account is not available. >&2; exit 1\n")
    try:
        error = await refusal(node(macs))
    finally:
        start_file.unlink()
    assert "exited with status 1; output: This account is not available." in error.what


@pytest.mark.sshd
async def test_a_config_that_ssh_cannot_read_is_quoted(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host mac1\n  HostNmae 127.0.0.1\n")
    error = await refusal(SshNode("mac1", options=("-F", str(config))))
    assert "line 2" in error.what
    assert "hostnmae" in error.what.lower()


@pytest.mark.usefixtures("nothing_left")
async def test_a_machine_without_ssh_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await refusal(SshNode("mac1"))
    assert "ssh is not installed on this machine" in error.what
    assert "openssh" in error.fix


@pytest.mark.sshd
async def test_a_node_has_a_name_beside_its_ssh_name(tmp_path: Path) -> None:
    error = await refusal(SshNode("no-such-mac.invalid", name="studio 2"))
    assert str(error).startswith("studio 2 (ssh no-such-mac.invalid): ")


@pytest.mark.sshd
def test_every_ssh_knows_the_macs_through_the_path(macs: Macs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", macs.path)
    # as mlx.launch calls it
    done = subprocess.run(
        "ssh -tt -o LogLevel=QUIET mac2 'stty -echo; echo $HOME'",
        shell=True,
        executable="/bin/bash",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == str(macs["mac2"].home)
    wait_for(lambda: not macs.running(), "the shell still runs")


# --- words that this machine's ssh does not say


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (
            "ssh: Could not resolve hostname mac9.local: nodename nor servname provided, or not known\r\n",
            "cannot resolve the host name mac9.local",
            ".local",
        ),
        (
            "ssh: connect to host 10.0.0.7 port 22: Operation timed out\r\n",
            "the Mac does not answer",
            "awake",
        ),
        (
            "ssh: connect to host 10.0.0.7 port 22: Connection timed out\r\n",
            "the Mac does not answer",
            "awake",
        ),
        ("ssh: connect to host mac port 22: Host is down\r\n", "the Mac does not answer", "awake"),
        (
            "ssh: connect to host mac port 22: No route to host\r\n",
            "no network route to the Mac (No route to host)",
            "Local Network",
        ),
        ("Connection timed out during banner exchange\r\n", "no ssh server responds", "port"),
        (
            "No ED25519 host key is known for mac and you have requested strict checking.",
            "never connected",
            "ssh mac",
        ),
        (
            "Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures\r\n",
            "too many keys",
            "IdentitiesOnly",
        ),
        (
            "me@mac: Permission denied (publickey,password,keyboard-interactive).\r\n",
            "(publickey,password,keyboard-interactive)",
            "ssh-copy-id mac",
        ),
        (
            "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: x\r\n",
            "share no algorithm: no matching host key type found. Their offer: x",
            "Update",
        ),
        (
            "kex_exchange_identification: read: Connection reset by peer\r\n",
            "the server closed the connection: kex_exchange_identification: read: Connection reset by peer",
            "has access",
        ),
        ("Bad owner or permissions on /Users/me/.ssh/config\r\n", "/Users/me/.ssh/config", "ssh -G mac"),
    ],
)
def test_messages_of_ssh_are_explained(words: str, what: str, fix: str) -> None:
    trouble = ssh.explain(f"a banner\n{words}", "mac")
    assert trouble
    assert what in trouble.what
    assert fix in trouble.fix
    assert "{" not in trouble.what + trouble.fix


def test_a_changed_key_of_a_host_with_a_port_names_its_entry() -> None:
    words = (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
        "Add correct host key in /Users/me/.ssh/known_hosts to get rid of this message.\r\n"
        "Offending ECDSA key in /Users/me/.ssh/known_hosts:12\r\n"
        "Host key for [mac.local]:2222 has changed and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n"
    )
    trouble = ssh.explain(words, "mac")
    assert trouble
    assert "(/Users/me/.ssh/known_hosts line 12)" in trouble.what
    assert "`ssh-keygen -R '[mac.local]:2222' -f /Users/me/.ssh/known_hosts`" in trouble.fix


def test_unknown_messages_are_not_explained() -> None:
    assert (
        ssh.explain("everything is fine\nrsync: read error: Connection reset by peer (54)\n", "mac") is None
    )


@pytest.mark.parametrize(
    "line",
    [
        "client_loop: send disconnect: Broken pipe",
        "Connection to 10.0.0.7 closed by remote host.",
        "Timeout, server 10.0.0.7 not responding.",
        "Read from remote host 10.0.0.7: Operation timed out",
    ],
)
def test_a_broken_connections_last_line_is_found(line: str) -> None:
    assert ssh.lost(f"tokens: 12\n{line}\r\n") == line
    assert ssh.lost("tokens: 12\n") is None


# --- what ssh is asked


def test_ssh_never_prompts() -> None:
    words = ssh.command(["-p", "2222"])
    assert words[0] == "ssh"
    assert "BatchMode=yes" in words
    assert any(word.startswith("ConnectTimeout=") for word in words)
    assert words[-2:] == ["-p", "2222"]


@pytest.mark.parametrize("option", ["", "ProxyCommand=nc %h %p", "a\nb", "it's"])
def test_an_option_that_rsync_cannot_pass_on_is_refused(option: str) -> None:
    with pytest.raises(InputError, match="option"):
        SshNode("mac1", options=("-o", option))


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "two words", "a\nb"])
def test_an_invalid_host_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="host name"):
        SshNode(host)
